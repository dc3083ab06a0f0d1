"""What is known of some recipients of a mail, when and from whom, decides about these alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.test import TestCase
from django.utils import timezone

from devservers.smtp_faults import Drop, Reply, Rule, drop, refuse
from django_epica_mail import clock, maintenance, outbox, signals
from django_epica_mail.delivery import claim
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.delivery.outcome import Attempt, Envelope, judge
from django_epica_mail.delivery.settle import Settler
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.retry import Failure, Kind, Result
from django_epica_mail.tracking import events

A, B, C = "a@example.com", "b@example.com", "c@example.com"


def report_delivery(log: EmailLog, address: str) -> None:
    event = EmailEvent(
        email_id=log.pk,
        key=address,
        kind=EmailEvent.Kind.DELIVERED,
        at=timezone.now(),
        created_at=clock.now(),
        source="provider",
        address=address,
    )
    assert events.record(event)


def lose_the_worker(travel: Any) -> Batch:
    """Claim the mail, and take it back after the lease has ended."""
    batch = claim.claim("emails")
    assert batch is not None
    travel(minutes=5)
    assert maintenance.rescue() == 1
    return batch


def settle(batch: Batch, result: Result, recipients: int) -> None:
    """Settle the one mail of a batch with the result of an attempt."""
    (mail,) = batch.mails
    tried = list(range(recipients))
    settler = Settler(batch.using)
    settler.add(judge(Attempt(mail, None, Envelope(tried, tried), False, {}), result))  # type: ignore[arg-type]
    settler.flush()


def outcomes(log: EmailLog) -> tuple[str, list[str]]:
    """Return the status of a mail and the outcomes of its recipients."""
    log.refresh_from_db()
    recipients = log.recipients.order_by("position").values_list("outcome", flat=True)
    return log.status, list(recipients)


@contextmanager
def receiving(moved: list[str]) -> Iterator[None]:
    """Note the targets of moves in ``moved``, as they are announced after the commit."""

    def note(move: Any, **_: object) -> None:
        moved.append(move.target)

    signals.email_moved.connect(note)
    try:
        with TestCase.captureOnCommitCallbacks(execute=True):
            yield
    finally:
        signals.email_moved.disconnect(note)


def sent_to(smtp: Any) -> list[tuple[str, ...]]:
    return [message.recipients for message in smtp.accepted]


def test_proof_for_one_recipient_does_not_lose_whom_a_dead_worker_knew_refused(
    smtp, queue_mail, deliver, travel
) -> None:
    """The server refused b for now; the worker that knew it died; a got the mail."""
    log = queue_mail(A, B, on_unknown="resend")
    lose_the_worker(travel)
    report_delivery(log, A)
    assert outcomes(log) == ("retrying", ["accepted", ""])
    deliver()
    assert sent_to(smtp) == [(B,)]
    assert outcomes(log) == ("sent", ["accepted", ""])


def test_held_mail_of_a_dead_worker_is_sent_once_each_recipient_is_known_to_have_it(
    smtp, queue_mail, deliver, travel
) -> None:
    log = queue_mail(A, B, on_unknown="hold")
    lose_the_worker(travel)
    report_delivery(log, A)
    assert outcomes(log) == ("unknown", ["accepted", ""])
    report_delivery(log, B)
    assert outcomes(log)[0] == "sent"
    deliver()
    assert sent_to(smtp) == []


def test_a_report_of_nobody_in_particular_counts_for_all(smtp, queue_mail, travel) -> None:
    log = queue_mail(A, B, on_unknown="hold")
    lose_the_worker(travel)
    report_delivery(log, "")
    assert outcomes(log)[0] == "sent"


def test_failed_mail_of_a_dead_worker_is_confirmed_as_a_whole(smtp, queue_mail, travel) -> None:
    """Nobody would try the others again, and they most likely have it too."""
    log = queue_mail(A, B, on_unknown="fail")
    lose_the_worker(travel)
    report_delivery(log, A)
    assert outcomes(log)[0] == "sent"


def test_failed_mail_that_may_go_on_is_queued_for_whom_a_dead_worker_knew_refused(
    smtp, queue_mail, deliver, travel, epica_mail
) -> None:
    epica_mail(MAX_RETRIES=1)
    log = queue_mail(A, B, on_unknown="resend")
    lose_the_worker(travel)
    smtp.inject(refuse("rcpt", 450, times=2))
    deliver()
    assert outcomes(log) == ("failed", ["", ""])
    report_delivery(log, A)
    assert outcomes(log) == ("queued", ["accepted", ""])
    deliver()
    assert sent_to(smtp) == [(B,)]


def test_a_refusal_is_remembered_when_the_next_attempt_fails_for_all(
    smtp, queue_mail, deliver, travel
) -> None:
    """a taken, b refused for now, the content's reply lost; then all are refused; a got it."""
    log = queue_mail(A, B, on_unknown="resend")
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it.startswith("b")))
    smtp.inject(drop("content", accepted=True, times=1))
    deliver()
    travel(minutes=6)
    smtp.inject(refuse("mail", 451, times=1))
    deliver()
    assert outcomes(log) == ("retrying", ["", ""])
    report_delivery(log, A)
    assert outcomes(log) == ("retrying", ["accepted", ""])
    travel(hours=1)
    deliver()
    assert sent_to(smtp) == [(A,), (B,)]
    assert outcomes(log)[0] == "sent"
    assert not log.recipients.exclude(code=None).exists(), "sent, so not refused any more"


def test_proof_for_whom_an_earlier_attempt_refused_is_for_that_recipient(
    smtp, queue_mail, deliver, travel
) -> None:
    """b refused for now and the reply lost; the next worker dies; b got the mail, not a."""
    log = queue_mail(A, B, on_unknown="resend")
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it.startswith("b")))
    smtp.inject(drop("content", accepted=False, times=1))
    deliver()
    travel(minutes=6)
    lose_the_worker(travel)
    report_delivery(log, B)
    assert outcomes(log) == ("retrying", ["", "accepted"])
    travel(hours=1)
    deliver()
    assert sent_to(smtp) == [(A,)]


def test_a_refusal_before_an_attempt_in_doubt_is_no_reason_to_send_again(
    smtp, queue_mail, deliver, travel
) -> None:
    """b refused for now and the reply lost; a person queues the mail again; the worker dies."""
    log = queue_mail(A, B, on_unknown="fail")
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it.startswith("b")))
    smtp.inject(drop("content", accepted=False, times=1))
    deliver()
    assert outbox.requeue([log.pk]) == 1
    lose_the_worker(travel)
    report_delivery(log, A)
    assert outcomes(log)[0] == "sent"
    deliver()
    assert sent_to(smtp) == []


def test_of_several_attempts_in_doubt_a_proof_is_for_whom_it_names(
    smtp, queue_mail, deliver
) -> None:
    """Only the second attempt may have been accepted for b, and a may have it from the first."""
    log = queue_mail(A, B, on_unknown="hold")
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it.startswith("b")))
    smtp.inject(drop("content", accepted=True, times=1))
    smtp.inject(drop("content", accepted=False, times=1))
    deliver()
    assert outbox.requeue([log.pk]) == 1
    deliver()
    report_delivery(log, A)
    assert outcomes(log) == ("unknown", ["accepted", ""])


@pytest.mark.parametrize("on_unknown", ["hold", "resend"])
def test_a_late_answer_is_not_written_to_recipients_who_moved_up(
    smtp, queue_mail, deliver, travel, on_unknown
) -> None:
    """a is erased while the mail is unknown; the worker's answer counts the recipients with a."""
    log = queue_mail(A, B, C, on_unknown=on_unknown)
    batch = lose_the_worker(travel)
    assert erase(Person(A))["recipients"] == 1
    no = Failure(kind=Kind.PERMANENT, code=550)
    later = Failure(kind=Kind.TRANSIENT, code=450)
    settle(batch, Result(refused={1: no, 2: later}, seconds=0.1), recipients=3)
    status, recipients = outcomes(log)
    assert recipients == ["", ""]
    assert status == {"hold": "unknown", "resend": "retrying"}[on_unknown]


@pytest.mark.parametrize("content", ["taken", "reply lost"])
def test_who_is_known_late_to_have_it_or_to_be_refused_is_not_sent_it_again(
    smtp, queue_mail, deliver, travel, content
) -> None:
    """The mail waits to be sent again when its worker, taken for dead, has an answer after all."""
    log = queue_mail(A, B, C, on_unknown="resend")
    batch = lose_the_worker(travel)
    assert outcomes(log) == ("retrying", ["", "", ""])
    no, later = Failure(kind=Kind.PERMANENT, code=550), Failure(kind=Kind.TRANSIENT, code=450)
    lost = Failure(kind=Kind.UNKNOWN) if content == "reply lost" else None
    answer = Result(failure=lost, refused={1: no, 2: later}, seconds=0.1)
    for _ in range(2):  # the reply to the first commit was lost
        settle(batch, answer, recipients=3)
    of_a = "" if lost else "accepted"
    assert outcomes(log) == ("retrying", [of_a, "refused", ""])
    assert (log.attempts, log.tries) == (1, 1), "one attempt, which the rescue has counted"
    assert log.failure_kind == ("unknown" if lost else "transient")
    assert log.due_at > timezone.now() + clock.offset, "the server said: not now"
    assert deliver() == 0
    travel(hours=1)
    assert deliver() == 1
    assert sent_to(smtp) == ([(A, C)] if lost else [(C,)])
    assert outcomes(log)[0] == "sent"


def test_an_answer_after_the_next_claim_is_not_written(smtp, queue_mail, travel) -> None:
    log = queue_mail(A, B, on_unknown="resend")
    batch = lose_the_worker(travel)
    following = claim.claim("emails")
    assert following is not None
    settle(batch, Result(refused={1: Failure(kind=Kind.TRANSIENT, code=450)}, seconds=0.1), 2)
    assert outcomes(log) == ("sending", ["", ""])


@pytest.fixture
def one_in_doubt(smtp, queue_mail, deliver) -> EmailLog:
    """Send a mail in three transactions: a has it, b was refused for now, c is in doubt."""
    smtp.inject(refuse("rcpt", 450, times=1, recipient=B.__eq__))
    limit = Reply(552, "5.5.3 Too many recipients")
    smtp.inject(Rule("rcpt", limit, lambda session: len(session.recipients) >= 1))
    smtp.inject(Rule("content", Drop(accepted=True), lambda session: session.accepted == 1, 1))
    log: EmailLog = queue_mail(A, B, C, on_unknown="resend")
    deliver()
    assert sent_to(smtp) == [(A,), (C,)]
    assert outcomes(log) == ("retrying", ["accepted", "", ""])
    return log


def test_proof_for_whom_a_later_transaction_left_in_doubt_is_believed(
    smtp, one_in_doubt, deliver, travel
) -> None:
    report_delivery(one_in_doubt, C)
    assert outcomes(one_in_doubt) == ("retrying", ["accepted", "", "accepted"])
    travel(minutes=6)
    deliver()
    assert sent_to(smtp)[2:] == [(B,)]
    assert outcomes(one_in_doubt)[0] == "sent"


def test_whom_a_later_transaction_left_in_doubt_does_not_fail_over(one_in_doubt) -> None:
    [attempt] = one_in_doubt.delivery_attempts.all()
    assert (attempt.failure_kind, attempt.code) == ("unknown", None)
    assert not EmailLog.objects.surely_not_accepted().exists()


def test_failed_mail_without_content_ends_sent_for_whom_it_is_proved(
    smtp, queue_mail, deliver
) -> None:
    """It cannot be queued again for b, whom the attempt refused for now; it stayed failed."""
    smtp.inject(refuse("rcpt", 450, times=1, recipient=B.__eq__))
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(A, B, on_unknown="fail", keep_content="until_sent")
    deliver()
    assert (*outcomes(log), log.envelope) == ("failed", ["", ""], "")
    report_delivery(log, A)
    assert outcomes(log) == ("sent", ["accepted", "refused"])
    refused = log.recipients.get(position=1)
    assert (refused.code, bool(refused.reply)) == (450, True)


@pytest.mark.parametrize("slow", [None, B])
def test_cancelled_mail_in_doubt_that_is_proved_says_so_and_is_sent_to_nobody(
    smtp, queue_mail, deliver, slow: str | None
) -> None:
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it == slow))
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(A, B, on_unknown="hold")
    never_tried = queue_mail(A)
    EmailLog.objects.filter(pk=never_tried.pk).update(due_at=clock.now(600))
    deliver()
    assert outcomes(log)[0] == "unknown"
    assert len(outbox.cancel([log.pk, never_tried.pk]).cancelled) == 2
    sent = sent_to(smtp)
    report_delivery(log, A)
    report_delivery(never_tried, B)  # by mistake: it was never handed over
    assert outcomes(never_tried)[0] == "cancelled"
    assert outcomes(log) == ("sent", ["accepted", "refused"] if slow else ["", ""])
    deliver()
    assert sent_to(smtp) == sent


@pytest.mark.parametrize(("end", "words"), [("cancel", "Cancelled"), ("write_off", "Written off")])
@pytest.mark.parametrize("keep_content", ["always", "until_sent"])
def test_what_a_person_ends_for_some_says_that_others_have_got_it(
    smtp, queue_mail, deliver, travel, end: str, words: str, keep_content: str
) -> None:
    """a has got the mail; whether b has is open, or b still waits for it."""
    moved: list[str] = []
    smtp.inject(refuse("rcpt", 450, times=1, recipient=B.__eq__))
    log = queue_mail(A, B, on_unknown="hold", keep_content=keep_content)
    nobody = queue_mail(C, on_unknown="hold", keep_content=keep_content)
    EmailLog.objects.filter(pk=nobody.pk).update(due_at=clock.now(600))
    deliver()
    ids = [log.pk, nobody.pk]
    with receiving(moved):
        if end == "cancel":
            assert outbox.cancel(ids).cancelled == ids
        else:
            EmailLog.objects.update(status="unknown", pending=None)
            assert outbox.decide(ids, "write_off") == 2
    ended = "cancelled" if end == "cancel" else "failed"
    assert outcomes(log) == ("sent", ["accepted", "refused"])
    assert outcomes(nobody) == (ended, [""])
    for mail in (log, nobody):
        assert bool(mail.envelope) == (keep_content == "always")
        assert mail.finished_at is not None
    refused = log.recipients.get(position=1)
    assert (refused.code, refused.reply.split(" before")[0].split(":")[0]) == (None, words)
    assert moved == [ended, "sent"]
    assert outbox.cancel(ids).too_late == ids
