"""The exceptions of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.mail import message as django_mail

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
