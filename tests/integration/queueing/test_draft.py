"""The rows that a message becomes: what they record, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.messages import Blob
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import draft as drafts
from django_epica_mail.queueing.draft import Draft
from django_epica_mail.routing import Options
from tests import corpus

pytestmark = pytest.mark.django_db


def message(**fields: Any) -> EmailMessage:
    fields.setdefault("to", ["to@example.com"])
    return EmailMessage("Subject", "Body", None, **fields)


def draft(mail: EmailMessage | None = None, **options: Any) -> Draft:
    return drafts.draft(mail or message(), Options(transport="smtp", **options), of_celery={})


def test_a_row_records_what_the_message_says() -> None:
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


def test_a_message_that_builds_itself_keeps_its_message_id() -> None:
    message = dict(corpus.CORPUS)["class_that_builds_itself"]()
    log = outbox.enqueue(message, transport="smtp")
    (content,) = log.attachments.all()
    assert f"Message-ID: {log.message_id}".encode() in bytes(content.content)


def test_a_long_message_id_is_cut_to_fit_its_column() -> None:
    long = f"<{'x' * 300}@example.com>"
    assert draft(message(headers={"Message-ID": long})).log.message_id == long[:255]


def test_a_recipient_outside_to_cc_and_bcc_counts_as_bcc() -> None:
    class Archived(EmailMessage):
        def recipients(self) -> list[str]:
            return [*super().recipients(), "archive@example.com"]

    mail = Archived("Subject", "Body", None, ["to@example.com"], cc=["cc@example.com"])
    kinds = [(it.kind, it.address, it.position) for it in draft(mail).recipients]
    assert kinds == [
        ("to", "to@example.com", 0),
        ("cc", "cc@example.com", 1),
        ("bcc", "archive@example.com", 2),
    ]


def test_a_message_without_recipients_is_refused() -> None:
    with pytest.raises(ValueError, match="no recipient"):
        outbox.enqueue(message(to=[]), transport="smtp")


def test_mail_is_due_unless_it_is_scheduled_for_later() -> None:
    assert draft().is_due
    assert draft(send_at=timezone.now() - timedelta(seconds=1)).is_due
    assert not draft(send_at=timezone.now() + timedelta(minutes=1)).is_due


def test_times_of_scheduled_mail_count_from_its_own_time(epica_mail) -> None:
    epica_mail(GIVE_UP_AFTER=600)
    at = timezone.now() + timedelta(days=1)
    log = draft(send_at=at, expires_after=60).log
    assert (log.due_at, log.give_up_at) == (at, at + timedelta(minutes=10))
    assert log.expires_at == at + timedelta(minutes=1)


def test_an_expiry_of_the_call_overrides_that_of_a_rule(epica_mail) -> None:
    epica_mail(ROUTES=[{"expires_after": 60}])
    at = timezone.now() + timedelta(days=1)
    log = outbox.enqueue(message(), transport="smtp", expires_at=at)
    log.refresh_from_db()
    assert log.expires_at == at
    log = outbox.enqueue(message(), transport="smtp")
    log.refresh_from_db()
    assert log.expires_at is not None
    assert abs(log.expires_at - log.created_at - timedelta(minutes=1)) < timedelta(seconds=5)


def test_further_transports_of_a_rule_are_fallbacks(epica_mail) -> None:
    epica_mail(ROUTES=[{"transport": ["ses", "smtp", "relay"]}])
    log = drafts.draft(message(), Options(), of_celery={}).log
    assert (log.transport, log.fallbacks) == ("ses", ["smtp", "relay"])


def test_mail_of_a_batch_names_it_and_is_bulk() -> None:
    batch = EmailBatch.objects.create()
    log = drafts.draft(message(), Options(), of_celery={}, bulk=True, batch=batch).log
    assert (log.batch_id, log.queue, log.priority) == (batch.pk, "bulk_emails", 5)


def test_links_that_cannot_be_made_are_refused_with_the_remedy(smtp, epica_mail, settings) -> None:
    def queue() -> None:
        outbox.enqueue(message(), transport="smtp", unsubscribe=True)

    with pytest.raises(ImproperlyConfigured, match="BASE_URL"):
        queue()
    epica_mail(BASE_URL="https://shop.example.com")
    settings.ROOT_URLCONF = ()
    with pytest.raises(ImproperlyConfigured, match=r"include\('django_epica_mail.urls'\)"):
        queue()
    assert not EmailLog.objects.exists()


def test_mail_to_several_needs_no_links_and_gets_none() -> None:
    mail = message(to=["a@example.com"], bcc=["b@example.com"])
    assert draft(mail, unsubscribe=True, track_opens=True).log.additions == ""


def test_an_attachments_row_holds_only_what_every_database_takes() -> None:
    blob = Blob(
        digest="d" * 64,
        content=b"\0content",
        filename="a\0\ud800.bin",
        mimetype="application/" + "x" * 300,
    )
    row = drafts.attachment(blob)
    row.save()
    row.refresh_from_db()
    assert (row.filename, len(row.mimetype), row.size) == ("a?.bin", 255, 8)
    assert bytes(row.content) == b"\0content"


@pytest.mark.parametrize(
    ("text", "stored"),
    [("Ayşe \N{ENVELOPE}", "Ayşe \N{ENVELOPE}"), ("a\0b", "ab"), ("a\ud800b", "a?b"), (7, "7")],
)
def test_text_loses_only_what_some_database_refuses(text: object, stored: str) -> None:
    assert drafts.storable(text) == stored


ROME = ZoneInfo("Europe/Rome")
BEFORE_SPRING = datetime(2027, 3, 28, 1, 30, tzinfo=ROME)
"""Half an hour before the clock jumps from two to three."""
BEFORE_AUTUMN = datetime(2026, 10, 25, 1, 30, tzinfo=ROME)
"""An hour and a half before the clock goes back from three to two."""


@pytest.mark.parametrize("send_at", [BEFORE_SPRING, BEFORE_AUTUMN], ids=["spring", "autumn"])
@pytest.mark.parametrize("by", ["call", "rule"])
def test_spans_are_as_long_as_they_say_when_the_clock_changes(epica_mail, by, send_at) -> None:
    epica_mail(GIVE_UP_AFTER=7200, ROUTES=[{"expires_after": 3660}] if by == "rule" else [])
    options = {"expires_after": timedelta(minutes=61)} if by == "call" else {}
    log = outbox.enqueue(message(), send_at=send_at, **options)
    log.refresh_from_db()
    assert log.due_at == send_at
    assert log.expires_at - log.due_at == timedelta(minutes=61)
    assert log.give_up_at - log.due_at == timedelta(hours=2)
