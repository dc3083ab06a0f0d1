"""The public functions of the outbox: enqueueing, cancelling and requeueing."""

from __future__ import annotations

import uuid
from datetime import datetime

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError, transaction
from django.test import TestCase

from django_epica_mail import outbox
from django_epica_mail.models import EmailBatch, EmailLog, EmailQuerySet

pytestmark = pytest.mark.django_db


def message(**fields) -> EmailMessage:
    fields.setdefault("to", ["to@example.com"])
    return EmailMessage("Subject", "Body", None, **fields)


def test_one_bad_message_refuses_the_whole_call() -> None:
    bad = message(headers={"X-Bad": "a\nb"})
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        outbox.enqueue_many([message(), bad], transport="smtp")
    assert EmailLog.objects.count() == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"colour": "red"}, TypeError, "no option 'colour'"),
        ({"priority": 10}, ValueError, "0 to 9"),
        ({"priority": "fast"}, ValueError, "urgent"),
        ({"send_at": datetime(2030, 1, 1)}, ValueError, "aware"),
        ({"send_at": "tomorrow"}, TypeError, "datetime"),
        ({"on_unknown": "shrug"}, ValueError, "resend"),
        ({"queue": ""}, ValueError, "1 to 64"),
        ({"transport": "smpt"}, ValueError, "no transport 'smpt': name one of .*smtp"),
    ],
)
def test_an_invalid_option_is_refused_by_name(options, error, words) -> None:
    with pytest.raises(error, match=words):
        outbox.enqueue(message(), **options)
    assert EmailLog.objects.count() == 0


def test_only_unclaimed_mail_is_cancelled() -> None:
    waiting, sending, gone = (
        outbox.enqueue(message(), transport="smtp").pk,
        outbox.enqueue(message(), transport="smtp").pk,
        uuid.uuid4(),
    )
    EmailLog.objects.filter(pk=sending).update(status="sending", pending=None)
    result = outbox.cancel([waiting, sending, gone])
    assert (result.cancelled, result.too_late) == ([waiting], [sending, gone])
    assert outbox.cancel([waiting]).cancelled == []
    assert EmailLog.objects.get(pk=waiting).status == "cancelled"


@pytest.mark.django_db(transaction=True)
def test_cancelling_and_deleting_content_is_one_transaction(monkeypatch) -> None:
    log = outbox.enqueue(message(), transport="smtp", keep_content="until_sent")

    def fail(*args: object) -> None:
        raise DatabaseError("the server closed the connection")

    monkeypatch.setattr(EmailQuerySet, "forget_content", fail)
    with pytest.raises(DatabaseError):
        outbox.cancel([log.pk])
    log.refresh_from_db()
    assert (log.status, bool(log.envelope)) == ("queued", True)


def test_requeued_mail_has_all_its_retries_again() -> None:
    log = outbox.enqueue(message(), transport="smtp")
    EmailLog.objects.update(status="failed", pending=None, tries=4)
    log.recipients.update(outcome="refused", code=550)
    assert outbox.requeue([log.pk]) == 1
    log.refresh_from_db()
    assert (log.status, log.pending, log.tries) == ("queued", 9, 0)
    assert log.recipients.get().outcome == ""
    assert outbox.requeue([log.pk]) == 0


def test_an_interrupted_bulk_call_leaves_nothing() -> None:
    def messages():
        yield message()
        raise RuntimeError

    with pytest.raises(RuntimeError), transaction.atomic():
        outbox.enqueue_many(messages(), transport="smtp")
    assert EmailBatch.objects.count() == EmailLog.objects.count() == 0


def test_ids_may_be_strings_as_in_results(db) -> None:
    one, two = (outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"])) for _ in "12")
    done = outbox.cancel([str(one.pk), two.pk])
    assert done.cancelled == [one.pk, two.pk]
    assert outbox.requeue([str(one.pk)]) == 1
    with pytest.raises(TypeError, match="Give a list of ids"):
        outbox.cancel(str(one.pk))
    with pytest.raises(ValueError):  # noqa: PT011 - the message is Python's
        outbox.cancel(["no id"])


def test_what_cannot_be_paused_is_said(caplog) -> None:
    with pytest.raises(ValueError, match="no transport 'smpt'"):
        outbox.pause(transport="smpt")
    outbox.pause(queue="emials")
    assert "No queue 'emials' is known" in caplog.text


def test_mail_of_a_removed_transport_is_not_sent_again(queue_mail, caplog) -> None:
    gone, kept = queue_mail(transport="gone"), queue_mail()
    EmailLog.objects.update(status="sent", pending=None)
    (again,) = outbox.send_again([gone.pk, kept.pk])
    assert again.transport == "smtp"
    assert f"{gone.pk} was not sent again: its transport 'gone'" in caplog.text


def test_moved_mail_has_no_failover_and_its_queue_is_rung(queue_mail, rings) -> None:
    waiting = queue_mail(transport="gone", queue="bulk_emails")
    sending = queue_mail(transport="gone")
    EmailLog.objects.update(fallbacks=["smtp"])
    EmailLog.objects.filter(pk=sending.pk).update(status="sending")
    rings.clear()
    with TestCase.captureOnCommitCallbacks(execute=True):
        assert outbox.move("gone", to="smtp") == 1
        assert outbox.move("smtp", to="smtp") == 0
    waiting.refresh_from_db()
    assert (waiting.transport, waiting.fallbacks) == ("smtp", [])
    assert "bulk_emails" in rings
    with pytest.raises(ValueError, match="no transport 'smpt'"):
        outbox.move("gone", to="smpt")


def test_a_mail_that_would_be_refused_today_is_skipped_when_sent_again(
    smtp, queue_mail, deliver, caplog
) -> None:
    refused, other = queue_mail(), queue_mail()
    deliver()
    EmailLog.objects.filter(pk=refused.pk).update(category="a\tb")
    assert len(outbox.send_again([refused.pk, other.pk])) == 1
    assert f"E-mail {refused.pk} was not sent again" in caplog.text
