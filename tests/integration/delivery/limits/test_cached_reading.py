"""The one reading that claims keep for a second: when it is used, and when the table is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import transaction

from django_epica_mail import outbox
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import cached_reading, slowed_domains
from django_epica_mail.delivery.limits.cached_reading import CachedReading
from django_epica_mail.models import DeliveryGate
from django_epica_mail.retry import Failure, Kind, Scope

COMPLAINT = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")


def _slow(name: str) -> None:
    slowed_domains.complain("smtp", name, COMPLAINT, -9.0, "default")


def _slowed(*names: str) -> bool:
    found = slowed_domains.current("default").found
    return [it.row.domain for it in found] == list(names)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Keep readings for a minute."""
    monkeypatch.setattr(cached_reading, "KEPT_SECONDS", 60.0)
    gates.forget()
    slowed_domains.forget()
    yield monkeypatch
    gates.forget()
    slowed_domains.forget()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("current", [gates.current, slowed_domains.current])
def test_a_table_is_read_once_a_second(kept, django_assert_num_queries, current) -> None:
    with django_assert_num_queries(1):
        assert current("default") is current("default")
    kept.setattr(cached_reading, "KEPT_SECONDS", 0.0)
    with django_assert_num_queries(1):
        current("default")


@pytest.mark.django_db(transaction=True)
def test_what_another_process_changes_is_seen_after_a_second(kept) -> None:
    assert gates.current("default").queue_is_open("emails")
    assert _slowed()
    DeliveryGate.objects.create(scope="queue", name="emails", paused=True)
    assert gates.current("default").queue_is_open("emails")
    kept.setattr(cached_reading, "KEPT_SECONDS", 0.0)
    assert not gates.current("default").queue_is_open("emails")


@pytest.mark.django_db(transaction=True)
def test_what_this_process_changes_it_sees_at_once(kept) -> None:
    assert gates.current("default").queue_is_open("emails")
    outbox.pause(queue="emails")
    assert not gates.current("default").queue_is_open("emails")
    outbox.resume(queue="emails")
    assert gates.current("default").queue_is_open("emails")
    gates.trip("smtp", Failure(kind=Kind.OUTAGE), "default")
    assert gates.current("default").needs_probe("smtp")
    gates.reset("smtp", "default")
    assert not gates.current("default").needs_probe("smtp")
    assert _slowed()
    _slow("gmail.example")
    assert _slowed("gmail.example")
    outbox.resume(domain="gmail.example")
    assert _slowed()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("current", [gates.current, slowed_domains.current])
def test_in_a_transaction_it_is_always_read_and_never_kept(
    kept, django_assert_num_queries, current
) -> None:
    before = current("default")
    with transaction.atomic(), django_assert_num_queries(2):
        assert current("default") is not current("default")
    assert current("default") is before


@pytest.mark.django_db(transaction=True)
def test_what_a_rolled_back_transaction_saw_is_not_kept(kept) -> None:
    gates.forget()
    with transaction.atomic():
        DeliveryGate.objects.create(scope="queue", name="emails", paused=True)
        assert not gates.current("default").queue_is_open("emails")
        transaction.set_rollback(True)
    assert gates.current("default").queue_is_open("emails")


def test_a_reading_is_not_kept_if_the_table_was_changed_meanwhile(monkeypatch) -> None:
    """In a worker with threads: one reads while another changes the table."""
    monkeypatch.setattr(cached_reading, "KEPT_SECONDS", 60.0)
    outside = SimpleNamespace(in_atomic_block=False)
    monkeypatch.setattr(cached_reading, "connections", {"default": outside})
    table, is_read, is_changed = ["old"], threading.Event(), threading.Event()

    def read(using: str) -> list[str]:
        found = list(table)
        is_read.set()
        assert is_changed.wait(5)
        return found

    reading = CachedReading(read)

    @reading.forgotten_by
    def change() -> None:
        table[:] = ["new"]

    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(reading.current("default")))
    reader.start()
    assert is_read.wait(5)
    change()
    is_changed.set()
    reader.join(5)
    assert found == [["old"]]
    assert reading.current("default") == ["new"]


def test_a_change_that_fails_may_have_been_committed(monkeypatch) -> None:
    calls: list[str] = []
    reading = CachedReading(calls.append)
    monkeypatch.setattr(reading, "forget", lambda: calls.append("forgotten"))

    def fail(number: int) -> int:
        raise OSError(number)

    change: Callable[[int], int] = reading.forgotten_by(fail)
    with pytest.raises(OSError, match="7"):
        change(7)
    assert calls == ["forgotten"]
