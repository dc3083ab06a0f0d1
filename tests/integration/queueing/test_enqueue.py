"""Inserting the rows of messages: in the caller's transaction, all or none, then a ring."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from django_epica_mail import outbox, routing
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog, EmailRecipient
from django_epica_mail.queueing import draft as drafts
from django_epica_mail.queueing import enqueue
from django_epica_mail.routing import Options
from django_epica_mail.transports import config as transports

pytestmark = pytest.mark.django_db


def message(subject: str = "Subject", **fields: Any) -> EmailMessage:
    fields.setdefault("to", ["to@example.com"])
    return EmailMessage(subject, "Body", None, **fields)


def insert_statements() -> int:
    """Return how many statements insert a mail and its recipients; PostgreSQL takes both in one."""
    return 1 if connection.vendor == "postgresql" else 2


def test_times_of_a_new_row_are_those_of_the_database() -> None:
    log = outbox.enqueue(message(), transport="smtp")
    assert isinstance(log.created_at, datetime)
    assert isinstance(log.due_at, datetime)
    assert timedelta(hours=71) < log.give_up_at - log.created_at < timedelta(hours=73)


def test_a_mail_is_two_inserts_and_with_an_attachment_four(django_assert_num_queries) -> None:
    transports.aliases()
    with transaction.atomic():
        with django_assert_num_queries(insert_statements()):
            outbox.enqueue(message(), transport="smtp")
        attached = message()
        attached.attach("a.bin", b"x", "application/zip")
        with django_assert_num_queries(insert_statements() + 2):
            outbox.enqueue(attached, transport="smtp")


@pytest.mark.django_db(transaction=True)
def test_without_a_transaction_a_mail_is_stored_whole_or_not() -> None:
    draft = drafts.draft(message(), routing.Options(transport="smtp"), of_celery={})
    draft.recipients[0].address = "a" * 400 if connection.vendor != "sqlite" else None
    with pytest.raises(DatabaseError):
        enqueue.insert_drafts([draft])
    assert not EmailLog.objects.exists()


def test_a_long_list_is_stored_in_portions_all_or_none(monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 2)
    insert, portions = enqueue.insert_drafts, []

    def note(drafts: list[drafts.Draft]) -> list[EmailLog]:
        portions.append(len(drafts))
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", note)
    options = Options(transport="smtp")
    with transaction.atomic():  # stays usable
        with pytest.raises(ValueError, match="newline"):
            enqueue.enqueue_all([*map(message, "123"), message(to=["a\n@example.com"])], options)
        assert not EmailLog.objects.exists()
        assert enqueue.enqueue_all(map(message, "12345"), options) == 5
    assert portions == [2, 2, 2, 1]
    assert EmailLog.objects.count() == EmailRecipient.objects.count() == 5


def test_many_mails_are_two_inserts_plus_those_of_their_batch(django_assert_num_queries) -> None:
    # The batch: a savepoint, its insert, its total, and the release of the savepoint.
    with transaction.atomic(), django_assert_num_queries(4 + insert_statements()):
        batch = outbox.enqueue_many((message() for _ in range(20)), transport="smtp")
    assert batch.total == batch.emails.count() == 20
    log = batch.emails.first()
    assert (log.queue, log.priority) == ("bulk_emails", 5)


def test_a_generator_is_read_in_chunks(monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    inserted: list[int] = []

    def messages() -> Iterator[EmailMessage]:
        for _ in range(35):
            inserted.append(EmailLog.objects.count())
            yield message()

    assert outbox.enqueue_many(messages(), transport="smtp").total == 35
    assert inserted[-1] == 30


def test_an_invalid_message_leaves_the_callers_transaction_usable(monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 1)
    with transaction.atomic():
        kept = outbox.enqueue(message(), transport="smtp")
        with pytest.raises(ValueError, match="no recipient"):
            outbox.enqueue_many([message(), message(to=[])], transport="smtp")
        assert EmailLog.objects.get() == kept
    assert not EmailBatch.objects.exists()


def test_single_mail_without_recipients_is_skipped(django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        assert enqueue.enqueue_all([message(to=[])], Options(transport="smtp")) == 0
    mails = [message(to=[]), message("Second"), message("Third", to=[], bcc=["b@example.com"])]
    assert enqueue.enqueue_all(mails, Options(transport="smtp")) == 2
    assert set(EmailLog.objects.values_list("subject", flat=True)) == {"Second", "Third"}


def test_an_attachment_of_many_mails_of_a_call_is_stored_once() -> None:
    def attached() -> EmailMessage:
        it = message()
        it.attach("a.bin", b"x" * 100, "application/zip")
        return it

    outbox.enqueue_many([attached() for _ in range(5)], transport="smtp")
    row = EmailAttachment.objects.get()
    assert (row.size, row.emails.count()) == (100, 5)
    outbox.enqueue(attached(), transport="smtp")
    assert EmailAttachment.objects.count() == 2, "never shared between calls"


def test_a_used_idempotency_key_returns_the_existing_row(
    rings, caplog, django_capture_on_commit_callbacks
) -> None:
    first = outbox.enqueue(message(), transport="smtp", idempotency_key="order-7")
    with django_capture_on_commit_callbacks(execute=True), caplog.at_level(logging.WARNING):
        again = outbox.enqueue(message(), transport="smtp", idempotency_key="order-7")
    assert again == first
    assert EmailLog.objects.count() == EmailRecipient.objects.count() == 1
    assert rings == [], "nothing new is due"
    assert caplog.records == []


def test_a_used_idempotency_key_with_another_message_is_logged(caplog) -> None:
    first = outbox.enqueue(message(), transport="smtp", idempotency_key="order-7")
    other = message("Other", to=["other@example.com"])
    again = outbox.enqueue(other, transport="smtp", idempotency_key="order-7")
    assert again == first
    assert EmailRecipient.objects.get().address == "to@example.com"
    (record,) = caplog.records
    assert f"The idempotency key of e-mail {first.pk} was used again" in record.getMessage()
    assert "other@" not in record.getMessage()


def test_a_key_without_its_content_gives_no_warning(caplog) -> None:
    first = outbox.enqueue(message(), transport="smtp", idempotency_key="order-7")
    EmailLog.objects.update(envelope="")
    again = outbox.enqueue(message("Other"), transport="smtp", idempotency_key="order-7")
    assert again == first
    assert caplog.records == []


def test_a_key_used_twice_in_one_call_makes_one_mail() -> None:
    options = Options(transport="smtp", idempotency_key="order-7")
    pair = [drafts.draft(message(), options, of_celery={}) for _ in range(2)]
    other = drafts.draft(message("Other"), Options(transport="smtp"), of_celery={})
    one, also_other, same = enqueue.insert_drafts([pair[0], other, pair[1]])
    assert one == same
    assert also_other == other.log
    assert EmailLog.objects.count() == EmailRecipient.objects.count() == 2


def test_of_messages_with_one_key_in_one_call_the_first_is_queued() -> None:
    options = Options(transport="smtp", idempotency_key="order-7")
    pair = [
        drafts.draft(message(subject), options, of_celery={}) for subject in ("First", "Second")
    ]
    enqueue.insert_drafts(pair)
    assert EmailLog.objects.get().subject == "First"


def test_it_rings_after_the_commit_and_not_after_a_rollback(
    rings, django_capture_on_commit_callbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        with transaction.atomic():
            outbox.enqueue(message(), transport="smtp")
            assert rings == []
        try:
            with transaction.atomic():
                outbox.enqueue(message(), transport="smtp", queue="undone")
                raise RuntimeError
        except RuntimeError:
            pass
    assert rings == ["emails"]
    assert EmailLog.objects.count() == 1


def test_many_mails_ring_each_queue_once(rings, django_capture_on_commit_callbacks) -> None:
    queues = ("one", "two", "one", "two")
    pairs = [(message(), Options(transport="smtp", queue=queue)) for queue in queues]
    with django_capture_on_commit_callbacks(execute=True):
        enqueue.enqueue_pairs(pairs)
    assert sorted(rings) == ["one", "two"]


def test_scheduled_mail_waits_for_its_time_without_a_ring(
    rings, django_capture_on_commit_callbacks
) -> None:
    at = timezone.now() + timedelta(hours=1)
    with django_capture_on_commit_callbacks(execute=True):
        log = outbox.enqueue(message(), transport="smtp", send_at=at)
    assert rings == []
    assert log.due_at == at
