"""Authenticated encryption at rest of stored messages and attachments.

The first of ``EPICA_MAIL["ENCRYPTION_KEYS"]`` encrypts; all of them decrypt. Without keys, content
is stored unencrypted. Content encrypted earlier stays readable as long as its key is listed.

What is sealed is bound to its place, such as ``envelope/<id>``: it is encrypted with a key derived
from the site's key and that place (HMAC-SHA256), so that it decrypts nowhere else. Content stored
by versions before this one is bound to no place. With ``ENCRYPTION_REQUIRED``, content that is not
encrypted or not bound is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra, MissingKey, UnreadableEnvelope

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_PREFIX = "fernet:"
"""Encrypted text starts with this, the place it is bound to and a colon; JSON never does."""

_UNBOUND = ""
"""The place of content that is bound to none."""

_PURPOSE = b"django_epica_mail/"


def envelope_of(email_id: object) -> str:
    """Return the place of a mail's envelope."""
    return f"envelope/{email_id}"


def payload_of(batch_id: object) -> str:
    """Return the place of the entries of a bulk call."""
    return f"payload/{batch_id}"


def part_of(part_id: object) -> str:
    """Return the place of a part of the entries of a bulk call."""
    return f"part/{part_id}"


def refusal_of(batch_id: object, index: int) -> str:
    """Return the place of the reason why a bulk call refused an entry."""
    return f"refusal/{batch_id}/{index}"


def attachment_of(digest: str) -> str:
    """Return the place of an attachment: its digest, because several mails may share its row."""
    return f"attachment/{digest}"


def is_on() -> bool:
    """Return whether new content is encrypted."""
    return bool(conf.get().encryption_keys)


def is_sealed(stored: str) -> bool:
    """Return whether stored text is encrypted."""
    return stored.startswith(_PREFIX)


def seal(text: str, place: str) -> str:
    """Return text as it is stored in one place, such as ``envelope/<id>``.

    Raises ``MissingExtra`` if ``cryptography`` is missing.
    """
    if not is_on():
        return text
    token = _cipher(place).encrypt(text.encode()).decode()
    return f"{_PREFIX}{place}:{token}" if place else f"{_PREFIX}{token}"


def unseal(stored: str, place: str | None = None) -> str:
    """Return the text given to ``seal``, whether or not it is encrypted.

    ``place`` is where it was found; ``None`` accepts text of any place. Raises ``MissingKey`` if
    none of the keys decrypts it, if it belongs to another place, and, with ``ENCRYPTION_REQUIRED``,
    if it is not encrypted.
    """
    if not stored.startswith(_PREFIX):
        _refuse_if_required("is not encrypted")
        return stored
    found, token = _split(stored)
    if not found:
        _refuse_if_required("is bound to no row")
    elif place not in (None, found):
        raise MissingKey("This content was encrypted for another row: somebody has moved it.")
    return _decrypt(token.encode(), found).decode()


def reseal(text: str, stored: str) -> str:
    """Return text sealed for the place of the stored text that it replaces."""
    return seal(text, _split(stored)[0])


def seal_bytes(content: bytes, place: str) -> bytes:
    """Return bytes as they are stored in one place; encrypted ones are longer.

    Bytes carry no prefix, because an attachment may start with any. The caller stores the original
    size, and ``unseal_bytes`` recognises encrypted bytes by it.
    """
    return _without_base64(_cipher(place).encrypt(content)) if is_on() else content


def unseal_bytes(stored: bytes, size: int, place: str) -> bytes:
    """Return the ``size`` bytes given to ``seal_bytes``.

    Raises ``MissingKey`` as ``unseal`` does.
    """
    if len(stored) == size:
        _refuse_if_required("is not encrypted")
        return stored
    token = _with_base64(stored)
    try:
        return _decrypt(token, place)
    except MissingKey:
        if not is_on() or conf.get().encryption_required:
            raise
        return _decrypt(token, _UNBOUND)


def unseal_attachment(stored: bytes, size: int, digest: str) -> bytes:
    """Return an attachment's bytes.

    Raises ``MissingKey`` as ``unseal`` does, and ``UnreadableEnvelope`` if their SHA-256 is not
    ``digest``, by which the envelope refers to them.
    """
    data = unseal_bytes(stored, size, attachment_of(digest))
    if hashlib.sha256(data).hexdigest() != digest:
        raise UnreadableEnvelope(
            f"The content of the attachment with the digest {digest} does not match it: it is "
            "damaged, or somebody has replaced it."
        )
    return data


def renew(stored: str, place: str) -> str:
    """Return stored text encrypted with the first key; the same object if it already is.

    Raises ``MissingKey`` as ``unseal`` does.
    """
    if stored.startswith(_PREFIX):
        found, token = _split(stored)
        if found == place and _uses_first_key(token.encode(), place):
            return stored
    return seal(unseal(stored, place), place)


def renew_bytes(stored: bytes, size: int, place: str) -> bytes:
    """Return stored bytes encrypted with the first key; the same object if they already are.

    Raises ``MissingKey`` as ``unseal`` does.
    """
    if len(stored) != size and _uses_first_key(_with_base64(stored), place):
        return stored
    return seal_bytes(unseal_bytes(stored, size, place), place)


def _split(stored: str) -> tuple[str, str]:
    """Return the place that stored text is bound to, and its token."""
    place, _, token = stored.removeprefix(_PREFIX).rpartition(":")
    return (place, token) if stored.startswith(_PREFIX) else (_UNBOUND, "")


def _refuse_if_required(why: str) -> None:
    if conf.get().encryption_required:
        raise MissingKey(
            f"This content {why}, and EPICA_MAIL['ENCRYPTION_REQUIRED'] is set: somebody has "
            "replaced it, or it was stored before the setting. In the second case turn the setting "
            "off, run 'epica_mail reencrypt', and turn it on again."
        )


def _decrypt(token: bytes, place: str) -> bytes:
    if not is_on():
        raise MissingKey(
            "This content is encrypted, but EPICA_MAIL['ENCRYPTION_KEYS'] is empty: list the key "
            "that encrypted it."
        )
    from cryptography.fernet import InvalidToken

    try:
        return _cipher(place).decrypt(token)
    except InvalidToken:
        raise MissingKey(
            "This content is damaged, or encrypted with a key that EPICA_MAIL['ENCRYPTION_KEYS'] "
            "does not list: list that key again, after the one that encrypts."
        ) from None


def _uses_first_key(token: bytes, place: str) -> bool:
    from cryptography.fernet import InvalidToken

    try:
        _cipher_for(conf.get().encryption_keys[:1], place).decrypt(token)
    except InvalidToken:
        return False
    return True


def _cipher(place: str) -> MultiFernet:
    return _cipher_for(conf.get().encryption_keys, place)


@lru_cache(maxsize=4)
def _cipher_for(keys: tuple[str, ...], place: str) -> MultiFernet:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise MissingExtra(
            "EPICA_MAIL['ENCRYPTION_KEYS'] needs the package cryptography: "
            'pip install "django-epica-mail[encryption]", or remove the keys.'
        ) from error
    return MultiFernet([Fernet(_derived(key, place) if place else key) for key in keys])


def _derived(key: str, place: str) -> bytes:
    """Return the Fernet key for one place: 32 bytes that reveal nothing of the site's key."""
    secret = base64.urlsafe_b64decode(key)
    return base64.urlsafe_b64encode(hmac.digest(secret, _PURPOSE + place.encode(), "sha256"))


def _without_base64(token: bytes) -> bytes:
    """Return a token's raw bytes: Base64 would make every attachment a third larger."""
    return base64.urlsafe_b64decode(token)


def _with_base64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw)
