"""Building the bytes of a mail: those that Django's SMTP backend puts on the wire, with less ado.

Building is the largest part of what a mail costs a worker. Most of it is the standard library
folding, and since Django 6.0 parsing, headers that are plain: short, printable ASCII. Those need
neither; all others are left to it.
"""

from __future__ import annotations

import random
import re
from email.headerregistry import BaseHeader, HeaderRegistry
from email.message import Message
from email.policy import SMTP, Compat32, EmailPolicy
from functools import lru_cache
from typing import Any

import django
from django.core.mail import EmailMessage

from django_epica_mail import addresses

_LINE = 76
"""Characters that fit into a line for certain; the standard library folds after 78."""
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9.-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*>")
_OF_PARTS = frozenset({"content-type", "content-transfer-encoding", "mime-version"})
_OF_ADDRESSES = frozenset({"from", "to", "cc", "reply-to"})


def build(message: EmailMessage) -> bytes:
    """Return the bytes of a message that Django itself builds; raise whatever it raises.

    They are those of Django's own backend but for the boundaries, which are random in both.
    """
    if django.VERSION >= (6, 0):
        mime: Message = message.message(policy=_POLICY)
        _choose_boundaries(mime)
        return mime.as_bytes()
    mime = message.message()
    _choose_boundaries(mime)
    mime.policy = _COMPAT
    return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]


def _choose_boundaries(mime: Message) -> None:
    """Give each multipart a boundary.

    Left to it, the standard library looks each through the whole text, by an expression compiled
    for this once. The form is its own; of 63 random bits, none is in the text.
    """
    for part in mime.walk():
        if part.get_content_maintype() == "multipart" and part.get_boundary() is None:
            part.set_boundary(f"==============={random.getrandbits(63):019d}==")


def _is_plain(name: str, value: object) -> bool:
    """Tell whether text is printable words that fit into one line and stand for themselves."""
    return (
        isinstance(value, str)
        and len(name) + len(value) < _LINE
        and _WORDS.fullmatch(value) is not None
        and "=?" not in value  # RFC 2047: the beginning of an encoded word
    )


class _Compat(Compat32):
    """The policy of Django 5.2's messages."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        if _is_plain(name, value):
            return f"{name}: {value}{self.linesep}".encode("ascii")
        return super().fold_binary(name, value)


class _PlainHeader(str):
    """A header that is kept, and written, as it was given."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, value: str) -> _PlainHeader:
        header = super().__new__(cls, value)
        header.name = name
        return header

    def fold(self, *, policy: EmailPolicy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


class _Policy(EmailPolicy):
    """The policy of Django 6's messages, ``email.policy.SMTP``."""

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        if _stands_for_itself(name, value):
            value = _PlainHeader(name, value)
        return super().header_store_parse(name, value)


def _stands_for_itself(name: str, value: object) -> bool:
    """Tell whether a plain header is of a kind of which parsing would change nothing."""
    if not _is_plain(name, value):
        return False
    kind, text = name.lower(), str(value)
    if kind in _OF_ADDRESSES:
        return addresses.is_plain(text)
    if kind == "message-id":
        return _MESSAGE_ID.fullmatch(text) is not None
    return kind == "subject" or kind.startswith("x-")


class _Headers(HeaderRegistry):
    """The standard library's headers, but each class, and what is said of each part, made once."""

    @lru_cache(maxsize=256)  # noqa: B019 - there is one registry
    def __getitem__(self, name: str) -> type[BaseHeader]:
        return super().__getitem__(name)

    def __call__(self, name: str, value: Any) -> BaseHeader:
        if name.lower() in _OF_PARTS and isinstance(value, str) and "boundary" not in value:
            return self._of_part(name, value)
        return super().__call__(name, value)

    @lru_cache(maxsize=256)  # noqa: B019
    def _of_part(self, name: str, value: str) -> BaseHeader:
        return super().__call__(name, value)


_COMPAT = _Compat()
_POLICY = _Policy(linesep=SMTP.linesep, header_factory=_Headers())
