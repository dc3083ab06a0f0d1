"""Building the bytes of a mail: those that Django's SMTP backend puts on the wire, with less ado.

Building is the largest part of what a mail costs a worker. An ordinary one, text with alternatives,
is written outright; any other is built by Django, under policies that skip what costs most.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from email.headerregistry import AddressHeader
from email.message import EmailMessage as Part
from email.message import Message
from email.utils import format_datetime, formatdate
from functools import cache, lru_cache
from typing import NamedTuple

import django
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.message import forbid_multi_line_headers
from django.utils.timezone import get_current_timezone

from django_epica_mail.transports import header_folding

if django.VERSION < (6, 0):
    from django.core.mail.message import forbid_multi_line_headers

_IS_MODERN = django.VERSION >= (6, 0)
_ALTERNATIVE = getattr(EmailMultiAlternatives, "alternative_subtype", None)
_MIMETYPE = re.compile(r"text/[a-z]{1,20}")
_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_LONGEST = 998
"""Bytes in a line (RFC 5322, section 2.1.1); text with a longer one is encoded by Django 5.2."""
_VERSION = "MIME-Version: 1.0\r\n"
_WRITTEN_FIRST = frozenset({"from", "to", "cc", "reply-to"})
_LEFT_TO_DJANGO = frozenset(
    {"subject", "bcc", "mime-version", "content-type", "content-transfer-encoding"}
)


class _NotSimple(Exception):  # noqa: N818 - it is an answer
    """There is something in a message about which Django has to be asked."""


class _Text(NamedTuple):
    """A text as it is encoded for the wire."""

    mimetype: str
    encoding: str
    """Its Content-Transfer-Encoding."""
    content: bytes


def write_simple(message: EmailMessage, boundary: str) -> bytes | None:
    """Return the bytes of a message as Django writes them, or ``None`` if it is not ordinary.

    Raises what Django raises for an impossible header.
    """
    try:
        texts = _texts(message)
        headers = b"".join(_line(name, value) for name, value in _headers(message))
    except _NotSimple:
        return None
    if len(texts) == 1:
        return b"".join([_about(texts[0]), headers, b"\r\n", texts[0].content])
    kind = f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"\r\n'
    pieces = [(_VERSION + kind if _IS_MODERN else kind + _VERSION).encode(), headers]
    for text in texts:
        # Django 6 gives the version to the message and not to the body, which had it before.
        about = _about(text, with_version=not (_IS_MODERN and text is texts[0]))
        pieces += [f"\r\n--{boundary}\r\n".encode(), about, b"\r\n", text.content]
    return b"".join([*pieces, f"\r\n--{boundary}--\r\n".encode()])


def new_boundary() -> str:
    """Return a boundary in the standard library's form; its 63 random bits are in no text."""
    return f"==============={random.getrandbits(63):019d}=="


def _texts(message: EmailMessage) -> list[_Text]:
    """Return the body and its alternatives."""
    alternatives = getattr(message, "alternatives", None) or []
    if (
        message.attachments
        or message.encoding
        or settings.DEFAULT_CHARSET != "utf-8"
        or getattr(message, "alternative_subtype", _ALTERNATIVE) != _ALTERNATIVE
        or (alternatives and not message.body)
    ):
        raise _NotSimple
    texts = [_text(f"text/{message.content_subtype}", message.body)]
    return texts + [_text(mimetype, content) for content, mimetype in alternatives]


def _text(mimetype: str, content: object) -> _Text:
    if not (isinstance(content, str) and _MIMETYPE.fullmatch(mimetype)):
        raise _NotSimple
    try:
        data = content.encode()
    except UnicodeEncodeError:
        raise _NotSimple from None
    lines = data.splitlines()
    longest = max(map(len, lines), default=0)
    encoding = "7bit" if data.isascii() else "8bit"
    if not _IS_MODERN:
        if longest > _LONGEST:
            raise _NotSimple
        return _Text(mimetype, encoding, _with_crlf(data))
    if longest > (header_folding.POLICY.max_line_length or 0):
        part = Part(policy=header_folding.POLICY)
        part.set_content(content, subtype=mimetype.removeprefix("text/"), charset="utf-8")
        payload = str(part.get_payload()).encode("ascii")
        return _Text(mimetype, part["Content-Transfer-Encoding"], _with_crlf(payload))
    return _Text(mimetype, encoding, b"\r\n".join(lines) + b"\r\n")


def _with_crlf(data: bytes) -> bytes:
    """Return text with the ends of lines that SMTP has."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _about(text: _Text, *, with_version: bool = True) -> bytes:
    """Return the headers that say what a text is, in Django's order."""
    version = _VERSION if with_version else ""
    kind = f'Content-Type: {text.mimetype}; charset="utf-8"\r\n'
    encoding = f"Content-Transfer-Encoding: {text.encoding}\r\n"
    about = kind + encoding + version if _IS_MODERN else kind + version + encoding
    return about.encode()


def _headers(message: EmailMessage) -> Iterator[tuple[str, object]]:
    """Yield all other headers, in Django's order."""
    own = message.extra_headers
    names = {name.lower() for name in own}
    if len(names) < len(own) or "message-id" not in names or not _LEFT_TO_DJANGO.isdisjoint(names):
        raise _NotSimple
    yield "Subject", message.subject
    yield "From", own.get("From", message.from_email)
    for name, values in (("To", message.to), ("Cc", message.cc), ("Reply-To", message.reply_to)):
        if name in own:
            yield name, own[name]
        elif values:
            yield name, ", ".join(map(str, values))
    if "date" not in names:
        yield "Date", _date()
    for name, value in own.items():
        if name.lower() not in _WRITTEN_FIRST:
            yield name, value


def _date() -> str:
    if not _IS_MODERN:
        return formatdate(localtime=settings.EMAIL_USE_LOCALTIME)
    zone = get_current_timezone() if settings.EMAIL_USE_LOCALTIME else timezone.utc
    return format_datetime(datetime.now(zone))


def _line(name: str, value: object) -> bytes:
    """Return a header as it is written."""
    if not (isinstance(value, str) and value.isprintable() and _NAME.fullmatch(name)):
        raise _NotSimple
    if header_folding.is_written_verbatim(name, value):
        return f"{name}: {value}\r\n".encode()
    return _folded(name, value)


@lru_cache(maxsize=64, typed=True)
def _folded(name: str, value: str) -> bytes:
    """Return a header that is not plain; many are the same in each mail of a batch.

    By the type of the value too: it may be a header that says itself how it is folded.
    """
    if not _IS_MODERN:
        return header_folding.POLICY.fold_binary(*forbid_multi_line_headers(name, value, "utf-8"))
    _, header = header_folding.POLICY.header_store_parse(name, value)
    if isinstance(header, AddressHeader) and not all(
        address.domain.isascii() for address in header.addresses
    ):
        raise _NotSimple
    return header_folding.POLICY.fold_binary(name, header)


def build(message: EmailMessage) -> bytes:
    """Return the bytes of a message that Django itself builds; raise whatever it raises.

    They are those of Django's own backend but for the boundaries, which are random in both.
    """
    written = write_simple(message, new_boundary()) if _writes_as_django() else None
    return _built(message) if written is None else written


@cache
def _writes_as_django() -> bool:
    """Tell whether this Django and this Python build an ordinary mail as it is written here.

    One that is yet to come may do it in another way, which then holds.
    """
    sample = EmailMultiAlternatives("Ş", "ş\n.", "a@example.com", ["b@example.com"])
    sample.extra_headers = {
        "Date": "Mon, 02 Jan 2023 04:05:06 +0000",
        "Message-ID": "<1@a.example>",
    }
    sample.attach_alternative("<p>", "text/html")
    built = _built(sample)
    boundary = re.search(rb'boundary="([^"]+)"', built)
    return boundary is not None and write_simple(sample, boundary[1].decode()) == built


def _built(message: EmailMessage) -> bytes:
    """Return the bytes of a message of any kind, which Django builds."""
    if django.VERSION >= (6, 0):
        mime: Message = message.message(policy=header_folding.POLICY)
        _choose_boundaries(mime)
        return mime.as_bytes()
    mime = message.message()
    _choose_boundaries(mime)
    mime.policy = header_folding.POLICY
    return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]


def _choose_boundaries(mime: Message) -> None:
    """Give each multipart a boundary; to choose one the standard library reads the whole text."""
    for part in mime.walk():
        if part.get_content_maintype() == "multipart" and part.get_boundary() is None:
            part.set_boundary(new_boundary())
