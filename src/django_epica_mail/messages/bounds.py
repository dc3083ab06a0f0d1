"""Bounds on what a message holds, checked before any parser sees it."""

from __future__ import annotations

from email.message import Message

from django.core.mail import EmailMessage

from django_epica_mail.exceptions import InvalidMessage

MAX_DEPTH = 100
"""Parts within parts. Postfix refuses more (``mime_nesting_limit``), and Python builds and parses
them recursively."""
MAX_SUBJECT = 998
"""Characters, as in the longest line of a message (RFC 5322, section 2.1.1)."""
MAX_ADDRESS = 512
"""Characters of an address with its display name; the address itself has at most 254."""
MAX_MARKS = {'"': (16, "quotation marks"), "(": (16, "opening parentheses")}
"""How often an address may hold marks that Python parses in quadratic time, with their names."""
MAX_ADDRESS_HEADER = 64 * 1024
MAX_HEADER = 32 * 1024
MAX_ENCODED_HEADER = 4096
"""Characters of a header that is not ASCII, which Python encodes in quadratic time."""
CLIPPED_BYTES = 102 * 1024
"""Gmail hides what follows in a mail's HTML (observed; Google publishes no number)."""
_ADDRESS_HEADERS = frozenset({"from", "to", "cc", "reply-to", "sender"})


def check_depth(message: EmailMessage) -> None:
    """Raise ``InvalidMessage`` if parts within parts pass ``MAX_DEPTH``. Uses no recursion."""
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
            inner = part.attachments
        elif isinstance(part, Message):
            inner = part.get_payload()
        elif isinstance(part, (tuple, list)):
            inner = part[1:2]  # the content of an attachment
        if isinstance(inner, (tuple, list)):
            pending += ((it, depth + 1) for it in inner)


def check_lengths(message: EmailMessage) -> None:
    """Raise ``InvalidMessage`` for text that is too long for the parsers, before they see it."""
    check_length("subject", message.subject, MAX_SUBJECT)
    given = {
        "from_email": (message.from_email,),
        **{name: getattr(message, name) or () for name in ("to", "cc", "bcc", "reply_to")},
    }
    for name, values in given.items():
        for value in values:
            check_length(f"address in {name}", value, MAX_ADDRESS)
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
        if str(header).lower() in _ADDRESS_HEADERS:
            for address in text[: MAX_ADDRESS_HEADER + 1].split(","):
                check_length(f"address in the header {header!r}", address, MAX_ADDRESS)
            check_length(f"header {header!r}", text, MAX_ADDRESS_HEADER)
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
