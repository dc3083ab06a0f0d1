"""Ids that sort by time, and the expression for the database's current time."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import clock
from django_epica_mail.models import EmailLog

A_MOMENT = 0x017F22E279B0
"""The time in RFC 9562, appendix A.6, in milliseconds."""


def set_time(monkeypatch: pytest.MonkeyPatch, *nanoseconds: int) -> None:
    """Make the host's clock return these times, the last one forever."""
    times = list(nanoseconds)
    now = SimpleNamespace(time_ns=lambda: times.pop(0) if len(times) > 1 else times[0])
    monkeypatch.setattr(clock, "time", now)


def moment(milliseconds: int) -> datetime:
    return clock.EPOCH + timedelta(milliseconds=milliseconds)


def compiled(expression: Any, vendor: str = "sql") -> str:
    compiler = EmailLog.objects.all().query.get_compiler(connection=connection)
    sql, _ = getattr(expression, f"as_{vendor}")(compiler, connection)
    return str(sql)


def test_a_key_has_the_fields_of_rfc_9562(monkeypatch) -> None:
    set_time(monkeypatch, A_MOMENT * 1_000_000 + 500_000)
    key = clock.uuid7()
    assert key.version == 7
    assert key.variant == uuid.RFC_4122
    assert key.int >> 80 == A_MOMENT
    assert key.int >> 64 & 0xFFF == 0x800, "half a millisecond, in 4096ths"


def test_keys_sort_by_creation_time(monkeypatch) -> None:
    start = time.time_ns()
    ticks = iter(range(start, start + 5_000_000, 250))  # crosses five milliseconds
    monkeypatch.setattr(clock, "time", SimpleNamespace(time_ns=ticks.__next__))
    keys = [clock.uuid7() for _ in range(20_000)]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_keys_made_at_the_same_moment_differ(monkeypatch) -> None:
    set_time(monkeypatch, 1)
    assert len({clock.uuid7() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999])
def test_the_lowest_id_bounds_the_keys_of_its_millisecond(monkeypatch, nanoseconds) -> None:
    set_time(monkeypatch, A_MOMENT * 1_000_000 + nanoseconds)
    keys = [clock.uuid7() for _ in range(100)]
    assert clock.lowest_id_at(moment(A_MOMENT)) <= min(keys)
    assert max(keys) < clock.lowest_id_at(moment(A_MOMENT + 1))


def test_the_lowest_id_is_a_valid_uuid7_in_any_time_zone() -> None:
    lowest = clock.lowest_id_at(moment(A_MOMENT))
    assert (lowest.version, lowest.variant, lowest.int >> 80) == (7, uuid.RFC_4122, A_MOMENT)
    istanbul = moment(A_MOMENT).astimezone(timezone(timedelta(hours=3)))
    assert clock.lowest_id_at(istanbul) == lowest


def test_a_delay_is_given_in_seconds_or_as_a_timedelta() -> None:
    assert clock.now(90) == clock.now(timedelta(minutes=1.5))
    assert clock.now(90) != clock.now(91)
    assert compiled(clock.now()) == "CURRENT_TIMESTAMP"


def test_the_offset_shifts_the_clock(monkeypatch) -> None:
    ahead = clock.now(60)
    monkeypatch.setattr(clock, "offset", timedelta(seconds=40))
    assert clock.now(20) == ahead
    monkeypatch.setattr(clock, "offset", timedelta(seconds=-20))
    assert clock.now(80) == ahead


def test_mysql_is_asked_for_utc_with_microseconds() -> None:
    assert compiled(clock.now(), "mysql") == "UTC_TIMESTAMP(6)"


@given(st.uuids())
def test_every_id_tells_a_time_of_the_calendar(key: uuid.UUID) -> None:
    at = clock.time_of(key)
    assert clock.EPOCH <= at <= datetime(9999, 1, 1, tzinfo=timezone.utc)


def test_the_time_of_an_id_is_that_of_its_lowest_one() -> None:
    assert clock.time_of(clock.lowest_id_at(moment(A_MOMENT))) == moment(A_MOMENT)


@pytest.mark.parametrize("year", [1, 1900, 1970])
def test_no_id_is_lower_than_those_of_the_first_moment(year: int) -> None:
    early = datetime(year, 1, 1, tzinfo=timezone.utc)
    assert clock.lowest_id_at(early) == clock.lowest_id_at(clock.EPOCH)
