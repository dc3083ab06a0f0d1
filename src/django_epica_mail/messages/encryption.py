"""Encryption at rest of stored messages and attachments.

The first of ``EPICA_MAIL["ENCRYPTION_KEYS"]`` encrypts; all of them decrypt. Without keys, content
is stored unencrypted. Content encrypted earlier stays readable as long as its key is listed.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import TYPE_CHECKING

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra, MissingKey

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_PREFIX = "fernet:"
"""Encrypted text starts with this; JSON never does."""


def is_on() -> bool:
    """Return whether new content is encrypted."""
    return bool(conf.get().encryption_keys)


def seal(text: str) -> str:
    """Return text as it is stored. Raises ``MissingExtra`` if ``cryptography`` is missing."""
    return _PREFIX + _cipher().encrypt(text.encode()).decode() if is_on() else text


def unseal(stored: str) -> str:
    """Return the text given to ``seal``, whether or not it is encrypted.

    Raises ``MissingKey`` if none of the keys decrypts it.
    """
    if not stored.startswith(_PREFIX):
        return stored
    return _decrypt(stored[len(_PREFIX) :].encode()).decode()


def seal_bytes(content: bytes) -> bytes:
    """Return bytes as they are stored; encrypted ones are longer.

    Bytes carry no prefix, because an attachment may start with any. The caller stores the original
    size, and ``unseal_bytes`` recognises encrypted bytes by it.
    """
    return _without_base64(_cipher().encrypt(content)) if is_on() else content


def unseal_bytes(stored: bytes, size: int) -> bytes:
    """Return the ``size`` bytes given to ``seal_bytes``.

    Raises ``MissingKey`` if none of the keys decrypts them.
    """
    return stored if len(stored) == size else _decrypt(_with_base64(stored))


def renew(stored: str) -> str:
    """Return stored text encrypted with the first key; the same object if it already is.

    Raises ``MissingKey`` if none of the keys decrypts it.
    """
    if stored.startswith(_PREFIX) and _uses_first_key(stored[len(_PREFIX) :].encode()):
        return stored
    return seal(unseal(stored))


def renew_bytes(stored: bytes, size: int) -> bytes:
    """Return stored bytes encrypted with the first key; the same object if they already are.

    Raises ``MissingKey`` if none of the keys decrypts them.
    """
    if len(stored) != size and _uses_first_key(_with_base64(stored)):
        return stored
    return seal_bytes(unseal_bytes(stored, size))


def _decrypt(token: bytes) -> bytes:
    if not is_on():
        raise MissingKey(
            "This content is encrypted, but EPICA_MAIL['ENCRYPTION_KEYS'] is empty: list the key "
            "that encrypted it."
        )
    from cryptography.fernet import InvalidToken

    try:
        return _cipher().decrypt(token)
    except InvalidToken:
        raise MissingKey(
            "This content is damaged, or encrypted with a key that EPICA_MAIL['ENCRYPTION_KEYS'] "
            "does not list: list that key again, after the one that encrypts."
        ) from None


def _uses_first_key(token: bytes) -> bool:
    from cryptography.fernet import InvalidToken

    try:
        _cipher_for(conf.get().encryption_keys[:1]).decrypt(token)
    except InvalidToken:
        return False
    return True


def _cipher() -> MultiFernet:
    return _cipher_for(conf.get().encryption_keys)


@lru_cache(maxsize=4)
def _cipher_for(keys: tuple[str, ...]) -> MultiFernet:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise MissingExtra(
            "EPICA_MAIL['ENCRYPTION_KEYS'] needs the package cryptography: "
            'pip install "django-epica-mail[encryption]", or remove the keys.'
        ) from error
    return MultiFernet([Fernet(key) for key in keys])


def _without_base64(token: bytes) -> bytes:
    """Return a token's raw bytes: Base64 would make every attachment a third larger."""
    return base64.urlsafe_b64decode(token)


def _with_base64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw)
