"""The exceptions of the package, and what those of the database mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.mail import message as django_mail
from django.db import Error, InterfaceError, OperationalError

# Contact forms catch BadHeaderError: a class of its own in Django 5.2, later ValueError itself.
_BadHeader: type[ValueError] = getattr(django_mail, "BadHeaderError", ValueError)


class EpicaMailError(Exception):
    """Base class of the package's exceptions."""


class InvalidMessage(EpicaMailError, ValueError):  # noqa: N818
    """A message that cannot be sent. Raised in the caller, before anything is queued."""


class InvalidHeader(InvalidMessage, _BadHeader):  # type: ignore[misc, valid-type]
    """A message header that would inject further headers."""


@contextmanager
def as_invalid_message(what: str) -> Iterator[None]:
    """Raise ``InvalidMessage`` for nesting too deep for Python's stack and numbers out of range."""
    try:
        yield
    except RecursionError:
        # Not chained: the traceback has a thousand lines.
        raise InvalidMessage(
            f"{what} is nested too deeply to be processed: flatten its parts, tags or values."
        ) from None
    except OverflowError as error:
        raise InvalidMessage(
            f"{what} has a number or time out of range ({error}): use a smaller one."
        ) from None


class UnstorableMessage(EpicaMailError, ValueError):  # noqa: N818
    """A message with something that cannot be restored unchanged from the database."""


class UnreadableEnvelope(EpicaMailError, ValueError):  # noqa: N818
    """A stored message that is incomplete, or that this version of the package cannot read."""


class MissingKey(UnreadableEnvelope):
    """A stored message that none of the site's keys decrypts."""


class DeliveryFailed(EpicaMailError):  # noqa: N818
    """A mail that was accepted for no recipient. Raised by ``AsyncResult.get()``.

    ``kind`` is a value of ``retry.Kind`` or, if the mail was not tried, its status. ``code`` is the
    server's reply code and ``enhanced_code`` its enhanced status code (``"5.1.1"``, RFC 3463), if
    it gave them. Addresses and the server's text are left out, because results may be read by
    anyone who can read logs; they are in the mail's row.
    """

    def __init__(
        self, kind: str, code: int | None = None, enhanced_code: str | None = None
    ) -> None:
        super().__init__(kind, code, enhanced_code)  # from which Celery makes it again
        self.kind = kind
        self.code = code
        self.enhanced_code = enhanced_code

    def __str__(self) -> str:
        codes = " ".join(str(it) for it in (self.code, self.enhanced_code) if it is not None)
        return f"{self.kind} ({codes})" if codes else self.kind


class Veto(EpicaMailError):  # noqa: N818
    """A refusal to send a mail, raised by a receiver of ``signals.before_send``.

    ``reason`` is stored in the mail's row.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MissingExtra(EpicaMailError, ImportError):  # noqa: N818
    """A feature whose package is not installed; the message names the extra to install."""


class TokenRefused(EpicaMailError):  # noqa: N818
    """No access token for a transport; the message says why and what to do, without any secret."""


class MailboxError(EpicaMailError):
    """The mailbox for bounces cannot be read; the message says why, without any secret."""


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


def words_of(error: Error) -> str:
    """Return what may be logged of a database error: its class, and the constraint that it names.

    Its own words may quote the whole row, with addresses, subject and content.
    """
    constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
    return f"{type(error).__name__}, {constraint}" if constraint else type(error).__name__
