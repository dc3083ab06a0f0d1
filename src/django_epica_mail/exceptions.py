"""The errors this package raises."""

from __future__ import annotations

from django.core.mail import message as django_mail

# Contact forms rely on `except BadHeaderError`: a class on Django 5.2, ValueError itself since.
_BadHeader: type[ValueError] = getattr(django_mail, "BadHeaderError", ValueError)


class EpicaMailError(Exception):
    """Base class of every error this package raises."""


class InvalidMessage(EpicaMailError, ValueError):  # noqa: N818
    """A message cannot be sent as it is: refused in the caller, not found out by the worker."""


class InvalidHeader(InvalidMessage, _BadHeader):  # type: ignore[misc, valid-type]
    """A header of a message would let its writer add others (header injection)."""


class UnstorableMessage(EpicaMailError, ValueError):  # noqa: N818
    """A message holds something that cannot be kept in the database and come back the same."""


class UnreadableEnvelope(EpicaMailError, ValueError):  # noqa: N818
    """A stored message cannot be read by this version of the package, or is incomplete."""


class MissingKey(UnreadableEnvelope):
    """A stored message is encrypted, and none of the site's keys decrypts it."""


class DeliveryFailed(EpicaMailError):  # noqa: N818
    """A mail was accepted for nobody: what ``AsyncResult.get()`` raises.

    ``kind`` is a value of ``retry.Kind`` or, of mail not tried, its status; ``code`` the server's
    reply code, if there was one. It names no address and repeats none of the server's words, for
    results are kept where logs are read.
    """

    def __init__(self, kind: str, code: int | None = None) -> None:
        super().__init__(kind, code)
        self.kind = kind
        self.code = code

    def __str__(self) -> str:
        return self.kind if self.code is None else f"{self.kind} ({self.code})"


class Veto(EpicaMailError):  # noqa: N818
    """A mail is not to be sent: what a receiver of ``signals.before_send`` raises to stop it.

    ``reason`` is kept in the mail's row, for people who ask.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MissingExtra(EpicaMailError, ImportError):  # noqa: N818
    """A feature needs a package that is not installed; the message names the extra."""
