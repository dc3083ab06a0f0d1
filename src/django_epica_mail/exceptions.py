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
