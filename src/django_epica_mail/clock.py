"""The queue's clock, which is the database's own.

Web processes, workers and the sweep may run on hosts whose clocks differ. Times written to a row
and times they are compared with come from the same clock. Tests travel by setting ``offset``.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db.models import Expression
from django.db.models.functions import Now

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models.sql.compiler import SQLCompiler


offset = timedelta()
"""How far the clock is shifted; zero outside tests."""

SET_BACK = 60.0
"""Seconds by which the clock may have been set back: a time no further ahead may be of the past."""


class _UtcNow(Now):
    """The time of the statement, in UTC on every database.

    On MySQL and MariaDB, ``CURRENT_TIMESTAMP`` is in the server's time zone, but Django stores UTC.
    """

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        """Compile to MySQL's function for UTC, with microseconds."""
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


def now(delay: timedelta | float = 0) -> Expression:
    """Return the database's current time plus ``delay`` (seconds or a timedelta)."""
    if not isinstance(delay, timedelta):
        delay = timedelta(seconds=delay)
    return _shifted(offset + delay)


@lru_cache(maxsize=64)
def _shifted(shift: timedelta) -> Expression:
    return _UtcNow() + shift if shift else _UtcNow()


def uuid7() -> uuid.UUID:
    """Return a UUIDv7 that sorts by creation time, to a quarter of a microsecond.

    RFC 9562, section 5.7, with the sub-millisecond fraction of section 6.2, method 3.
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random)


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST_MILLISECOND = (datetime(9999, 1, 1, tzinfo=timezone.utc) - EPOCH) // timedelta(milliseconds=1)
"""Of a time that ids tell; they could count beyond the end of the calendar."""


def lowest_id_at(moment: datetime) -> uuid.UUID:
    """Return the lowest id that ``uuid7`` can make in the millisecond of an aware ``moment``.

    Rows whose primary key is at least this were created then or later. No id is of a time before
    ``EPOCH``.
    """
    milliseconds = max((moment - EPOCH) // timedelta(milliseconds=1), 0)
    return uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62)


def time_of(key: uuid.UUID) -> datetime:
    """Return the time at which ``uuid7`` made an id, to the millisecond."""
    return EPOCH + timedelta(milliseconds=min(key.int >> 80, _LAST_MILLISECOND))
