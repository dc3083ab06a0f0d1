"""Return addresses that say, signed, which e-mail a bounce is about (VERP).

A bounce goes to the sender of the SMTP envelope. Where that address holds the e-mail's id and a
signature of the site, whoever writes there has seen the e-mail: only those it was sent to, and
those they showed its headers. What several recipients have seen is signed otherwise: once one of
them is erased, the rows do not say how many they were.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage
from django.utils.crypto import constant_time_compare, salted_hmac

from django_epica_mail import conf
from django_epica_mail.models import EmailLog
from django_epica_mail.transports import config as transports

_SALT, _SHARED_SALT = "django_epica_mail.verp", "django_epica_mail.verp.shared"
_ID_BYTES = 16
_SIGNATURE_BYTES = 10
"""Of an HMAC-SHA-256: 80 bits, the least that RFC 2104, section 5, allows. Each guess costs a mail
to the mailbox."""

_TOKEN = re.compile(
    rf"(?<![A-Za-z0-9])[A-Za-z2-7]{{{transports.RETURN_ID_LENGTH}}}(?![A-Za-z0-9])", re.ASCII
)
_MOST_TOKENS = 10
"""Tokens of one report that are verified."""


def set_return_address(message: EmailMessage, mail: EmailLog) -> None:
    """Give a message the return address that its transport's option ``envelope_from`` makes.

    Mail that ``REDIRECT_ALL_TO`` diverts gets none: its bounces do not concern its recipients.
    """
    pattern = transports.envelope_from(mail.transport)
    if pattern and conf.get().redirect_all_to is None:
        is_shared = len(message.recipients()) > 1
        its_own = address(pattern, mail.pk, is_shared=is_shared)
        setattr(message, transports.ENVELOPE_FROM, its_own)


def address(pattern: str, email_id: UUID, *, is_shared: bool = False) -> str:
    """Return the return address of an e-mail, which several recipients see if it ``is_shared``.

    ``pattern`` is an address with ``{id}``. Base32 stands for it, because servers may change the
    case of a local part, and the signature is that of the first key, ``SECRET_KEY``.
    """
    salt = _SHARED_SALT if is_shared else _SALT
    signed = email_id.bytes + _signature(email_id, settings.SECRET_KEY, salt)
    token = base64.b32encode(signed).decode("ascii").rstrip("=").lower()
    return pattern.replace("{id}", token)


def find(texts: Iterable[str]) -> Iterator[tuple[UUID, bool]]:
    """Yield what signed return addresses in foreign text say, in their order.

    That is the id of an e-mail, and whether several recipients saw the address. It may have been
    rewritten on the way, by SRS or BATV for instance, which keep it as a part of theirs. Signatures
    by ``SECRET_KEY_FALLBACKS`` count as well.
    """
    seen: set[str] = set()
    for text in texts:
        for token in _TOKEN.findall(text):
            if token in seen:
                continue
            seen.add(token)
            if len(seen) > _MOST_TOKENS:
                return
            said = _read(token)
            if said is not None:
                yield said


def _read(token: str) -> tuple[UUID, bool] | None:
    """Return what a token says, ``None`` if its signature is not ours."""
    padded = token.upper() + "=" * (-len(token) % 8)
    try:
        signed = base64.b32decode(padded)
    except binascii.Error:
        return None
    email_id, signature = UUID(bytes=signed[:_ID_BYTES]), signed[_ID_BYTES:]
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    for salt, is_shared in ((_SALT, False), (_SHARED_SALT, True)):
        is_ours = [constant_time_compare(signature, _signature(email_id, it, salt)) for it in keys]
        if any(is_ours):
            return email_id, is_shared
    return None


def _signature(email_id: UUID, key: str | bytes, salt: str) -> bytes:
    made = salted_hmac(salt, email_id.bytes, secret=key, algorithm="sha256")
    return made.digest()[:_SIGNATURE_BYTES]
