"""What claims read again and again: a small table, kept for a second in each process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Generic, ParamSpec, TypeVar

from django.db import connections

KEPT_SECONDS = 1.0
"""Seconds for which a process uses the same reading."""

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class CachedReading(Generic[T]):
    """The state of a table as it was at most ``KEPT_SECONDS`` ago, for each database.

    What this process changes itself it sees at once: what changes the table is decorated with
    ``forgotten_by``. In a transaction, which may be rolled back, the table is always read.
    """

    def __init__(self, read: Callable[[str], T]) -> None:
        """Take the function that reads the table, given the alias of a database."""
        self._read = read
        self._kept: dict[str, tuple[float, T]] = {}
        self._changes = 0

    def current(self, using: str) -> T:
        """Return the kept state, or read it."""
        if connections[using].in_atomic_block:
            return self._read(using)
        now, changes = time.monotonic(), self._changes
        kept = self._kept.get(using)
        if kept is not None and now - kept[0] < KEPT_SECONDS:
            return kept[1]
        state = self._read(using)
        if changes == self._changes:  # no other thread has changed the table in the meantime
            self._kept[using] = now, state
        return state

    def forget(self) -> None:
        """Read the table the next time: it has changed, or a test has moved the clock."""
        self._changes += 1
        self._kept.clear()

    def forgotten_by(self, change: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function that changes the table, so that the next claim reads it."""

        @wraps(change)
        def changing(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return change(*args, **kwargs)
            finally:  # even then: a commit whose reply was lost has changed it
                self.forget()

        return changing
