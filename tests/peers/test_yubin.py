"""Test importing from django-yubin."""

from __future__ import annotations

import threading
from email import message_from_bytes, policy

import pytest
from django.core import mail
from django.db import connection, transaction
from django_yubin.backends import QueuedEmailBackend
from django_yubin.engine import send_db_message
from django_yubin.models import Blacklist, Message

from django_epica_mail.management import importers
from django_epica_mail.models import EmailLog
from django_epica_mail.testing import assert_email_queued, drain_email_queue


def test_waiting_mail_is_moved_unchanged_and_sent_once(import_from, full_message) -> None:
    QueuedEmailBackend().send_messages([full_message])
    report = import_from("yubin", "--yes")
    assert report["queued"] == 1, report
    row = Message.objects.get()
    assert not send_db_message(row.pk)
    assert mail.outbox == []
    (message,) = drain_email_queue()
    assert message.recipients() == [
        "Ayşe <ayse@example.com>",
        "cc@example.com",
        "bcc@example.com",
    ]
    mime = message_from_bytes(message.message().as_bytes(), policy=policy.default)
    assert mime["Subject"] == full_message.subject
    assert mime["Reply-To"] == "help@example.com"
    assert mime["X-Order"] == "7"
    assert mime.get_body(("plain",)).get_content().rstrip() == full_message.body
    assert "<b>Çay</b>" in mime.get_body(("html",)).get_content()
    text, image = mime.iter_attachments()
    assert text.get_content().rstrip() == "Toplam: 42 ₺"
    assert image.get_content() == b"\x89PNG\r\n\x1a\n\0\xff"
    log = EmailLog.objects.get()
    assert log.message_id == mime["Message-ID"]
    kinds = list(log.recipients.values_list("kind", "address"))
    assert kinds == [
        ("to", "ayse@example.com"),
        ("cc", "cc@example.com"),
        ("bcc", "bcc@example.com"),
    ]
    assert row.log_set.filter(log_message=f"Moved to django-epica-mail: {log.pk}").exists()


def test_finished_mail_becomes_a_record_and_is_never_sent(import_from, send) -> None:
    ends = {"Sent": 3, "Failed": 4, "Blacklisted": 5, "Discarded": 6}
    for subject, status in ends.items():
        send(QueuedEmailBackend, subject)
        Message.objects.get(subject=subject).mark_as(status, f"It is {subject}.")
    assert import_from("yubin", "--yes")["finished"] == 4
    for subject, status in zip(ends, ("sent", "failed", "suppressed", "cancelled"), strict=True):
        (log,) = assert_email_queued(1, status=status, subject=subject)
        assert log.reply == f"It is {subject}."
    assert drain_email_queue() == []


def test_mail_in_process_is_not_moved(import_from, send) -> None:
    send(QueuedEmailBackend)
    Message.objects.update(status=Message.STATUS_IN_PROCESS)
    assert import_from("yubin", "--yes")["queued"] == 0


def test_its_blacklist_suppresses_moved_mail(import_from, send) -> None:
    Blacklist.objects.create(email="a@example.com")
    send(QueuedEmailBackend, "Listed", "a@example.com")
    assert import_from("yubin", "--yes")["listed"] == 1
    assert drain_email_queue() == []
    assert_email_queued(1, status="suppressed", subject="Listed")


@pytest.mark.django_db(transaction=True)
def test_a_row_that_is_being_sent_is_skipped(send, monkeypatch) -> None:
    monkeypatch.setattr("django_yubin.tasks.send_email.delay", lambda **_: None)  # no broker
    send(QueuedEmailBackend, "Under way")
    send(QueuedEmailBackend, "Waits")
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Message.objects.select_for_update().get(subject="Under way")
                locked.set()
                done.wait(10)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert locked.wait(10)
        report = importers.move(importers.find("yubin"), dry_run=False, days=30)
    finally:
        done.set()
        holder.join()
    assert report.queued == 1
    assert_email_queued(1, subject="Waits")
