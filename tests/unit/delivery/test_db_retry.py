"""A write is repeated while the database fails, as long as its time allows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import IntegrityError, InterfaceError, OperationalError

from django_epica_mail.delivery import db_retry
from django_epica_mail.delivery.db_retry import retry_on_database_errors


class Database:
    """The connections of a worker, and a clock that only its pauses move."""

    def __init__(self) -> None:
        self.in_atomic_block = False
        self.closed = 0
        self.pauses: list[float] = []

    def __getitem__(self, alias: str) -> Database:
        assert alias == "default"
        return self

    def close(self) -> None:
        self.closed += 1

    def monotonic(self) -> float:
        return sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    database = Database()
    clock = SimpleNamespace(monotonic=database.monotonic, sleep=database.sleep)
    monkeypatch.setattr(db_retry, "connections", database)
    monkeypatch.setattr(db_retry, "time", clock)
    return database


def failing(*errors: Exception) -> Callable[[], str]:
    """Return an operation that raises each of these errors once, and succeeds then."""
    left = list(errors)

    def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation


def attempt(operation: Callable[[], Any], until: float = 60) -> Any:
    return retry_on_database_errors(operation, until=until, using="default")


def test_an_operation_that_succeeds_is_called_once(database) -> None:
    calls: list[int] = []
    assert attempt(lambda: calls.append(1)) is None
    assert (len(calls), database.closed, database.pauses) == (1, 0, [])


@pytest.mark.parametrize("error", [OperationalError("gone"), InterfaceError("closed")])
def test_a_failed_operation_is_repeated_on_a_new_connection(database, error) -> None:
    assert attempt(failing(error, error, error)) == "done"
    assert database.closed == 3


def test_pauses_double_up_to_a_second(database) -> None:
    attempt(failing(*[OperationalError("gone")] * 7))
    assert database.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_error_is_raised_once_the_time_is_up(database) -> None:
    last = OperationalError("still gone")
    errors = [OperationalError("gone")] * 6
    with pytest.raises(OperationalError) as raised:
        attempt(failing(*errors, last, OperationalError("too late")), until=3)
    assert raised.value is last
    assert database.monotonic() < 3


def test_no_pause_extends_beyond_the_time(database) -> None:
    with pytest.raises(OperationalError):
        attempt(failing(OperationalError("gone")), until=0.05)
    assert database.pauses == []


def test_inside_a_transaction_the_error_is_raised_at_once(database) -> None:
    database.in_atomic_block = True
    with pytest.raises(OperationalError):
        attempt(failing(OperationalError("gone")))
    assert (database.closed, database.pauses) == (0, [])


@pytest.mark.parametrize("error", [IntegrityError("duplicate"), ValueError("no")])
def test_other_errors_are_raised_at_once(database, error) -> None:
    with pytest.raises(type(error)):
        attempt(failing(error))
    assert database.pauses == []
