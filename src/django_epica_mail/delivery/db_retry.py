"""Repeats a write while the database fails: restarted, disconnected, or a lock not granted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.05, 1.0
"""Seconds between two tries; the pause doubles from the first to the second."""


def retry_on_database_errors(operation: Callable[[], T], *, until: float, using: str) -> T:
    """Call ``operation`` until the database does not fail; return what it returns.

    ``operation`` must be a transaction of its own and safe to repeat after its commit, because the
    reply to a commit can be lost. ``until`` is the monotonic second after which the error is
    raised. Inside an open transaction the error is raised at once.
    """
    pause = _SHORTEST
    while True:
        try:
            return operation()
        except (OperationalError, InterfaceError):
            if time.monotonic() + pause >= until or connections[using].in_atomic_block:
                raise
            connections[using].close()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
