"""Guards: how large a mail may be, and whom a site that is not the real one may write to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parseaddr
from fnmatch import fnmatchcase
from typing import Any

from django.core.mail import EmailMessage

from django_epica_mail import conf
from django_epica_mail.exceptions import InvalidMessage
from django_epica_mail.retry import Failure, Kind
from django_epica_mail.serialization import RawMessage

_NAMED = 3
"""How many of the true recipients the subject of a redirected mail names."""
_BARRED = Failure(
    kind=Kind.PERMANENT,
    reply="Not sent: EPICA_MAIL['ALLOWED_RECIPIENTS'] does not allow this address.",
)


@dataclass(frozen=True, slots=True)
class Handed:
    """What a transport is handed of a mail."""

    tried: list[int]
    """The positions of the recipients that a try concerns."""
    asked: list[int]
    """Of these, those whose addresses the transport is given, in its order."""
    barred: dict[int, Failure] = field(default_factory=dict)
    """Those that the site's settings keep from it."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody is left to send to."""
        return bool(self.tried) and len(self.barred) == len(self.tried)


def check_recipients(count: int) -> None:
    """Refuse a mail to more recipients than ``MAX_RECIPIENTS``, with ``InvalidMessage``."""
    most = conf.get().max_recipients
    if most is not None and count > most:
        raise InvalidMessage(
            f"The message has {count} recipients, and EPICA_MAIL['MAX_RECIPIENTS'] allows {most}: "
            "send a mail to each of them (enqueue_many, send_bulk_templated_emails), or raise it."
        )


def check_size(size: int) -> None:
    """Refuse a mail of more bytes than ``MAX_MESSAGE_BYTES``, with ``InvalidMessage``."""
    most = conf.get().max_message_bytes
    if most is not None and size > most:
        raise InvalidMessage(
            f"The message has {size} bytes, and EPICA_MAIL['MAX_MESSAGE_BYTES'] allows {most}: "
            "send a link to what is large, or raise it."
        )


def apply(message: EmailMessage, tried: list[int]) -> Handed:
    """Make a message fit to leave this site, and return whom it is still for.

    ``message`` is changed. ``tried`` are the positions of the addresses in its ``recipients()``.
    Comes last before the transport, so that it holds for every row, however it came here: with a
    copy of another site's database, for one.
    """
    settings = conf.get()
    if settings.redirect_all_to is not None:
        _redirect(message, settings.redirect_all_to)
        # What the server says of these addresses says nothing of the true recipients.
        return Handed(tried, [])
    if settings.allowed_recipients is None:
        return Handed(tried, tried)
    barred = {
        position: _BARRED
        for position, address in zip(tried, message.recipients(), strict=True)
        if not is_allowed(address)
    }
    if barred:
        _narrow(message)
    return Handed(tried, [position for position in tried if position not in barred], barred)


def is_allowed(recipient: object) -> bool:
    """Tell whether ``ALLOWED_RECIPIENTS`` lets mail go to an address; what is none, it does not."""
    allowed = conf.get().allowed_recipients
    if allowed is None:
        return True
    address = parseaddr(str(recipient))[1].lower()
    local, _, domain = address.rpartition("@")
    return bool(local and domain) and any(
        fnmatchcase(address if "@" in pattern else domain, pattern.lower()) for pattern in allowed
    )


def _redirect(message: EmailMessage, addresses: Sequence[str]) -> None:
    meant = [parseaddr(str(it))[1] or str(it) for it in message.recipients()]
    names = ", ".join(meant[:_NAMED])
    others = f" and {len(meant) - _NAMED} more" if len(meant) > _NAMED else ""
    words = f"[to {names}{others}]"
    if isinstance(message, RawMessage):
        message.prefix_subject(words)
    message.subject = f"{words} {message.subject}"
    for name in [name for name in message.extra_headers if name.lower() in ("to", "cc", "bcc")]:
        del message.extra_headers[name]
    message.to, message.cc, message.bcc = list(addresses), [], []
    _set_recipients(message, list(addresses))


def _narrow(message: EmailMessage) -> None:
    """Leave a message those recipients that are allowed, in the lists that providers read too."""
    everyone = message.recipients()
    message.to, message.cc, message.bcc = (
        [address for address in addresses or () if is_allowed(address)]
        for addresses in (message.to, message.cc, message.bcc)
    )
    _set_recipients(message, [address for address in everyone if is_allowed(address)])


def _set_recipients(message: Any, addresses: list[str]) -> None:
    message.recipients = lambda: addresses
