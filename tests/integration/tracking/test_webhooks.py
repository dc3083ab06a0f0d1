"""Provider webhooks: recorded once, linked to their mail, with the same result in any order."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import datetime
from datetime import timezone as zones
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import include, path
from django.utils import timezone

from django_epica_mail import checks, lifecycle, maintenance, outbox, retry, signals, suppression
from django_epica_mail.delivery import claim, outcome
from django_epica_mail.delivery import settle as settling
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.models import EmailEvent, EmailLog, Suppression
from django_epica_mail.retry import Failure, Kind, Result
from django_epica_mail.tracking import events, webhooks

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support for SendGrid"),
]
SECRET = "user:secret"
utc = zones.utc
AT = 1_790_000_000


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "anymail"]
    settings.ANYMAIL = {"WEBHOOK_SECRET": SECRET}
    settings.ROOT_URLCONF = (path("anymail/", include("anymail.urls")),)


def post(page: str, body: Any, **headers: str) -> int:
    basic = base64.b64encode(SECRET.encode()).decode()
    response = Client(headers={"Authorization": f"Basic {basic}", **headers}).post(
        f"/anymail/{page}/tracking/", json.dumps(body), content_type="application/json"
    )
    return response.status_code


def test_events_with_an_id_that_no_mail_has_are_not_read_by_each_that_follows() -> None:
    now = timezone.now()

    def event(number: int) -> EmailEvent:
        values = {"kind": "delivered", "at": now, "created_at": now, "source": "SendGrid"}
        return EmailEvent(key=f"{number}", provider_id="made up", reply="x" * 500, **values)

    EmailEvent.objects.bulk_create(map(event, range(3000)))
    with CaptureQueriesContext(connection) as queries:
        assert events.record(event(3000))
    asked = [it["sql"] for it in queries if "epica_mail_emailevent" in it["sql"]]
    assert not [it for it in asked if '"reply"' in it and it.startswith("SELECT")], asked


class SendGrid:
    """Posts events as SendGrid's webhook does."""

    name = "SendGrid"

    def __init__(self, log: EmailLog, provider_id: str, *, with_id: bool = True) -> None:
        self.log, self.provider_id, self.with_id = log, provider_id, with_id

    def post(self, event: str, to: str, **more: Any) -> None:
        reported = {
            "email": to,
            "timestamp": AT,
            "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
            "sg_event_id": f"{event}-{to}-{more.get('url', '')}",
            "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
            "event": event,
            "anymail_id": self.provider_id,
            **more,
        }
        if self.with_id:
            reported["epica_mail_id"] = str(self.log.pk)
        assert post("sendgrid", [reported]) == 200

    def delivered(self, to: str) -> None:
        self.post("delivered", to, response="250 OK id=1")

    def deferred(self, to: str) -> None:
        self.post("deferred", to, response="400 try again later", attempt="5")

    def bounced(self, to: str) -> None:
        self.post("bounce", to, type="bounce", status="5.0.0", reason="550 5.1.1 unknown user")

    def blocked(self, to: str) -> None:
        self.post("bounce", to, type="blocked", status="5.7.1", reason="550 5.7.1 spam")

    def complained(self, to: str) -> None:
        self.post("spamreport", to)

    def opened(self, to: str) -> None:
        self.post("open", to, useragent="Mozilla/5.0 (X11; Linux x86_64) Gecko", ip="255.255.2.1")

    def clicked(self, to: str) -> None:
        self.post("click", to, useragent="Mozilla/5.0 (X11) Gecko", url="https://example.com/")

    def unsubscribed(self, to: str) -> None:
        self.post("unsubscribe", to)


class Amazon:
    """Posts events as Amazon SES publishes them through SNS."""

    name = "Amazon SES"

    def __init__(self, log: EmailLog, provider_id: str, *, with_id: bool = True) -> None:
        self.log, self.provider_id, self.with_id = log, provider_id, with_id

    def post(self, event: str, to: str, about: dict[str, Any]) -> None:
        everyone = list(self.log.recipients.values_list("address", flat=True))
        headers = [
            {"name": "From", "value": "shop@example.com"},
            {"name": "X-Metadata", "value": json.dumps({"epica_mail_id": str(self.log.pk)})},
        ]
        message = {
            "eventType": event,
            "mail": {
                "timestamp": "2026-10-01T12:00:00.000Z",
                "source": "shop@example.com",
                "messageId": self.provider_id,
                "destination": everyone,
                "headersTruncated": False,
                "headers": headers if self.with_id else [],
            },
            event.lower(): about,
        }
        notice = f"{event}-{to}"
        envelope = {
            "Type": "Notification",
            "MessageId": notice,
            "TopicArn": "arn:aws:sns:eu-west-1:123456789012:events",
            "Message": json.dumps(message),
            "Timestamp": "2026-10-01T12:00:01.000Z",
            "SignatureVersion": "1",
        }
        types = {"x-amz-sns-message-type": "Notification", "x-amz-sns-message-id": notice}
        assert post("amazon_ses", envelope, **types) == 200

    def delivered(self, to: str) -> None:
        self.post("Delivery", to, {"recipients": [to], "smtpResponse": "250 OK"})

    def deferred(self, to: str) -> None:
        self.post("DeliveryDelay", to, {"delayedRecipients": [{"emailAddress": to}]})

    def _bounced(self, to: str, kind: str, code: str) -> None:
        bounced = [{"emailAddress": to, "action": "failed", "diagnosticCode": code}]
        about = {"bounceType": kind, "bounceSubType": "General", "bouncedRecipients": bounced}
        self.post("Bounce", to, about)

    def bounced(self, to: str) -> None:
        self._bounced(to, "Permanent", "smtp; 550 5.1.1 user unknown")

    def blocked(self, to: str) -> None:
        self._bounced(to, "Transient", "smtp; 550 5.7.1 spam")

    def complained(self, to: str) -> None:
        complained = [{"emailAddress": to}]
        self.post(
            "Complaint", to, {"complainedRecipients": complained, "complaintFeedbackType": "abuse"}
        )

    def opened(self, to: str) -> None:
        self.post("Open", to, {"userAgent": "Mozilla/5.0 (X11; Linux x86_64) Gecko"})

    def clicked(self, to: str) -> None:
        self.post("Click", to, {"userAgent": "Mozilla/5.0 (X11)", "link": "https://example.com/"})


@pytest.fixture(params=[SendGrid, Amazon], ids=lambda cls: cls.name)
def provider(request: Any) -> type[Any]:
    return request.param  # type: ignore[no-any-return]


def queue(*to: str, **options: Any) -> EmailLog:
    message = EmailMessage("S", "B", None, list(to) or ["to@example.com"])
    return outbox.enqueue(message, **options)


def settle(batch: Batch, result: Result) -> None:
    """Settle a claimed batch as the worker does."""
    settler = settling.Settler(batch.using)
    for mail in batch.mails:
        tried = list(range(mail.row.recipients.count()))
        policy = outcome.policy_of(mail.row, too_old=False)
        decision = retry.conclude(result, policy, tried, False)
        settler.add(outcome.Outcome(mail.row, result, decision))
    settler.flush()


LOST = Result(failure=Failure(kind=Kind.UNKNOWN, reply="ReadTimeout"), seconds=30)
ACCEPTED = Result(seconds=0.1, provider_id="provider-1")


def stored() -> Any:
    """Return the mail, its events and the suppression list, without the ids of rows."""
    log = EmailLog.objects.get()
    what = EmailEvent.objects.order_by("key").values_list(
        "email", "key", "kind", "at", "source", "address", "reason", "reply", "url", "is_machine"
    )
    listed = Suppression.objects.order_by("address", "reason")
    return (
        (log.status, log.failure_kind, log.reply, log.finished_at is not None, log.pending),
        [(email_id == log.pk, *rest) for email_id, *rest in what],
        list(listed.values_list("address", "scope", "reason")),
    )


def play(provider: Any, result: Result, steps: tuple[str, ...], **options: Any) -> Any:
    """Settle a mail and post its events in the given order; return what is stored then."""
    with_id = options.pop("with_id", True)
    EmailEvent.objects.all().delete()
    Suppression.objects.all().delete()
    EmailLog.objects.all().delete()
    log = queue("a@example.com", "b@example.com", category="news", **options)
    batch = claim.claim("emails")
    assert batch is not None
    webhook = provider(log, "provider-1", with_id=with_id)
    for step in steps:
        if step == "settle":
            settle(batch, result)
        else:
            getattr(webhook, step)("b@example.com" if step == "bounced" else "a@example.com")
    return stored()


@pytest.mark.parametrize("on_unknown", ["hold", "resend", "fail"])
def test_events_decide_a_mail_of_unknown_outcome_in_any_order(
    provider: Any, on_unknown: str
) -> None:
    steps = ["settle", "delivered", "bounced", "delivered"]
    if on_unknown == "hold":
        steps.append("complained")
    ends = [
        play(provider, LOST, order, on_unknown=on_unknown)
        for order in sorted(set(itertools.permutations(steps)))
    ]
    assert len(ends) == (60 if on_unknown == "hold" else 12)
    assert all(end == ends[0] for end in ends)
    row, recorded, listed = ends[0]
    assert row == ("sent", "", "", True, None)
    complaints = steps.count("complained")
    assert sorted(it[2] for it in recorded) == [
        "bounced",
        *["complained"] * complaints,
        "delivered",
    ]
    complained = [("a@example.com", "", "complaint")] * complaints
    assert listed == [*complained, ("b@example.com", "", "bounce")]


@pytest.mark.parametrize("with_id", [True, False], ids=["our id", "the provider's id"])
def test_events_of_an_accepted_mail_are_linked_in_any_order(provider: Any, with_id: bool) -> None:
    steps = ("settle", "opened", "clicked", "clicked")
    ends = [
        play(provider, ACCEPTED, order, with_id=with_id)
        for order in sorted(set(itertools.permutations(steps)))
    ]
    assert all(end == ends[0] for end in ends)
    row, recorded, listed = ends[0]
    assert row == ("sent", "", "", True, None)
    events_each = 2 if provider is Amazon else 1  # SES does not name the recipient
    assert sorted(it[2] for it in recorded) == sorted(["opened", "clicked"] * events_each)
    assert {it[0] for it in recorded} == {True}
    assert listed == []


def test_an_early_unsubscribe_is_for_the_mails_category_too() -> None:
    ends = [
        play(SendGrid, ACCEPTED, order, with_id=False)
        for order in itertools.permutations(("settle", "unsubscribed", "unsubscribed"))
    ]
    assert all(end == ends[0] for end in ends)
    assert ends[0][2] == [("a@example.com", "news", "unsubscribe")]


def test_a_transient_bounce_suppresses_nobody(provider: Any) -> None:
    row, recorded, listed = play(provider, ACCEPTED, ("settle", "blocked"))
    assert [(it[2], it[6]) for it in recorded] == [("bounced", "transient")]
    assert (row[0], listed) == ("sent", [])


def test_a_permanent_bounce_suppresses_even_if_the_mail_is_deleted(
    provider: Any,
) -> None:
    log = queue("a@example.com")
    webhook = provider(log, "provider-1")
    EmailLog.objects.all().delete()
    webhook.bounced("a@example.com")
    assert suppression.is_suppressed("a@example.com")
    event = EmailEvent.objects.get()
    assert (event.email_id, event.source) == (None, provider.name)


def test_an_event_of_a_settled_recipient_does_not_decide_a_mail() -> None:
    log = queue("a@example.com", "b@example.com", on_unknown="hold")
    log.recipients.filter(address="a@example.com").update(outcome="accepted")
    EmailLog.objects.update(attempts=1)
    batch = claim.claim("emails")
    assert batch is not None
    settler = settling.Settler(batch.using)
    decision = retry.conclude(
        LOST, outcome.policy_of(batch.mails[0].row, too_old=False), [1], accepted_before=True
    )
    settler.add(outcome.Outcome(batch.mails[0].row, LOST, decision))
    settler.flush()
    SendGrid(log, "x").delivered("a@example.com")
    assert EmailLog.objects.get().status == "unknown"
    SendGrid(log, "x").delivered("b@example.com")
    assert EmailLog.objects.get().status == "sent"


def test_no_event_changes_a_permanently_refused_mail(provider: Any) -> None:
    refused = Result(failure=Failure(kind=Kind.PERMANENT, code=400), seconds=0.1)
    row, *_ = play(provider, refused, ("settle", "delivered"))
    assert row[:2] == ("failed", "permanent")


def test_a_resent_mail_refused_now_is_sent_if_an_event_proves_it(travel) -> None:
    log = queue("a@example.com", on_unknown="resend")
    batch = claim.claim("emails")
    assert batch is not None
    settle(batch, LOST)
    travel(minutes=6)
    second = claim.claim("emails")
    assert second is not None
    SendGrid(log, "x").delivered("a@example.com")
    assert EmailLog.objects.get().status == "sending"
    settle(second, Result(failure=Failure(kind=Kind.TRANSIENT, code=500), seconds=0.1))
    assert EmailLog.objects.get().status == "sent"


@pytest.mark.parametrize(("keep", "url"), [("always", "https://example.com/"), ("until_sent", "")])
def test_a_clicked_link_is_kept_only_if_content_is(provider: Any, keep: str, url: str) -> None:
    _, recorded, _ = play(provider, ACCEPTED, ("settle", "clicked"), keep_content=keep)
    assert {it[8] for it in recorded} == {url}


def test_an_event_committed_after_the_settle_decides_the_mail(
    monkeypatch, django_capture_on_commit_callbacks
) -> None:
    log = queue("a@example.com", on_unknown="hold")
    batch = claim.claim("emails")
    assert batch is not None
    with django_capture_on_commit_callbacks(execute=True):  # as with ATOMIC_REQUESTS
        SendGrid(log, "x").delivered("a@example.com")
        with monkeypatch.context() as unseen:
            # The worker sees no event yet.
            unseen.setattr(events, "apply_early_events", lambda *_: None)
            settle(batch, LOST)
        assert EmailLog.objects.get().status == "unknown"
    assert EmailLog.objects.get().status == "sent"


def test_content_kept_until_sent_is_deleted_by_a_deciding_event(provider: Any) -> None:
    play(provider, LOST, ("settle", "delivered"), on_unknown="hold", keep_content="until_sent")
    assert EmailLog.objects.get().envelope == ""


def test_each_event_and_the_move_send_a_signal_once(
    django_capture_on_commit_callbacks: Any,
) -> None:
    received: list[tuple[str, Any]] = []

    def on_event(*, event: EmailEvent, **_: Any) -> None:
        received.append((event.kind, event.email_id))

    def on_move(*, email_id: Any, move: lifecycle.Move, **_: Any) -> None:
        received.append((move.name, email_id))

    signals.email_event.connect(on_event)
    signals.email_moved.connect(on_move)
    try:
        log = queue(on_unknown="hold")
        batch = claim.claim("emails")
        assert batch is not None
        settle(batch, LOST)
        with django_capture_on_commit_callbacks(execute=True):
            SendGrid(log, "x").delivered("to@example.com")
            SendGrid(log, "x").delivered("to@example.com")
    finally:
        signals.email_event.disconnect(on_event)
        signals.email_moved.disconnect(on_move)
    assert received == [("lose", log.pk), ("succeed", log.pk), ("delivered", log.pk)]


def test_an_event_finds_its_mail_by_the_message_id() -> None:
    log = queue()
    SendGrid(log, log.message_id.strip("<>"), with_id=False).delivered("to@example.com")
    assert EmailEvent.objects.get().email_id == log.pk


def test_an_invalid_id_is_ignored() -> None:
    log = queue()
    webhook = SendGrid(log, "x", with_id=False)
    for forged in ("'", "00000000-0000-0000-0000-000000000000", 7, None, ["x"]):
        webhook.post("open", f"{forged!s:.5}@example.com", epica_mail_id=forged)
    assert set(EmailEvent.objects.values_list("email", flat=True)) == {None}


def test_without_the_secret_nothing_is_recorded() -> None:
    body = json.dumps([{"event": "bounce", "type": "bounce", "email": "a@example.com"}])
    response = Client().post("/anymail/sendgrid/tracking/", body, content_type="application/json")
    assert response.status_code == 400
    assert not EmailEvent.objects.exists()
    assert not Suppression.objects.exists()


def test_the_clean_up_deletes_events_of_deleted_mail_and_old_ones(
    smtp, queue_mail, deliver, travel
) -> None:
    log = queue_mail()
    deliver()
    SendGrid(log, "x").delivered("to@example.com")
    SendGrid(log, "unknown", with_id=False).opened("to@example.com")
    assert EmailEvent.objects.count() == 2
    assert maintenance.cleanup() == 0
    travel(days=31)
    assert maintenance.cleanup() == 1
    assert not EmailEvent.objects.exists()


def test_mail_by_smtp_costs_no_query_for_events(
    smtp, queue_mail, deliver, django_assert_num_queries, monkeypatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("looked for events")

    monkeypatch.setattr(events, "apply_early_events", fail)
    queue_mail()
    assert deliver() == 1


@pytest.mark.parametrize(
    ("raw", "reply", "is_for_good"),
    [
        ({"bounce": {"bounceType": "Permanent"}}, "", True),
        ({"bounce": {"bounceType": "Undetermined"}}, "550 5.1.1", False),
        ({"Type": "HardBounce"}, "", True),
        ({"Type": "SoftBounce"}, "", False),
        ({"event": "hard_bounce"}, "", True),
        ({"event-data": {"event": "failed", "severity": "permanent"}}, "", True),
        ({"event": "bounce", "hard_bounce": True}, "", True),
        ({"event": "bounce", "hard_bounce": False}, "", False),
        ({"msys": {"message_event": {"type": "bounce", "bounce_class": "10"}}}, "", True),
        ({"msys": {"message_event": {"type": "bounce", "bounce_class": "22"}}}, "", False),
        ({"type": "activity.hard_bounced"}, "", True),
        ({"type": "activity.soft_bounced"}, "", False),
        ({}, "550 5.1.1 no such user", True),
        ({}, "550 5.2.1 mailbox disabled", True),
        ({}, "552 5.2.2 mailbox full", False),
        ({}, "550 5.7.1 spam", False),
        ({}, "", False),
    ],
)
def test_provider_or_reply_code_make_a_bounce_permanent(raw, reply, is_for_good) -> None:
    assert webhooks.is_for_good(reply, raw) is is_for_good


def test_every_kind_of_tracking_event_of_anymail_is_known() -> None:
    from anymail.signals import EventType

    known = {value for name, value in vars(EventType).items() if name.isupper()}
    assert known - set(webhooks._KINDS) == {"inbound", "inbound_failed", "unknown"}


REPORTED = [
    {"event": "bounce", "type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 unknown user"},
    {"event": "spamreport"},
    {"event": "unsubscribe"},
    {"event": "dropped", "reason": "Bounced Address"},
]


@pytest.mark.parametrize("reported", REPORTED, ids=lambda it: it["event"])
@pytest.mark.filterwarnings("ignore:Your Anymail webhooks are insecure")
def test_whoever_posts_without_a_secret_suppresses_nobody(
    smtp, queue_mail, settings, epica_mail, reported
) -> None:
    settings.ANYMAIL = {}
    log = queue_mail("victim@example.com")
    event = {"email": "victim@example.com", "timestamp": AT, "sg_event_id": "1", **reported}

    def attack(number: int) -> None:
        forged = {**event, "sg_event_id": str(number), "epica_mail_id": str(log.pk)}
        assert post("sendgrid", [forged]) == 200

    attack(1)
    assert not suppression.is_suppressed("victim@example.com")
    assert EmailEvent.objects.get().reason == "unauthenticated"
    epica_mail(TRUST_UNAUTHENTICATED_WEBHOOKS=True)
    attack(2)
    assert suppression.is_suppressed("victim@example.com"), "the attack is one"


@pytest.mark.filterwarnings("ignore:Your Anymail webhooks are insecure")
def test_an_orphan_without_a_secret_suppresses_nobody_once_its_mail_is_known(
    smtp, queue_mail, settings
) -> None:
    settings.ANYMAIL = {}
    log = queue_mail("victim@example.com")
    forged = {"event": "spamreport", "email": "victim@example.com", "timestamp": AT}
    post("sendgrid", [{**forged, "anymail_id": "guessed", "sg_event_id": "1"}])
    log.delivery_attempts.create(number=1, created_at=log.created_at, provider_id="guessed")
    events.apply_early_events([log.pk], ["guessed"], "default")
    assert not suppression.is_suppressed("victim@example.com")


def found_checks(run: Any) -> dict[str, str]:
    return {it.id: it.msg for it in run() if "webhooks" in it.msg}


def test_checks_find_webhooks_without_a_secret(settings, smtp) -> None:
    assert found_checks(checks.check_configuration) == {}
    settings.ANYMAIL = {"MAILGUN_WEBHOOK_SIGNING_KEY": "k", "POSTMARK_WEBHOOK_SECRET": "x"}
    (warning,) = {it.id for it in checks.check_configuration() if it.is_serious()} or {"none"}
    assert warning == "none"
    assert set(found_checks(checks.check_configuration)) == {"epica_mail.W031"}
    routed = [it.msg for it in checks.check_deployment() if it.id == "epica_mail.E031"]
    assert any("Postmark" in it for it in routed)
    assert not any("Mailgun" in it for it in routed), "its signature is examined"
    settings.ROOT_URLCONF = ()
    assert found_checks(checks.check_deployment) == {}


@pytest.mark.parametrize(("keep", "url"), [("always", "https://example.com/"), ("until_sent", "")])
def test_a_link_clicked_before_the_mail_is_known_is_kept_only_if_content_is(
    keep: str, url: str
) -> None:
    log = queue("a@example.com", keep_content=keep)
    SendGrid(log, "early", with_id=False).clicked("a@example.com")
    assert EmailEvent.objects.get().email_id is None
    batch = claim.claim("emails")
    assert batch is not None
    settle(batch, Result(provider_id="early", seconds=0.1))
    event = EmailEvent.objects.get()
    assert (event.email_id, event.url) == (log.pk, url)


def test_the_link_of_a_mail_that_stays_unknown_is_forgotten(travel) -> None:
    log = queue("a@example.com")
    SendGrid(log, "never", with_id=False).clicked("a@example.com")
    log.delete()
    travel(hours=2)
    maintenance.cleanup()
    assert EmailEvent.objects.get().url == ""


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", "\udfff\0", "x" * 5000, 7, ["\0"]])
@pytest.mark.parametrize("event", ["delivered", "bounce", "dropped", "open", "click", "spamreport"])
def test_no_field_of_an_event_is_an_error_of_the_server(queue_mail, event, bad) -> None:
    """An error would make the provider report the event again, and hold back those after it."""
    log = queue_mail()
    whole = {
        "email": "to@example.com", "event": event, "sg_event_id": "an id", "reason": "550 5.1.1 x",
        "anymail_id": "provider's id", "response": "250 OK", "useragent": "Mozilla", "url": "u",
        "type": "bounce", "status": "5.1.1", "epica_mail_id": str(log.pk), "timestamp": AT,
        "smtp-id": "<a>", "sg_message_id": "b", "category": ["c"], "ip": "127.0.0.1",
    }  # fmt: skip
    given = {
        "event",
        "timestamp",
        "category",
        *([] if isinstance(bad, str) else ["type", "reason"]),
    }
    for field in whole.keys() - given:  # anymail itself fails on these if they are no text
        assert post("sendgrid", [{**whole, field: bad, "sg_event_id": f"{field} {bad}"}]) == 200
    stored = EmailEvent.objects.values_list("address", "provider_id", "reason", "reply", "url")
    assert len(stored) == len(whole.keys() - given)
    assert "\0" not in "".join(itertools.chain(*stored))
    text = json.dumps([it.address for it in EmailEvent.objects.all()], ensure_ascii=False)
    assert text.encode()


def test_what_a_row_says_of_keeping_does_not_uncover_a_followed_link(epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    log = queue("a@example.com", keep_content="never")
    EmailLog.objects.update(keep_content="always")
    SendGrid(log, "x").clicked("a@example.com")
    assert EmailEvent.objects.get().url == ""


def test_what_a_row_says_of_keeping_does_not_uncover_an_early_link(epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    log = queue("a@example.com", keep_content="never")
    SendGrid(log, "early", with_id=False).clicked("a@example.com")
    assert EmailEvent.objects.get().url
    EmailLog.objects.update(keep_content="always")
    log.delivery_attempts.create(
        number=1, transport="smtp", worker="w", created_at=log.created_at, provider_id="early"
    )
    events.apply_early_events([], ["early"], "default")
    event = EmailEvent.objects.get()
    assert (event.email_id, event.url) == (log.pk, "")


def test_the_link_of_a_mail_whose_content_was_forgotten_is_not_kept() -> None:
    log = queue("a@example.com")
    EmailLog.objects.all().forget_content([log.pk])
    SendGrid(log, "x").clicked("a@example.com")
    assert EmailEvent.objects.get().url == ""


JUNK: list[Any] = [
    "\0", "x\0y", "\ud800", "a" * 100_000, 0, -1, 2**70, float("nan"), [], ["x"], {}, {"a": 1},
    b"\xff", True, (1, 2), object(), "@", "a\r\nb@c.d", datetime.max, datetime(2020, 1, 1),
    datetime.min.replace(tzinfo=utc), datetime.max.replace(tzinfo=utc),
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["event_type", "recipient", "message_id", "user_agent", "esp_event", "metadata",
     "reject_reason", "mta_response", "description", "click_url", "event_id", "timestamp"],
)  # fmt: skip
def test_whatever_a_report_holds_it_is_recorded(name) -> None:
    log = queue("a@example.com")
    for number, value in enumerate(JUNK):
        if name == "timestamp" and not isinstance(value, datetime):
            continue
        told = {
            "event_type": "rejected", "recipient": "a@example.com", "message_id": "m",
            "user_agent": "u", "esp_event": {}, "metadata": {"epica_mail_id": str(log.pk)},
            "reject_reason": "bounced", "mta_response": "", "description": "d", "tags": [],
            "click_url": "https://x.example/", "event_id": str(number), "timestamp": None,
        }  # fmt: skip
        webhooks.receive(object(), event=SimpleNamespace(**{**told, name: value}), esp_name="X")
    assert EmailEvent.objects.exists() or name == "event_type"
    for event in EmailEvent.objects.all():
        assert 2000 <= event.at.year < 9000
        timezone.localtime(event.at, ZoneInfo("Pacific/Kiritimati"))
