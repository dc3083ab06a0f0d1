"""Queueing: rows in the caller's transaction, all or none, and a ring after the commit."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from django_epica_mail import models, outbox, routing
from django_epica_mail.backends import EmailBackend
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog
from django_epica_mail.queueing import draft as drafts
from django_epica_mail.queueing import enqueue
from django_epica_mail.queueing import inserts as queueing_inserts
from django_epica_mail.transports import config as transports
from tests import corpus

pytestmark = pytest.mark.django_db


def message(**fields) -> EmailMessage:
    fields.setdefault("to", ["to@example.com"])
    return EmailMessage("Subject", "Body", None, **fields)


def test_a_row_tells_what_the_message_said() -> None:
    log = outbox.enqueue(
        message(to=["A <A@Example.com>"], cc=["c@example.com"], bcc=["b@example.com"]),
        transport="smtp",
        category="order",
    )
    log.refresh_from_db()
    assert (log.status, log.queue, log.priority, log.pending) == ("queued", "emails", 9, 9)
    assert (log.subject, log.from_email, log.category) == ("Subject", "shop@example.com", "order")
    assert log.message_id.startswith(f"<{log.pk}@")
    recipients = log.recipients.values_list("kind", "address")
    assert list(recipients) == [
        ("to", "a@example.com"),
        ("cc", "c@example.com"),
        ("bcc", "b@example.com"),
    ]


def test_the_callers_own_message_id_is_kept() -> None:
    log = outbox.enqueue(message(headers={"message-id": "<mine@example.com>"}), transport="smtp")
    assert log.message_id == "<mine@example.com>"


def test_times_of_a_new_row_are_those_of_the_database() -> None:
    log = outbox.enqueue(message(), transport="smtp")
    assert isinstance(log.created_at, datetime)
    assert isinstance(log.due_at, datetime)
    assert timedelta(hours=71) < log.give_up_at - log.created_at < timedelta(hours=73)


def inserts() -> int:
    """Return how many statements a mail and its recipients are: PostgreSQL takes both in one."""
    return 1 if connection.vendor == "postgresql" else 2


def test_a_mail_is_two_inserts_and_one_with_an_attachment_four(django_assert_num_queries) -> None:
    transports.aliases()
    with transaction.atomic():
        with django_assert_num_queries(inserts()):
            outbox.enqueue(message(), transport="smtp")
        attached = message()
        attached.attach("a.bin", b"x", "application/zip")
        with django_assert_num_queries(inserts() + 2):
            outbox.enqueue(attached, transport="smtp")


@pytest.mark.django_db(transaction=True)
def test_where_a_mail_is_one_statement_it_needs_no_transaction(django_assert_num_queries) -> None:
    transports.aliases()
    with django_assert_num_queries(1 if connection.vendor == "postgresql" else 5) as seen:
        log = outbox.enqueue(message(bcc=["b@example.com"]), transport="smtp", store_result=True)
    assert log.recipients.count() == 2
    assert log.pending_result.due_at - log.due_at < timedelta(seconds=5)
    if connection.vendor != "postgresql":
        assert seen[-1]["sql"] == "COMMIT"


@pytest.mark.django_db(transaction=True)
def test_without_a_transaction_a_mail_is_stored_whole_or_not_at_all() -> None:
    draft = drafts.draft(message(), routing.Options(transport="smtp"), of_celery={})
    draft.recipients[0].address = "a" * 400 if connection.vendor != "sqlite" else None
    with pytest.raises(DatabaseError):
        enqueue.insert_drafts([draft])
    assert not EmailLog.objects.exists()


def test_a_statement_is_no_longer_than_a_database_takes(
    monkeypatch, django_assert_num_queries
) -> None:
    monkeypatch.setattr(queueing_inserts, "_LONGEST", 1000)
    with transaction.atomic(), django_assert_num_queries(4 if inserts() == 2 else 1) as seen:
        for_each = [EmailMessage("S", "x" * 600, None, ["to@example.com"]) for _ in range(5)]
        assert EmailBackend(transport="smtp").send_messages(for_each) == 5
    assert EmailLog.objects.count() == 5
    statements = sum(query["sql"].count("INSERT INTO") for query in seen)
    assert statements == 4  # two mails each, then one, and the recipients


def test_what_is_more_than_one_statement_may_hold_is_several(monkeypatch) -> None:
    monkeypatch.setattr(type(connection.features), "max_query_params", 10)
    log = outbox.enqueue(message(), transport="smtp")
    assert log.recipients.count() == 1


def test_many_mails_are_two_inserts_beside_those_of_their_batch(django_assert_num_queries) -> None:
    # The batch: a savepoint, its insert, its total, and the end of the savepoint.
    with transaction.atomic(), django_assert_num_queries(4 + inserts()):
        batch = outbox.enqueue_many((message() for _ in range(20)), transport="smtp")
    assert batch.total == batch.emails.count() == 20
    log = batch.emails.first()
    assert (log.queue, log.priority) == ("bulk_emails", 5)


def test_a_generator_is_read_in_portions(monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    held: list[int] = []

    def messages():
        for _ in range(35):
            held.append(EmailLog.objects.count())
            yield message()

    assert outbox.enqueue_many(messages(), transport="smtp").total == 35
    assert held[-1] == 30


def test_one_bad_message_refuses_the_whole_call() -> None:
    bad = message(headers={"X-Bad": "a\nb"})
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        outbox.enqueue_many([message(), bad], transport="smtp")
    assert EmailLog.objects.count() == 0


def test_content_carried_by_many_mails_of_a_call_is_stored_once() -> None:
    def attached() -> EmailMessage:
        it = message()
        it.attach("a.bin", b"x" * 100, "application/zip")
        return it

    outbox.enqueue_many([attached() for _ in range(5)], transport="smtp")
    row = EmailAttachment.objects.get()
    assert (row.size, row.emails.count()) == (100, 5)
    outbox.enqueue(attached(), transport="smtp")
    assert EmailAttachment.objects.count() == 2, "never shared between calls"


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
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_by_name(options, error, words) -> None:
    with pytest.raises(error, match=words):
        outbox.enqueue(message(), **options)
    assert EmailLog.objects.count() == 0


def test_a_message_for_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="no recipient"):
        outbox.enqueue(message(to=[]), transport="smtp")


def test_the_bell_is_rung_after_the_commit_and_not_after_a_rollback(
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


def test_scheduled_mail_waits_for_its_time_without_a_ring(
    rings, django_capture_on_commit_callbacks
) -> None:
    at = timezone.now() + timedelta(hours=1)
    with django_capture_on_commit_callbacks(execute=True):
        log = outbox.enqueue(message(), transport="smtp", send_at=at)
    assert rings == []
    assert log.due_at == at


def test_cancelling_wins_only_against_what_is_not_claimed() -> None:
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
def test_a_cancelled_mail_that_keeps_no_content_is_cancelled_whole_or_not(monkeypatch) -> None:
    log = outbox.enqueue(message(), transport="smtp", keep_content="until_sent")

    def fail(*args: object) -> None:
        raise DatabaseError("the server closed the connection")

    monkeypatch.setattr(models, "forget", fail)
    with pytest.raises(DatabaseError):
        outbox.cancel([log.pk])
    log.refresh_from_db()
    assert (log.status, bool(log.envelope)) == ("queued", True)


def test_requeued_mail_has_all_its_tries_again() -> None:
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


def test_a_message_that_builds_itself_is_known_by_the_message_id_it_made(db) -> None:
    message = dict(corpus.CORPUS)["class_that_builds_itself"]()
    log = outbox.enqueue(message, transport="smtp")
    (content,) = log.attachments.all()
    assert f"Message-ID: {log.message_id}".encode() in bytes(content.content)


def test_ids_may_be_text_as_handles_have_them(db) -> None:
    one, two = (outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"])) for _ in "12")
    done = outbox.cancel([str(one.pk), two.pk])
    assert done.cancelled == [one.pk, two.pk]
    assert outbox.requeue([str(one.pk)]) == 1
    with pytest.raises(TypeError, match="Give a list of ids"):
        outbox.cancel(str(one.pk))
    with pytest.raises(ValueError):  # noqa: PT011 - Python's own words
        outbox.cancel(["no id"])
