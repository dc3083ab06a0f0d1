"""Encryption at rest: what the content of mail looks like in the database.

The first of ``EPICA_MAIL["ENCRYPTION_KEYS"]`` encrypts, all of them decrypt. Without keys, what is
written is what was given; what was encrypted before stays readable as long as its key is listed.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import TYPE_CHECKING

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra, MissingKey

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_MARK = "fernet:"
"""What encrypted text begins with, and JSON never does."""


def is_on() -> bool:
    """Tell whether what is stored from now on is encrypted."""
    return bool(conf.get().encryption_keys)


def seal(text: str) -> str:
    """Return text as it is stored. Raises ``MissingExtra`` where ``cryptography`` is missing."""
    return _MARK + _cipher().encrypt(text.encode()).decode() if is_on() else text


def unseal(stored: str) -> str:
    """Return the text that ``seal`` was given, encryption being on or off by now.

    Raises ``MissingKey`` for what none of the keys decrypts.
    """
    if not stored.startswith(_MARK):
        return stored
    return _decrypt(stored[len(_MARK) :].encode()).decode()


def seal_bytes(content: bytes) -> bytes:
    """Return bytes as they are stored; if encrypted, they are more.

    Bytes carry no mark, for an attachment may begin with any. Whoever stores them keeps their
    number, by which ``unseal_bytes`` knows.
    """
    return _raw(_cipher().encrypt(content)) if is_on() else content


def unseal_bytes(stored: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that ``seal_bytes`` was given.

    Raises ``MissingKey`` for what none of the keys decrypts.
    """
    return stored if len(stored) == size else _decrypt(_token(stored))


def renew(stored: str) -> str:
    """Return stored text encrypted with the first key; itself if it already is.

    Raises ``MissingKey`` for what none of the keys decrypts.
    """
    if stored.startswith(_MARK) and _is_current(stored[len(_MARK) :].encode()):
        return stored
    return seal(unseal(stored))


def renew_bytes(stored: bytes, size: int) -> bytes:
    """Return stored bytes encrypted with the first key; themselves if they already are.

    Raises ``MissingKey`` for what none of the keys decrypts.
    """
    if len(stored) != size and _is_current(_token(stored)):
        return stored
    return seal_bytes(unseal_bytes(stored, size))


def _decrypt(token: bytes) -> bytes:
    if not is_on():
        raise MissingKey(
            "This content is encrypted, and EPICA_MAIL['ENCRYPTION_KEYS'] is empty: list the key "
            "that encrypted it."
        )
    from cryptography.fernet import InvalidToken

    try:
        return _cipher().decrypt(token)
    except InvalidToken:
        raise MissingKey(
            "This content is encrypted with a key that EPICA_MAIL['ENCRYPTION_KEYS'] does not "
            "list, or it is damaged: list the key again, after the one that encrypts."
        ) from None


def _is_current(token: bytes) -> bool:
    from cryptography.fernet import InvalidToken

    try:
        _of_keys(conf.get().encryption_keys[:1]).decrypt(token)
    except InvalidToken:
        return False
    return True


def _cipher() -> MultiFernet:
    return _of_keys(conf.get().encryption_keys)


@lru_cache(maxsize=4)
def _of_keys(keys: tuple[str, ...]) -> MultiFernet:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise MissingExtra(
            "EPICA_MAIL['ENCRYPTION_KEYS'] needs the package cryptography: "
            'pip install "django-epica-mail[encryption]", or remove the keys.'
        ) from error
    return MultiFernet([Fernet(key) for key in keys])


def _raw(token: bytes) -> bytes:
    """Return a token without its Base64, which would make every attachment a third larger."""
    return base64.urlsafe_b64decode(token)


def _token(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw)
