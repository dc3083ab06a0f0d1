"""The tables: constraints of the database, and what a row knows of itself."""

from __future__ import annotations

import uuid

import pytest
from django.db import IntegrityError, transaction
from django.utils import translation

from django_epica_mail import lifecycle, rules
from django_epica_mail.models import DeliveryAttempt, DeliveryGate, EmailEvent, EmailLog


def test_the_database_refuses_an_unknown_status(queue_mail) -> None:
    log = queue_mail()
    with pytest.raises(IntegrityError, match="epica_mail_known_status"), transaction.atomic():
        EmailLog.objects.update(status="lost")
    log.refresh_from_db()
    assert log.status == "queued"


@pytest.mark.parametrize("status", lifecycle.Status.values)
def test_the_database_accepts_every_status(queue_mail, status) -> None:
    queue_mail()
    assert EmailLog.objects.update(status=status) == 1


def test_the_attempts_of_a_mail_have_distinct_numbers(queue_mail) -> None:
    log = queue_mail()
    attempt = {"email": log, "number": 1, "created_at": log.created_at}
    DeliveryAttempt.objects.create(**attempt)
    with pytest.raises(IntegrityError), transaction.atomic():
        DeliveryAttempt.objects.create(**attempt)


@pytest.mark.django_db
def test_a_queue_or_transport_has_one_gate() -> None:
    DeliveryGate.objects.create(scope="queue", name="emails")
    DeliveryGate.objects.create(scope="transport", name="emails")
    with pytest.raises(IntegrityError), transaction.atomic():
        DeliveryGate.objects.create(scope="queue", name="emails")


@pytest.mark.parametrize(
    ("status", "kind", "too_old", "forgets"),
    [
        ("sent", "", False, True),
        ("cancelled", "", False, True),
        ("failed", "permanent", False, True),
        ("failed", "transient", False, False),
        ("failed", "message", False, False),
        ("failed", "transient", True, True),
        ("retrying", "transient", True, False),
        ("unknown", "unknown", False, False),
    ],
)
def test_content_is_deleted_once_it_is_no_longer_needed(status, kind, too_old, forgets) -> None:
    for keep in ("until_sent", "never"):
        log = EmailLog(keep_content=keep)
        assert log.forgets_content(status, kind, too_old=too_old) is forgets
    log = EmailLog(keep_content="always")
    assert not log.forgets_content(status, kind, too_old=too_old)


def test_failover_moves_the_earlier_transports_to_the_end() -> None:
    log = EmailLog(transport="ses", fallbacks=["smtp", "backup"])
    assert log.failover("smtp") == {"transport": "smtp", "fallbacks": ["backup", "ses"]}
    assert log.failover("backup") == {"transport": "backup", "fallbacks": ["ses", "smtp"]}


def test_the_name_of_a_row_contains_no_address(queue_mail) -> None:
    log = queue_mail("secret@example.com")
    assert str(log) == str(log.pk)
    assert str(log.recipients.get()) == f"{log.pk} #0"


def test_the_choices_match_the_values_of_the_settings() -> None:
    assert tuple(EmailLog.IfUnknown.values) == rules.ON_UNKNOWN
    assert tuple(EmailLog.Keeping.values) == rules.KEEP_CONTENT


def test_the_name_of_a_row_is_translated() -> None:
    gate = DeliveryGate(scope="queue", name="emails")
    event = EmailEvent(kind="bounced", email_id=uuid.UUID(int=7))
    assert str(gate) == "queue emails"
    with translation.override("tr"):
        assert str(gate) == "kuyruk emails"
        assert str(event) == f"geri döndü {uuid.UUID(int=7)}"
