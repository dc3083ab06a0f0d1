"""Policies of the standard library's ``email`` package under which Django builds a mail faster.

Most of the cost is folding (and, since Django 6.0, parsing) headers that need neither: short,
printable ASCII. These policies write such headers unchanged and pass all others to the standard
library.
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
_MAX_LINE_LENGTH = 76
"""Characters that certainly fit on a line; the standard library folds after 78."""
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9.-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*>")
_PART_HEADERS = frozenset({"content-type", "content-transfer-encoding", "mime-version"})
_ADDRESS_HEADERS = frozenset({"from", "to", "cc", "reply-to"})


def is_written_verbatim(name: str, value: object) -> bool:
    """Return whether a header is written exactly as given.

    It must be plain. Since Django 6.0 parses headers, its kind must also be one that parsing
    leaves unchanged.
    """
    if not _is_plain(name, value):
        return False
    if not _IS_MODERN:
        return True
    kind, text = name.lower(), str(value)
    if kind in _ADDRESS_HEADERS:
        return addresses.is_plain(text)
    if kind == "message-id":
        return _MESSAGE_ID.fullmatch(text) is not None
    return kind == "subject" or kind.startswith("x-")


def _is_plain(name: str, value: object) -> bool:
    """Return whether a value is printable ASCII words on one line, none of them encoded."""
    return (
        isinstance(value, str)
        and len(name) + len(value) < _MAX_LINE_LENGTH
        and _WORDS.fullmatch(value) is not None
        and "=?" not in value  # RFC 2047: the start of an encoded word
    )


class _LegacyPolicy(Compat32):
    """The policy of Django 5.2's messages."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        if is_written_verbatim(name, value):
            return f"{name}: {value}{self.linesep}".encode("ascii")
        return super().fold_binary(name, value)


class _ModernPolicy(EmailPolicy):
    """The policy of Django 6's messages, ``email.policy.SMTP``."""

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        if is_written_verbatim(name, value):
            value = _VerbatimHeader(name, value)
        return super().header_store_parse(name, value)


class _VerbatimHeader(str):
    """A header kept, and written, exactly as given."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, value: str) -> _VerbatimHeader:
        header = super().__new__(cls, value)
        header.name = name
        return header

    def fold(self, *, policy: EmailPolicy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


class _CachingRegistry(HeaderRegistry):
    """The standard library's header registry, with header classes and part headers cached."""

    @lru_cache(maxsize=256)  # noqa: B019 - there is only one registry
    def __getitem__(self, name: str) -> type[BaseHeader]:
        return super().__getitem__(name)

    def __call__(self, name: str, value: Any) -> BaseHeader:
        if name.lower() in _PART_HEADERS and isinstance(value, str) and "boundary" not in value:
            return self._part_header(name, value)
        return super().__call__(name, value)

    @lru_cache(maxsize=256)  # noqa: B019
    def _part_header(self, name: str, value: str) -> BaseHeader:
        return super().__call__(name, value)


POLICY: Policy = (
    _ModernPolicy(linesep=SMTP.linesep, header_factory=_CachingRegistry())
    if _IS_MODERN
    else _LegacyPolicy(linesep=SMTP.linesep)
)
"""The policy under which this version of Django builds messages."""
