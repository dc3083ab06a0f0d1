"""Bounds on what a message holds, checked before any parser sees it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from email.message import Message

from django.core.mail import EmailMessage

from django_epica_mail.exceptions import InvalidMessage

MAX_DEPTH = 100
"""Parts within parts. Postfix refuses more (``mime_nesting_limit``), and Python builds and parses
them recursively."""
MAX_SUBJECT = 998
"""Characters, as in the longest line of a message (RFC 5322, section 2.1.1)."""
MAX_ADDRESS = 512
"""Octets in UTF-8 of an address with its display name; the address itself has at most 254. Python
folds a name that is not ASCII in quadratic time, a third of a second for 440 emoji."""
MAX_MARKS = {'"': (16, "quotation marks"), "(": (16, "opening parentheses")}
"""How often an address may hold marks that Python parses in quadratic time, with their names."""
MAX_ADDRESS_HEADER = 64 * 1024
MAX_SENDERS = 2048
"""Characters of a header of addresses that is not To or Cc. Each that is not ASCII takes Python
milliseconds, and visitors write some of them: Reply-To in a form."""
MAX_HEADER = 32 * 1024
MAX_ENCODED_HEADER = 4096
"""Characters of a header that is not ASCII, which Python encodes in quadratic time."""
CLIPPED_BYTES = 102 * 1024
"""Gmail hides what follows in a mail's HTML (observed; Google publishes no number)."""
_ADDRESS_HEADERS = frozenset({"from", "to", "cc", "reply-to", "sender"})
_KINDS = {
    **dict.fromkeys(_ADDRESS_HEADERS, "addresses"),
    **{f"resent-{it}": "addresses" for it in _ADDRESS_HEADERS},
    **dict.fromkeys(("content-type", "content-disposition", "mime-version"), "parameters"),
    **dict.fromkeys(("content-transfer-encoding", "message-id", "resent-date"), "parameters"),
}
"""What Python reads in a header; the others are text."""
_MOST_FOLDED = {"addresses": 4096, "parameters": 16 * 1024, "text": 64 * 1024, "headers": 10_000}
"""Characters of all headers of a kind that are folded in a MIME object, and how many headers it has
in all: Python takes long for more."""
_DEARER = 8
"""How many characters one counts that is not ASCII."""
_READ_AGAIN = ("attachments", "alternatives", "reply_to")
"""Lists of a message of which Django requires only that they can be iterated over."""
_LONGEST_LINE = 78
"""Characters of a line that is written as it is (RFC 5322, section 2.1.1), if it is ASCII."""
_MOST_COMPARED = 10_000_000
"""Lines of a message times its boundaries: Python's parser compares each with each."""
_STRUCTURED = re.compile(
    rb"(?:^|[\r\n])(?:(?:resent-)?(?:from|to|cc|bcc|reply-to|sender)|content-[a-z-]+|mime-version"
    rb"|message-id)"
    rb"[ \t]*:[^\r\n]*(?:(?:\r\n|\r|\n)[ \t][^\r\n]*)*",
    re.IGNORECASE,
)
"""The headers of a message, and of the parts in it, that Python reads as addresses and parameters.
So are lines of its text that look like one."""
_DEAR_MARKS, _BLANKS = b'"()\\', b" \t"
_PER_CHARACTER, _PER_MARK = 1000, 2
_MOST_READ = 500_000_000
"""The cost of such headers: the characters of each times its marks, its blanks and a constant.
Python's time is in proportion to that, some six seconds at most."""


def check_parts(message: EmailMessage | Message) -> None:
    """Raise ``InvalidMessage`` for parts nested deeper than ``MAX_DEPTH``, and for text that
    ``check_lengths`` refuses, also of messages within messages. Uses no recursion.

    What can be read only once, such as a generator of attachments, becomes a list on the way.
    """
    pending: list[tuple[object, int]] = [(message, 0)]
    while pending:
        part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidMessage(
                f"The message has parts nested more than {MAX_DEPTH} deep, which servers refuse: "
                "attach them side by side, or as bytes."
            )
        inner: object = ()
        if isinstance(part, EmailMessage):
            _keep_items(part)
            check_lengths(part)
            inner = part.attachments
        elif isinstance(part, Message):
            inner = part.get_payload()
        elif isinstance(part, (tuple, list)):
            inner = part[1:2]  # the content of an attachment
        if isinstance(inner, (tuple, list)):
            pending += ((it, depth + 1) for it in inner)


def _keep_items(message: EmailMessage) -> None:
    """Replace each list that is of another kind by a list: Django reads it once, and this package
    several times.
    """
    for name in _READ_AGAIN:
        value = vars(message).get(name)
        if not isinstance(value, (list, tuple, str, bytes)) and isinstance(value, Iterable):
            vars(message)[name] = list(value)


def check_lengths(message: EmailMessage) -> None:
    """Raise ``InvalidMessage`` for text that is too long for the parsers, before they see it."""
    check_length("subject", message.subject, MAX_SUBJECT)
    given = {
        "from_email": (message.from_email,),
        **{name: getattr(message, name) or () for name in ("to", "cc", "bcc", "reply_to")},
    }
    for name, values in given.items():
        for value in values:
            check_octets(f"address in {name}", value, MAX_ADDRESS)
            for mark, (most, called) in MAX_MARKS.items():
                if str(value).count(mark) > most:
                    raise InvalidMessage(
                        f"The address in {name} has more than {most} {called}: remove some. It "
                        f"starts with {str(value)[:40]!r}."
                    )
    check_length("content subtype", message.content_subtype, MAX_ADDRESS)
    for header, value in message.extra_headers.items():
        check_length("name of a header", header, MAX_ADDRESS)
        text = str(value)
        if _KINDS.get(str(header).lower()) == "addresses":
            named = text[: MAX_ADDRESS_HEADER + 1].split(",")
            for address in named:
                check_length(f"address in the header {header!r}", address, MAX_ADDRESS)
            longest = MAX_ADDRESS_HEADER if str(header).lower() in ("to", "cc") else MAX_SENDERS
            check_length(f"header {header!r}", text, longest)
            for address in named:
                check_octets(f"address in the header {header!r}", address, MAX_ADDRESS)
        else:
            longest = MAX_HEADER if text.isascii() else MAX_ENCODED_HEADER
            check_length(f"header {header!r}", text, longest)


def check_length(what: str, value: object, most: int) -> None:
    """Raise ``InvalidMessage`` for a text of more than ``most`` characters."""
    text = value if isinstance(value, str) else str(value or "")
    if len(text) > most:
        raise InvalidMessage(
            f"The {what} has {len(text)} characters, but at most {most} are allowed: shorten it. "
            f"It starts with {text[:40]!r}."
        )


def check_octets(what: str, value: object, most: int) -> None:
    """Raise ``InvalidMessage`` for a text of more than ``most`` octets in UTF-8."""
    text = value if isinstance(value, str) else str(value or "")
    check_length(what, text, most)
    if (size := len(text.encode(errors="replace"))) > most:
        raise InvalidMessage(
            f"The {what} has {size} bytes in UTF-8, but at most {most} are allowed: shorten it. It "
            f"starts with {text[:40]!r}."
        )


def check_parsing(content: bytes) -> None:
    """Raise ``InvalidMessage`` for a message in its wire format that Python takes long to parse."""
    if content.count(b"\n") * content.lower().count(b"boundary") > _MOST_COMPARED:
        raise InvalidMessage("The attached message has too many parts for its length.")


def check_reading(wire: bytes) -> None:
    """Raise ``InvalidMessage`` for a message in its wire format whose headers Python reads slowly.

    It parses no MIME.
    """
    if sum(_cost(found[0]) for found in _STRUCTURED.finditer(wire)) > _MOST_READ:
        raise InvalidMessage(
            "The headers of the message are too long to be read soon: shorten its addresses and "
            "the parameters of its parts, or use fewer quotation marks in them."
        )


def _cost(header: bytes) -> int:
    marks, blanks = (len(header) - len(header.translate(None, it)) for it in (_DEAR_MARKS, _BLANKS))
    return len(header) * (_PER_CHARACTER + _PER_MARK * marks + blanks)


def check_folding(part: Message) -> None:
    """Raise ``InvalidMessage`` for headers of a MIME object that Python takes long to fold.

    Those of the parts in it count as well. Short lines of ASCII are not folded.
    """
    counted = Counter[str]()
    for inner in part.walk():
        for name, value in inner.raw_items():
            text = f"{name}: {value}"
            counted["headers"] += 1
            if not text.isascii() or any(len(it) > _LONGEST_LINE for it in text.splitlines()):
                kind = _KINDS.get(name.lower(), "text")
                counted[kind] += len(text) * (1 if text.isascii() else _DEARER)
    for kind, most in _MOST_FOLDED.items():
        if counted[kind] > most:
            raise InvalidMessage(
                f"The headers of the attached {part.get_content_type()} are too long to be written "
                f"soon ({kind}: {counted[kind]}, at most {most}; characters that are not ASCII "
                f"count as {_DEARER}): shorten them, or attach it as bytes of the type "
                "application/octet-stream."
            )
