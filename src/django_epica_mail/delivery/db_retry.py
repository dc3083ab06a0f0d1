"""Writing to a database that fails for a moment: restarted, cut off, or taken by another's lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.05, 1.0


def retry_on_database_errors(operation: Callable[[], T], *, until: float, using: str) -> T:
    """Run ``operation`` again while the database fails; return what it returns.

    It must be a transaction of its own that may be repeated after its commit, for the answer to a
    commit can be lost. ``until`` is the monotonic second after which the error is raised.
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
