"""Repeats a write while the database fails: restarted, switched over, or a lock not granted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import Error, InterfaceError, OperationalError, connections

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.05, 1.0
"""Seconds between two tries; the pause doubles from the first to the second."""

_PASSING_CLASSES = (OperationalError, InterfaceError)
"""Connection lost, server shut down or out of resources, deadlock, lock or statement time-out."""

_PASSING_SQLSTATES = {
    "25006": "read-only transaction: the server became a standby in a switch-over",
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "lock not available",
    "57P01": "administrator shutdown",
    "57P02": "crash shutdown",
    "57P03": "cannot connect now: the server starts or recovers",
}
"""SQLSTATEs of PostgreSQL (appendix A of its documentation) that pass, whatever their class."""

_PASSING_MYSQL_ERRORS = {
    1205: "lock wait time-out",
    1213: "deadlock",
    1290: "the server runs with --read-only",
    1792: "read-only transaction",
    1836: "read-only mode",
}
"""Error numbers of MySQL and MariaDB that pass, whatever their class."""


def is_passing(error: Error) -> bool:
    """Return whether a database error may be over when the operation is repeated."""
    if isinstance(error, _PASSING_CLASSES):
        return True
    cause = error.__cause__
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = error.args[0] if error.args else None
    return sqlstate in _PASSING_SQLSTATES or number in _PASSING_MYSQL_ERRORS


def retry_on_database_errors(operation: Callable[[], T], *, until: float, using: str) -> T:
    """Call ``operation`` until the database does not fail; return what it returns.

    ``operation`` must be a transaction of its own and safe to repeat after its commit, because the
    reply to a commit can be lost. ``until`` is the monotonic second after which the error is
    raised. An error that no repetition cures is raised at once, as is any inside an open
    transaction.
    """
    pause = _SHORTEST
    while True:
        try:
            return operation()
        except Error as error:
            is_too_late = time.monotonic() + pause >= until
            if is_too_late or connections[using].in_atomic_block or not is_passing(error):
                raise
            connections[using].close()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
