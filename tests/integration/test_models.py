"""The rows: their keys, what the database refuses, and the one way to change a status."""

from __future__ import annotations

import time
import uuid
from types import SimpleNamespace

import pytest
from django.db import IntegrityError, transaction
from django.utils import translation

from django_epica_mail import clock, lifecycle, rules
from django_epica_mail.models import DeliveryAttempt, DeliveryGate, EmailEvent, EmailLog


def test_a_key_has_the_fields_of_rfc_9562(monkeypatch) -> None:
    nanoseconds = 0x017F22E279B0 * 1_000_000 + 500_000  # the moment of appendix A.6, and a half ms
    monkeypatch.setattr(clock, "time", SimpleNamespace(time_ns=lambda: nanoseconds))
    key = clock.uuid7()
    assert key.version == 7
    assert key.variant == uuid.RFC_4122
    assert key.int >> 80 == 0x017F22E279B0
    assert key.int >> 64 & 0xFFF == 0x800, "half of a millisecond, in 4096ths"


def test_keys_sort_by_the_time_they_were_made(monkeypatch) -> None:
    start = time.time_ns()
    ticks = iter(range(start, start + 5_000_000, 250))  # over the bounds of five milliseconds
    monkeypatch.setattr(clock, "time", SimpleNamespace(time_ns=ticks.__next__))
    keys = [clock.uuid7() for _ in range(20_000)]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_keys_made_at_the_same_moment_differ(monkeypatch) -> None:
    monkeypatch.setattr(clock, "time", SimpleNamespace(time_ns=lambda: 1))
    assert len({clock.uuid7() for _ in range(1000)}) == 1000


def test_the_database_refuses_a_status_it_does_not_know(queue_mail) -> None:
    log = queue_mail()
    with pytest.raises(IntegrityError, match="epica_mail_known_status"), transaction.atomic():
        EmailLog.objects.update(status="lost")
    log.refresh_from_db()
    assert log.status == "queued"


@pytest.mark.parametrize("status", lifecycle.Status.values)
def test_the_database_knows_every_status(queue_mail, status) -> None:
    queue_mail()
    assert EmailLog.objects.update(status=status) == 1


def test_an_attempt_of_a_mail_has_a_number_of_its_own(queue_mail) -> None:
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


@pytest.mark.parametrize("move", lifecycle.MOVES, ids=lambda move: move.name)
def test_a_move_is_made_from_its_sources_and_from_nowhere_else(queue_mail, move) -> None:
    logs = {status: queue_mail(priority=4) for status in lifecycle.Status}
    for status, log in logs.items():
        EmailLog.objects.filter(pk=log.pk).update(status=status)
    moved = EmailLog.objects.move(move, [log.pk for log in logs.values()])
    assert moved == len(move.sources)
    for status, log in logs.items():
        log.refresh_from_db()
        assert log.status == (move.target if status in move.sources else status)
    movers = [log for status, log in logs.items() if status in move.sources]
    claimable = move.target in lifecycle.CLAIMABLE
    assert {log.pending for log in movers} == {4 if claimable else None}


def test_a_move_in_the_name_of_another_claim_is_not_made(queue_mail) -> None:
    log = queue_mail()
    token = uuid.uuid4()
    EmailLog.objects.update(status="sending", lease_token=token)
    assert EmailLog.objects.move(lifecycle.SUCCEED, [log.pk], token=uuid.uuid4()) == 0
    assert EmailLog.objects.move(lifecycle.SUCCEED, [log.pk], token=token) == 1


def test_rows_name_themselves_without_addresses(queue_mail) -> None:
    log = queue_mail("secret@example.com")
    assert str(log) == str(log.pk)
    assert str(log.recipients.get()) == f"{log.pk} #0"


def test_the_choices_of_a_mail_are_the_words_of_the_settings() -> None:
    assert tuple(EmailLog.IfUnknown.values) == rules.ON_UNKNOWN
    assert tuple(EmailLog.Keeping.values) == rules.KEEP_CONTENT


def test_what_a_row_is_called_is_in_the_language_of_who_reads_it() -> None:
    gate = DeliveryGate(scope="queue", name="emails")
    event = EmailEvent(kind="bounced", email_id=uuid.UUID(int=7))
    assert str(gate) == "queue emails"
    with translation.override("tr"):
        assert str(gate) == "kuyruk emails"
        assert str(event) == f"geri döndü {uuid.UUID(int=7)}"
