"""Policies of the standard library's e-mail, under which Django builds a mail with less ado.

Most of it is folding, and since Django 6.0 parsing, headers that are plain: short, printable ASCII.
Those need neither; all others are left to it.
"""

from __future__ import annotations

import re
from email.headerregistry import BaseHeader, HeaderRegistry
from email.policy import SMTP, Compat32, EmailPolicy, Policy
from functools import lru_cache
from typing import Any

import django

from django_epica_mail.messages import addresses

_IS_MODERN = django.VERSION >= (6, 0)
_LINE = 76
"""Characters that fit into a line for certain; the standard library folds after 78."""
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9.-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*>")
_OF_PARTS = frozenset({"content-type", "content-transfer-encoding", "mime-version"})
_OF_ADDRESSES = frozenset({"from", "to", "cc", "reply-to"})


def is_written_verbatim(name: str, value: object) -> bool:
    """Tell whether a header is written as it was given.

    It is plain, and, since Django 6.0 parses headers, of a kind of which that would change nothing.
    """
    if not _is_plain(name, value):
        return False
    if not _IS_MODERN:
        return True
    kind, text = name.lower(), str(value)
    if kind in _OF_ADDRESSES:
        return addresses.is_plain(text)
    if kind == "message-id":
        return _MESSAGE_ID.fullmatch(text) is not None
    return kind == "subject" or kind.startswith("x-")


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
        if is_written_verbatim(name, value):
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
        if is_written_verbatim(name, value):
            value = _PlainHeader(name, value)
        return super().header_store_parse(name, value)


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


POLICY: Policy = (
    _Policy(linesep=SMTP.linesep, header_factory=_Headers())
    if _IS_MODERN
    else _Compat(linesep=SMTP.linesep)
)
"""The policy under which a message of this Django is built."""
