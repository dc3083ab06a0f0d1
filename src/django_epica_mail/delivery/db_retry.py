"""Goes on when something fails: with a write that is repeated, or with the parts of some work.

A write is repeated while the database is restarted or switched over, or grants no lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import Error, connections

from django_epica_mail.exceptions import is_passing, words_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 0.05, 1.0
"""Seconds between two tries; the pause doubles from the first to the second."""


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


class Errors:
    """Lets one part of some work fail without the others: collects errors, and raises the first.

    An error is raised at once where the others would only wait for the same database in vain, and
    inside an open transaction, which it has ended.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._first: Exception | None = None

    def __enter__(self) -> None:
        """Begin one part."""

    def is_of_one(self, error: Exception) -> bool:
        """Return whether an error may be one of this part alone."""
        database = connections[self._using]
        return not isinstance(error, Error) or not (
            database.in_atomic_block or database.connection is None or not database.is_usable()
        )

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception) or not self.is_of_one(error):
            return False
        logger.error("A part of the sweep failed (%s); the others go on.", type(error).__name__)
        self._first = self._first or _without_row(error)
        return True

    def raise_first(self) -> None:
        """Raise the first error, if any."""
        if self._first is not None:
            raise self._first


def _without_row(error: Exception) -> Exception:
    """Return an error of which the log of a task shows no row that the database has refused."""
    if not isinstance(error, Error) or error.__cause__ is None or is_passing(error):
        return error
    return type(error)(words_of(error))
