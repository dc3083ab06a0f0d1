"""Mail of unknown outcome is resolved by evidence before it is sent again."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.mail import EmailMessage
from django.utils import timezone

from devservers.http_service import HTTPService
from devservers.smtp_faults import drop, refuse
from django_epica_mail import maintenance, outbox, signals, suppression
from django_epica_mail.delivery import claim
from django_epica_mail.exceptions import Veto
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    Suppression,
)
from django_epica_mail.tracking import events, evidence

ASKED = f"{__name__}.answer"


class _Site:
    """What the site's function answers, and about which e-mails it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[EmailLog], Any] = lambda email: "unknown"
        self.asked: list[EmailLog] = []


_site = _Site()


def answer(email: EmailLog) -> Any:
    _site.asked.append(email)
    return _site.answer(email)


@pytest.fixture
def says(epica_mail) -> Callable[[Any], _Site]:
    """Set what the site's function answers, or what it does."""
    _site.asked.clear()
    epica_mail(EVIDENCE=ASKED)

    def set_answer(given: Any) -> _Site:
        _site.answer = given if callable(given) else lambda email: given
        return _site

    return set_answer


@pytest.fixture
def lose(smtp, queue_mail, deliver) -> Callable[..., EmailLog]:
    """Send a mail whose reply is lost."""

    def send(*to: str, **options: Any) -> EmailLog:
        smtp.inject(drop("content", times=1))
        log: EmailLog = queue_mail(*to, **options)
        deliver()
        log.refresh_from_db()
        return log

    return send


def resolved() -> list[tuple[str, str]]:
    rows = EmailEvent.objects.filter(kind="resolved")
    return list(rows.values_list("reason", "reply"))


@pytest.mark.parametrize(
    ("policy", "said", "status"),
    [
        ("resend", "accepted", "sent"),
        ("resend", "refused", "retrying"),
        ("resend", "unknown", "retrying"),
        ("hold", "accepted", "sent"),
        ("hold", "refused", "retrying"),
        ("hold", "unknown", "unknown"),
        ("fail", "accepted", "sent"),
        ("fail", "refused", "retrying"),
        ("fail", "unknown", "failed"),
    ],
)
def test_evidence_goes_before_the_policy(
    lose, says, travel, deliver, smtp, policy: str, said: str, status: str
) -> None:
    site = says((said, f"activity: {said}"))
    log = lose(on_unknown=policy)
    assert (log.status, log.pending) == ("unknown", None)
    before = len(smtp.accepted)
    maintenance.dispatch()
    deliver()
    assert site.asked == [], "not before RETRY_DELAY"
    travel(seconds=301)
    assert evidence.resolve() == int(status != "unknown")
    log.refresh_from_db()
    assert (log.status, len(smtp.accepted)) == (status, before), "nothing is sent before"
    assert [it.pk for it in site.asked] == [log.pk]
    assert resolved() == ([] if status == "unknown" else [(said, f"activity: {said}")])
    deliver()
    assert len(smtp.accepted) == before + int(status == "retrying")


def test_the_site_is_asked_about_the_attempts_and_recipients_without_a_query(
    lose, says, travel
) -> None:
    found: list[Any] = []
    says(
        lambda email: (
            found.append(
                (
                    [it.transport for it in email.delivery_attempts.all()],
                    [it.address for it in email.recipients.all()],
                )
            )
            or "accepted"
        )
    )
    lose("one@example.com", "two@example.com")
    travel(seconds=301)
    assert evidence.resolve() == 1
    assert found == [(["smtp"], ["one@example.com", "two@example.com"])]


def test_resend_waits_for_evidence_as_long_as_its_setting_says(
    lose, says, travel, epica_mail
) -> None:
    epica_mail(EVIDENCE_WAIT=3600)
    site = says("unknown")
    log = lose()
    for minutes in (6, 20, 30):
        travel(minutes=minutes)
        assert evidence.resolve() == 0
    assert len(site.asked) == 3, "ever more rarely"
    travel(minutes=61)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    assert (log.status, resolved()) == ("retrying", [("unknown", "")])


def test_without_a_function_mail_waits_for_an_event(lose, travel, epica_mail) -> None:
    epica_mail(EVIDENCE_WAIT=3600)
    log, other = lose("one@example.com"), lose("two@example.com")
    travel(minutes=30)
    assert evidence.resolve() == 0
    events.record(
        EmailEvent(
            email_id=log.pk, key="k", kind="delivered", at=log.created_at, created_at=log.created_at
        )
    )
    travel(minutes=61)
    assert evidence.resolve() == 1
    statuses = dict(EmailLog.objects.values_list("pk", "status"))
    assert statuses == {log.pk: "sent", other.pk: "retrying"}


def test_what_waits_is_decided_after_the_settings_are_removed(lose, says, travel, settings) -> None:
    says("unknown")
    resend, hold = lose(), lose(on_unknown="hold")
    settings.EPICA_MAIL = {}
    travel(minutes=10)
    assert evidence.resolve() == 1
    assert EmailLog.objects.get(pk=resend.pk).status == "retrying"
    assert EmailLog.objects.get(pk=hold.pk).status == "unknown"


def test_a_mail_without_tries_left_fails_after_it_was_asked_about(
    lose, says, travel, epica_mail
) -> None:
    epica_mail(MAX_RETRIES=0)
    says("refused")
    log = lose()
    assert log.status == "unknown"
    travel(minutes=10)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("failed", "unknown")
    assert log.finished_at is not None


def test_what_was_accepted_for_others_before_does_not_fail(
    smtp, queue_mail, deliver, lose, says, travel, epica_mail
) -> None:
    epica_mail(MAX_RETRIES=1)
    says("unknown")
    smtp.inject(refuse("rcpt", 450, "4.2.1 busy", recipient="slow@example.com".__eq__, times=1))
    log = queue_mail("fast@example.com", "slow@example.com", on_unknown="fail")
    deliver()
    smtp.inject(drop("content", times=1))
    travel(minutes=6)
    deliver()
    travel(minutes=20)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    outcomes = EmailRecipient.objects.order_by("position").values_list("outcome", flat=True)
    assert (log.status, list(outcomes)) == ("sent", ["accepted", "refused"])


def test_what_a_person_decides_while_the_site_is_asked_refuses_no_recipient(
    smtp, queue_mail, deliver, says, travel, epica_mail, monkeypatch
) -> None:
    epica_mail(MAX_RETRIES=1)
    says("refused")
    smtp.inject(refuse("rcpt", 450, "4.2.1 busy", recipient="slow@example.com".__eq__, times=1))
    log = queue_mail("fast@example.com", "slow@example.com")
    deliver()
    smtp.inject(drop("content", times=1))
    travel(minutes=6)
    deliver()
    ask = evidence.ask

    def ask_and_decide(mail: EmailLog) -> Any:
        answer = ask(mail)
        assert outbox.decide([mail.pk], "resend") == 1
        return answer

    monkeypatch.setattr(evidence, "ask", ask_and_decide)
    travel(minutes=20)
    assert evidence.resolve() == 0
    deliver()
    log.refresh_from_db()
    assert (log.status, log.recipients.filter(outcome="refused").count()) == ("sent", 0)
    assert smtp.accepted[-1].recipients == ("slow@example.com",)


# Mail in doubt that expires before it is sent again.


@pytest.fixture
def lose_for_good(lose, smtp, deliver, travel) -> Callable[..., EmailLog]:
    """Send a mail whose reply is lost, and let it expire before the next attempt."""

    def send(*to: str, **options: Any) -> EmailLog:
        log = lose(*to, expires_after=timedelta(seconds=200), **options)
        assert log.status == "retrying"
        travel(seconds=400)
        before = len(smtp.accepted)
        deliver()
        log.refresh_from_db()
        assert (log.status, log.failure_kind) == ("unknown", "unknown"), (
            "nobody knows if it arrived"
        )
        assert (len(smtp.accepted), log.attempts, log.pending) == (before, 1, None)
        return log

    return send


def prove(log: EmailLog) -> None:
    at = log.created_at
    events.record(EmailEvent(email_id=log.pk, key="k", kind="delivered", at=at, created_at=at))
    log.refresh_from_db()


def test_mail_in_doubt_that_expires_stays_so_until_it_is_proved(lose_for_good, travel) -> None:
    log = lose_for_good()
    for _ in range(3):
        travel(seconds=120)
        assert evidence.resolve() == 0, "it may not be sent again, and may have arrived"
    prove(log)
    assert (log.status, log.failure_kind) == ("sent", "")


def test_mail_in_doubt_that_expires_fails_when_mail_is_given_up_and_may_be_proved_then(
    lose_for_good, travel, epica_mail
) -> None:
    epica_mail(GIVE_UP_AFTER=3600)
    log = lose_for_good()
    for _ in range(7):  # it is looked at ever more rarely, but not after its end
        travel(seconds=400)
        assert evidence.resolve() == 0
    travel(seconds=410)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("failed", "unknown")
    assert maintenance.retry_failed() == 0
    prove(log)
    assert log.status == "sent"


@pytest.mark.parametrize(("said", "status"), [("accepted", "sent"), ("refused", "expired")])
def test_the_site_decides_about_mail_in_doubt_that_has_expired(
    lose_for_good, travel, deliver, smtp, epica_mail, monkeypatch, said: str, status: str
) -> None:
    log = lose_for_good()
    epica_mail(EVIDENCE=ASKED)
    monkeypatch.setattr(_site, "answer", lambda email: "unknown")
    travel(seconds=120)
    assert evidence.resolve() == 0
    monkeypatch.setattr(_site, "answer", lambda email: said)
    travel(seconds=1200)
    before = len(smtp.accepted)
    assert evidence.resolve() == 1
    deliver()
    log.refresh_from_db()
    assert (log.status, len(smtp.accepted)) == (status, before)


@pytest.mark.parametrize("stop", ["suppressed", "vetoed"])
def test_mail_in_doubt_that_may_not_be_sent_again_fails_and_may_be_proved(
    lose, travel, deliver, smtp, stop: str
) -> None:
    log = lose("stop@example.com")
    if stop == "suppressed":
        suppression.add("stop@example.com", reason=Suppression.Reason.COMPLAINT)
    else:
        signals.before_send.connect(veto)
    before = len(smtp.accepted)
    travel(seconds=400)
    try:
        deliver()
    finally:
        signals.before_send.disconnect(veto)
    log.refresh_from_db()
    assert (log.status, log.failure_kind, len(smtp.accepted)) == ("failed", "unknown", before)
    assert log.reply == {"suppressed": "On the suppression list: complaint.", "vetoed": "No."}[stop]
    assert maintenance.retry_failed() == 0
    prove(log)
    assert (log.status, log.recipients.get().outcome) == ("sent", "")


def veto(**_: object) -> None:
    raise Veto("No.")


def test_whom_an_attempt_in_doubt_refused_for_now_is_still_known_when_the_mail_expires(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 450, "4.2.1 busy", recipient="slow@example.com".__eq__, times=1))
    smtp.inject(drop("content", times=1))
    log = queue_mail("fast@example.com", "slow@example.com", expires_after=timedelta(seconds=200))
    deliver()
    travel(seconds=400)
    deliver()
    log.refresh_from_db()
    codes = log.recipients.order_by("position").values_list("code", flat=True)
    assert (log.status, list(codes)) == ("unknown", [None, 450])


@pytest.mark.parametrize(
    "wrong",
    [
        "arrived",
        None,
        True,
        ("accepted", "two", "words"),
        lambda email: 1 / 0,
        lambda email: [][1],
    ],
)
def test_a_function_that_fails_proves_nothing(lose, says, travel, caplog, wrong: Any) -> None:
    says(wrong)
    log = lose("secret@example.com", on_unknown="hold")
    travel(minutes=10)
    assert evidence.resolve() == 0
    assert EmailLog.objects.get(pk=log.pk).status == "unknown"
    assert str(log.pk) in caplog.text
    assert "secret@example.com" not in caplog.text


def test_a_function_that_does_not_exist_proves_nothing(lose, epica_mail, travel, caplog) -> None:
    epica_mail(EVIDENCE="shop.nowhere.evidence")
    lose(on_unknown="hold")
    travel(minutes=10)
    assert evidence.resolve() == 0
    assert "ModuleNotFoundError" in caplog.text


def test_a_function_that_hangs_is_left_behind_and_few_may_hang(
    lose, says, travel, epica_mail
) -> None:
    epica_mail(EVIDENCE_TIMEOUT=0.05)
    free = threading.Event()
    site = says(lambda email: free.wait(30) and "accepted")
    log = lose(on_unknown="hold")
    try:
        began = time.monotonic()
        answers = [evidence.ask(log) for _ in range(7)]
        assert time.monotonic() - began < 2
        assert {it.value for it, _ in answers} == {"unknown"}
        assert len(site.asked) == 5
    finally:
        free.set()
    deadline = time.monotonic() + 10
    while (answer := evidence.ask(log))[0].value != "accepted" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert answer[0].value == "accepted"


def test_words_of_the_site_are_cleaned_and_bounded(lose, says, travel) -> None:
    says(("accepted", "x\x1b[31m" + "y" * 100_000))
    lose()
    travel(minutes=10)
    evidence.resolve()
    [(_, words)] = resolved()
    assert "\x1b" not in words
    assert len(words) < 5000


def test_a_decision_proves_nothing_about_a_later_attempt(lose, says, travel, smtp, deliver) -> None:
    says("refused")
    log = lose(on_unknown="hold")
    travel(minutes=10)
    evidence.resolve()
    smtp.inject(drop("content", times=1))
    deliver()
    log.refresh_from_db()
    assert (log.status, log.attempts) == ("unknown", 2)
    says("accepted")
    travel(minutes=10)
    assert evidence.resolve() == 1
    assert [reason for reason, _ in resolved()] == ["refused", "accepted"]


class _Postmark(BaseHTTPRequestHandler):
    """Postmark's search of sent messages, as far as the worked example needs it."""

    known: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        assert (url.path, self.headers["X-Postmark-Server-Token"]) == ("/messages/outbound", "key")
        asked = parse_qs(url.query)["metadata_epica_mail_id"][0]
        found = [{"Status": "Sent"}] if asked in self.known else []
        body = json.dumps({"TotalCount": len(found), "Messages": found}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.mark.parametrize(
    ("is_known", "status", "words"),
    [
        (True, "sent", [("accepted", "Postmark: Sent")]),
        (False, "retrying", [("refused", "Postmark does not know it.")]),
    ],
)
def test_the_worked_example_asks_the_provider(
    lose, says, travel, settings, is_known, status, words
) -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/evidence.md").read_text("utf-8")
    code = re.findall(r"```python\n(# shop/evidence.py\n.*?)```", page, re.DOTALL)[0]
    settings.ANYMAIL = {"POSTMARK_SERVER_TOKEN": "key"}
    settings.EPICA_MAIL = {**settings.EPICA_MAIL, "EVIDENCE_WAIT": 3600}
    log = lose()
    log.delivery_attempts.update(
        transport="postmark", created_at=timezone.now() - timedelta(minutes=16)
    )
    _Postmark.known = {str(log.pk)} if is_known else set()
    with HTTPService(_Postmark) as server:
        example: dict[str, Any] = {}
        exec(code, example)  # noqa: S102 - the page's own code
        example["API"] = f"http://127.0.0.1:{server.port}"
        says(example["postmark"])
        travel(minutes=6)
        assert evidence.resolve() == 1
    log.refresh_from_db()
    assert (log.status, resolved()) == (status, words)


@pytest.mark.parametrize(
    ("said", "status"), [("accepted", "sent"), ("refused", "failed"), ("unknown", "failed")]
)
def test_a_mail_that_ended_its_worker_twice_fails_if_its_policy_says_so(
    smtp, queue_mail, says, travel, said: str, status: str
) -> None:
    says("refused")
    log = queue_mail(on_unknown="fail")
    assert claim.claim("emails") is not None
    travel(minutes=5)
    assert maintenance.rescue() == 1
    assert evidence.resolve() == 1
    assert claim.claim("emails") is not None
    travel(minutes=5)
    assert maintenance.rescue() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("unknown", "poison")
    says(said)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    assert log.status == status


def test_content_ends_with_the_decision(smtp, deliver, says, travel) -> None:
    says("accepted")
    smtp.inject(drop("content", times=1))
    message = EmailMessage("Subject", "Body", None, ["to@example.com"])
    log = outbox.enqueue(message, transport="smtp", keep_content="until_sent")
    deliver()
    travel(minutes=10)
    assert evidence.resolve() == 1
    log.refresh_from_db()
    assert (log.status, log.envelope) == ("sent", "")


def test_an_attempt_of_the_future_does_not_put_a_decision_off(lose, epica_mail, travel) -> None:
    epica_mail(EVIDENCE_WAIT=60)
    hurt = lose(on_unknown="fail")
    far = datetime(9998, 12, 31, tzinfo=dt_timezone.utc)
    DeliveryAttempt.objects.update(created_at=far)
    travel(hours=1)
    evidence.resolve()
    hurt.refresh_from_db()
    assert hurt.status == "failed"
