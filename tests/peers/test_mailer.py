"""Test importing from django-mailer."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from mailer.backend import DbBackend
from mailer.models import DontSendEntry, Message, MessageLog

from django_epica_mail import suppression
from django_epica_mail.models import EmailLog
from django_epica_mail.testing import assert_email_queued, drain_email_queue


def test_pickles_are_read_only_if_trusted(send) -> None:
    send(DbBackend)
    with pytest.raises(CommandError, match="--trust-pickles"):
        call_command("epica_mail", "import", "--from", "mailer", "--yes")
    assert EmailLog.objects.count() == 0


def test_waiting_mail_is_moved_completely_and_deleted(import_from, full_message) -> None:
    DbBackend().send_messages([full_message])
    assert import_from("mailer", "--yes", "--trust-pickles")["queued"] == 1
    assert Message.objects.count() == 0
    (message,) = drain_email_queue()
    assert message.recipients() == full_message.recipients()
    assert message.alternatives == full_message.alternatives
    assert message.attachments == full_message.attachments
    assert message.extra_headers["X-Order"] == "7"
    assert message.reply_to == ["help@example.com"]


def test_deferred_mail_is_moved_and_priorities_are_kept(import_from, send) -> None:
    for number, subject in enumerate(("High", "Medium", "Low", "Deferred"), 1):
        send(DbBackend, subject)
        Message.objects.filter(pk=Message.objects.latest("pk").pk).update(priority=number)
    import_from("mailer", "--yes", "--trust-pickles")
    for subject, priority in (("High", 6), ("Medium", 3), ("Low", 0), ("Deferred", 3)):
        assert_email_queued(1, subject=subject, priority=priority)


def test_sent_mail_becomes_a_record(import_from, send) -> None:
    for subject in ("Sent", "Listed", "Tried"):
        send(DbBackend, subject)
    for message, result in zip(Message.objects.order_by("pk"), "123", strict=True):
        MessageLog.objects.log(message, result, "250 OK")
    Message.objects.all().delete()
    assert import_from("mailer", "--yes", "--trust-pickles")["finished"] == 2
    assert_email_queued(1, status="sent", subject="Sent")
    assert_email_queued(1, status="suppressed", subject="Listed")
    assert drain_email_queue() == []


def test_an_unreadable_message_is_reported(import_from, send) -> None:
    send(DbBackend)
    log = MessageLog.objects.log(Message.objects.get(), "1")
    MessageLog.objects.filter(pk=log.pk).update(message_data="")
    Message.objects.update(message_data="gAAAA")
    report = import_from("mailer", "--yes", "--trust-pickles")
    assert len(report["refused"]) == 2
    assert "no readable message" in report["refused"][0]["reason"]
    assert Message.objects.count() == 1


def test_its_list_of_addresses_suppresses_moved_mail(import_from, send) -> None:
    DontSendEntry.objects.create(to_address="A@example.com", when_added=timezone.now())
    send(DbBackend, "Listed", "a@example.com")
    send(DbBackend, "Not listed", "b@example.com")
    assert import_from("mailer", "--trust-pickles")["listed"] == 1
    assert not suppression.is_suppressed("a@example.com")
    assert import_from("mailer", "--yes", "--trust-pickles")["listed"] == 1
    assert [message.subject for message in drain_email_queue()] == ["Not listed"]
    assert_email_queued(1, status="suppressed", subject="Listed")
    DontSendEntry.objects.create(to_address="nobody", when_added=timezone.now())
    again = import_from("mailer", "--yes", "--trust-pickles")
    assert again["listed"] == 0
    assert [it["reason"] for it in again["refused"]] == ["'nobody' is not an e-mail address."]
