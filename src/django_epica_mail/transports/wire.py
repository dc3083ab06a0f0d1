"""Builds the bytes of a mail: the same as Django's SMTP backend would send, but faster.

Building a mail is the largest part of a worker's cost per mail. A simple mail (text, with or
without alternatives) is written directly. Django builds any other mail, under the policies of
``header_folding``, which skip the most expensive steps.
"""

from __future__ import annotations

import logging
import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone, tzinfo
from email.headerregistry import AddressHeader
from email.message import EmailMessage as Part
from email.message import Message
from email.policy import SMTP
from email.utils import format_datetime, formatdate
from enum import Enum
from functools import cache, lru_cache
from typing import Any, NamedTuple

import django
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.timezone import get_current_timezone

from django_epica_mail.transports import header_folding

if django.VERSION < (6, 0):
    from django.core.mail.message import forbid_multi_line_headers

logger = logging.getLogger(__name__)

_IS_MODERN = django.VERSION >= (6, 0)
_DEFAULT_ALTERNATIVE_SUBTYPE = getattr(EmailMultiAlternatives, "alternative_subtype", None)
_TEXT_TYPE = re.compile(r"text/[a-z]{1,20}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_MAX_LINE_BYTES = 998
"""RFC 5322, section 2.1.1. Django 5.2 encodes text that has a longer line."""
_MIME_VERSION = "MIME-Version: 1.0\r\n"
_WRITTEN_FIRST = frozenset({"from", "to", "cc", "reply-to"})
"""Headers written before the message's other extra headers."""
_NEVER_SIMPLE = frozenset(
    {"subject", "bcc", "mime-version", "content-type", "content-transfer-encoding"}
)
"""Extra headers that make a mail not simple."""


class _NotSimple(Exception):  # noqa: N818 - an answer, not an error
    """The message is not simple: Django has to build it."""


class _EncodedText(NamedTuple):
    """The body or an alternative, encoded for the wire."""

    mimetype: str
    encoding: str
    """Its Content-Transfer-Encoding."""
    content: bytes


def build(message: EmailMessage) -> bytes:
    """Return the bytes of a message that does not build its own MIME (see ``messages.raw``).

    Identical to Django's output except for the random boundaries. Raises what Django raises.
    """
    way = chosen_way()
    written = write_simple(message, new_boundary()) if way is Way.DIRECT else None
    if written is not None:
        return written
    return _build_as_django(message) if way is Way.DJANGO else _build_with_django(message)


def write_simple(message: EmailMessage, boundary: str) -> bytes | None:
    """Return the bytes of a message as Django writes them, or ``None`` if it is not simple.

    Raises what Django raises for an invalid header.
    """
    try:
        texts = _encoded_texts(message)
        headers = b"".join(_header_line(name, value) for name, value in _message_headers(message))
    except _NotSimple:
        return None
    if len(texts) == 1:
        return b"".join([_content_headers(texts[0]), headers, b"\r\n", texts[0].content])
    content_type = f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"\r\n'
    first = _MIME_VERSION + content_type if _IS_MODERN else content_type + _MIME_VERSION
    pieces = [first.encode(), headers]
    for text in texts:
        # Django 6 moves MIME-Version from the first part to the message.
        with_version = not (_IS_MODERN and text is texts[0])
        part_headers = _content_headers(text, with_version=with_version)
        pieces += [f"\r\n--{boundary}\r\n".encode(), part_headers, b"\r\n", text.content]
    return b"".join([*pieces, f"\r\n--{boundary}--\r\n".encode()])


def cleaned(content: bytes) -> bytes:
    """Return a mail as SMTP allows it: without NUL, and with no CR or LF but in CRLF.

    A server that took one of them for the end of a line would see other headers or another mail
    than we do (RFC 5321, sections 2.3.8 and 4.1.1.4; RFC 5322, section 2.3).
    """
    ends = content.count(b"\r\n")
    if content.count(b"\r") == ends == content.count(b"\n") and b"\0" not in content:
        return content
    return _with_crlf(content.replace(b"\0", b""))


def new_boundary() -> str:
    """Return a boundary in the standard library's form.

    Its 63 random bits will not occur in any text in practice.
    """
    return f"==============={random.getrandbits(63):019d}=="


class Way(Enum):
    """How mail is built, the fastest way first."""

    DIRECT = "written directly"
    POLICIES = "built by Django under our policies"
    DJANGO = "built as Django does"


@cache
def chosen_way() -> Way:
    """Return the fastest way by which every sample has the bytes that Django's SMTP backend sends.

    A future version of Django or Python may build mail differently. Then the log says so, once in
    each process. A worker asks at its start, before it forks.
    """
    for way, build_sample in (
        (Way.POLICIES, lambda made, boundary: _build_with_django(made)),
        (Way.DIRECT, write_simple),
    ):
        for name, make in _SAMPLES.items():
            try:
                expected = _build_as_django(make())
            except UnicodeError:
                continue  # DEFAULT_CHARSET lacks its characters
            try:
                built = build_sample(make(), "sample")
            except Exception:  # noqa: BLE001 - a way that fails is no way
                built = b""
            if built is not None and _without_boundaries(built) != _without_boundaries(expected):
                taken = Way.DJANGO if way is Way.POLICIES else Way.POLICIES
                logger.warning(
                    "With Django %s and Python %s, a sample mail (%s) that is %s differs from "
                    "Django's. So mail is %s, which is slower. Look for a newer version of "
                    "django-epica-mail.",
                    django.get_version(),
                    platform.python_version(),
                    name,
                    way.value,
                    taken.value,
                )
                return taken
    return Way.DIRECT


def _sample(subject: str, body: str, sender: str, **more: Any) -> EmailMultiAlternatives:
    made = EmailMultiAlternatives(subject, body, sender, ["Bo <b@example.com>"], **more)
    made.extra_headers |= {
        "Date": "Mon, 02 Jan 2023 04:05:06 +0000",
        "Message-ID": "<1@a.example>",
        "X-Order": "7",
    }
    return made


def _with_html() -> EmailMultiAlternatives:
    made = _sample("Ş", "ş\n.", "Ça <a@example.com>")
    made.attach_alternative("<p>", "text/html")
    return made


def _with_attachment() -> EmailMultiAlternatives:
    made = _with_html()
    made.attach("ş.txt", "ş", "text/plain")
    made.attach("b.bin", b"\0\xff", "application/octet-stream")
    return made


_SAMPLES: Mapping[str, Callable[[], EmailMultiAlternatives]] = {
    "one part": lambda: _sample("Order", "Thank you.\n", "a@example.com"),
    "quoted-printable": lambda: _sample("Order", "ş=. " * 40 + "\nFrom\r.", "a@example.com"),
    "Base64": lambda: _sample("Order", "ğşç" * 400, "a@example.com"),
    "folded headers": lambda: _sample(
        "Siparişiniz yolda, " * 6,
        "x",
        f'"{"Shop, " * 20}" <a@example.com>',
        headers={"X-Long": "word " * 40, "List-Id": "<list.example.com>"},
    ),
    "Cc and Reply-To": lambda: _sample(
        "Order",
        "x",
        "a@example.com",
        bcc=["e@example.com"],
        cc=["Ça <c@example.com>", "c2@example.com"],
        reply_to=["d@example.com"],
    ),
    "two parts": _with_html,
    "attachments": _with_attachment,
}


def _without_boundaries(content: bytes) -> bytes:
    for number, boundary in enumerate(re.findall(rb'boundary="([^"]+)"', content)):
        content = content.replace(boundary, b"boundary-%d" % number)
    return content


def _build_as_django(message: EmailMessage) -> bytes:
    """Return the bytes of a message as Django's SMTP backend builds them."""
    if django.VERSION >= (6, 0):
        return message.message(policy=SMTP).as_bytes()
    return message.message().as_bytes(linesep="\r\n")  # type: ignore[call-arg]


def _build_with_django(message: EmailMessage) -> bytes:
    """Return the bytes of a message, built by Django under our policy."""
    if django.VERSION >= (6, 0):
        mime: Message = message.message(policy=header_folding.POLICY)
        _set_boundaries(mime)
        return mime.as_bytes()
    mime = message.message()
    _set_boundaries(mime)
    mime.policy = header_folding.POLICY
    return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]


def _set_boundaries(mime: Message) -> None:
    """Give each multipart a boundary, unless its content is text already.

    Otherwise the standard library would scan the whole text to choose one.
    """
    for part in mime.walk():
        is_open = part.get_content_maintype() == "multipart" and part.get_boundary() is None
        if is_open and not isinstance(part.get_payload(), str):
            part.set_boundary(new_boundary())


def _encoded_texts(message: EmailMessage) -> list[_EncodedText]:
    """Return the body and the alternatives, encoded."""
    alternatives = getattr(message, "alternatives", None) or []
    subtype = getattr(message, "alternative_subtype", _DEFAULT_ALTERNATIVE_SUBTYPE)
    if (
        message.attachments
        or message.encoding
        or settings.DEFAULT_CHARSET != "utf-8"
        or subtype != _DEFAULT_ALTERNATIVE_SUBTYPE
        or (alternatives and not message.body)
    ):
        raise _NotSimple
    texts = [_encode_text(f"text/{message.content_subtype}", message.body)]
    return texts + [_encode_text(mimetype, content) for content, mimetype in alternatives]


def _encode_text(mimetype: str, content: object) -> _EncodedText:
    if not (isinstance(content, str) and _TEXT_TYPE.fullmatch(mimetype)):
        raise _NotSimple
    try:
        data = content.encode()
    except UnicodeEncodeError:
        raise _NotSimple from None
    lines = data.splitlines()
    longest = max(map(len, lines), default=0)
    encoding = "7bit" if data.isascii() else "8bit"
    if not _IS_MODERN:
        if longest > _MAX_LINE_BYTES:
            raise _NotSimple
        return _EncodedText(mimetype, encoding, _with_crlf(data))
    if longest > (header_folding.POLICY.max_line_length or 0):
        part = Part(policy=header_folding.POLICY)
        part.set_content(content, subtype=mimetype.removeprefix("text/"), charset="utf-8")
        payload = str(part.get_payload()).encode("ascii")
        return _EncodedText(mimetype, part["Content-Transfer-Encoding"], _with_crlf(payload))
    return _EncodedText(mimetype, encoding, b"\r\n".join(lines) + b"\r\n")


def _with_crlf(data: bytes) -> bytes:
    """Return text with CRLF line ends, as SMTP requires."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def _content_headers(text: _EncodedText, *, with_version: bool = True) -> bytes:
    """Return the headers that describe a text, in Django's order."""
    version = _MIME_VERSION if with_version else ""
    content_type = f'Content-Type: {text.mimetype}; charset="utf-8"\r\n'
    encoding = f"Content-Transfer-Encoding: {text.encoding}\r\n"
    headers = content_type + encoding + version if _IS_MODERN else content_type + version + encoding
    return headers.encode()


def _message_headers(message: EmailMessage) -> Iterator[tuple[str, object]]:
    """Yield all other headers, in Django's order."""
    own = message.extra_headers
    names = {name.lower() for name in own}
    if len(names) < len(own) or "message-id" not in names or not _NEVER_SIMPLE.isdisjoint(names):
        raise _NotSimple
    yield "Subject", message.subject
    yield "From", own.get("From", message.from_email)
    for name, values in (("To", message.to), ("Cc", message.cc), ("Reply-To", message.reply_to)):
        if name in own:
            yield name, own[name]
        elif values:
            yield name, ", ".join(map(str, values))
    if "date" not in names:
        yield "Date", _date_now()
    for name, value in own.items():
        if name.lower() not in _WRITTEN_FIRST:
            yield name, value


def _date_now() -> str:
    if not _IS_MODERN:
        return formatdate(localtime=settings.EMAIL_USE_LOCALTIME)
    zone = get_current_timezone() if settings.EMAIL_USE_LOCALTIME else timezone.utc
    return _date_at(int(time.time()), zone)


@lru_cache(maxsize=1)
def _date_at(seconds: int, zone: tzinfo) -> str:
    """Return a time as a header has it; many mails are built in one second."""
    return format_datetime(datetime.fromtimestamp(seconds, zone))


def _header_line(name: str, value: object) -> bytes:
    """Return a header as it is written, with its line end."""
    if not (isinstance(value, str) and value.isprintable() and _HEADER_NAME.fullmatch(name)):
        raise _NotSimple
    if header_folding.is_written_verbatim(name, value):
        return f"{name}: {value}\r\n".encode()
    return _fold_header(name, value)


@lru_cache(maxsize=64, typed=True)
def _fold_header(name: str, value: str) -> bytes:
    """Return a header that needs folding or encoding.

    Cached, because many repeat across a batch. The cache is typed because a ``str`` subclass may
    define its own folding.
    """
    if not _IS_MODERN:
        return header_folding.POLICY.fold_binary(*forbid_multi_line_headers(name, value, "utf-8"))
    _, header = header_folding.POLICY.header_store_parse(name, value)
    if isinstance(header, AddressHeader) and not all(
        address.domain.isascii() for address in header.addresses
    ):
        raise _NotSimple
    return header_folding.POLICY.fold_binary(name, header)
