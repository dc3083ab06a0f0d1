"""Messages that build their own MIME: recognised, rendered once, and sent as those exact bytes."""

from __future__ import annotations

import email.message
import inspect
import re
from email import policy as policies
from email.generator import BytesGenerator
from email.header import Header
from email.parser import BytesHeaderParser, BytesParser
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import django
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail.messages import bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message
    from email.policy import Policy


_DJANGO_CLASSES = (EmailMessage, EmailMultiAlternatives)
_BUILDERS = frozenset(
    name
    for cls in _DJANGO_CLASSES
    for name, value in vars(cls).items()
    if inspect.isfunction(value)
    and (name == "message" or (name.startswith("_") and not name.startswith("__")))
)
"""``message()`` and the private methods it calls, in this version of Django."""

_NEXT_HEADER = re.compile(rb"\r\n(?![ \t])")
_SUBJECT = re.compile(rb"\r\nSubject:", re.IGNORECASE)


def builds_itself(message: EmailMessage) -> bool:
    """Return whether a message's class, or the object itself, overrides how Django builds the MIME.

    Such a message (signed, encrypted, prebuilt) cannot be stored field by field: only its own code
    knows what the fields mean, and that code may be gone or different when the mail is sent.
    """
    if not _BUILDERS.isdisjoint(vars(message)):
        return True
    if type(message) in _DJANGO_CLASSES:
        return False
    classes = (cls for cls in type(message).__mro__ if cls not in _DJANGO_CLASSES)
    return any(not _BUILDERS.isdisjoint(vars(cls)) for cls in classes)


def build(message: EmailMessage) -> Message:
    """Return the MIME object that this version of Django's SMTP backend would build.

    A ``message()`` written for Django 5.2, without a ``policy`` parameter, is called without it on
    later versions too; Django's own backend would fail there.
    """
    if django.VERSION >= (6, 0) and _accepts(message.message, "policy"):
        return message.message(policy=policies.SMTP)
    return message.message()


def render(message: EmailMessage) -> bytes:
    """Return the bytes that this version of Django's SMTP backend would send."""
    mime = build(message)
    if django.VERSION < (6, 0) and _accepts(mime.as_bytes, "linesep"):
        return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]
    if django.VERSION >= (6, 0) and _accepts(message.message, "policy"):
        return mime.as_bytes()
    wire = BytesIO()
    generator = BytesGenerator(wire, mangle_from_=False, policy=mime.policy.clone(linesep="\r\n"))
    generator.flatten(mime)
    return wire.getvalue()


def message_id(wire: bytes) -> str:
    """Return the Message-ID of a mail stored as bytes, or an empty string if it has none."""
    return str(BytesHeaderParser().parsebytes(wire).get("Message-ID", "")).strip()


class RawMessage(EmailMessage):
    """A message stored as bytes: people read its fields; sending uses its bytes and recipients."""

    def __init__(self, wire: bytes, recipients: Sequence[str]) -> None:
        """Take the whole mail (headers and body, CRLF line ends) and its envelope recipients."""
        super().__init__()
        self._wire = wire
        self._recipients = list(recipients)

    def recipients(self) -> list[str]:
        """Return the envelope recipients given by the original message."""
        return list(self._recipients)

    def prefix_subject(self, words: str) -> None:
        """Insert words before the subject in the stored bytes; nothing else changes."""
        encoded = Header(words, "ascii" if words.isascii() else "utf-8").encode(linesep="\r\n")
        prefix = b"Subject: " + encoded.encode()
        head, gap, body = self._wire.partition(b"\r\n\r\n")
        lines = b"\r\n" + head
        new, count = _SUBJECT.subn(lambda _: b"\r\n" + prefix, lines, count=1)
        self._wire = (new[2:] if count else prefix + lines) + gap + body

    def remove_headers(self, start: str) -> None:
        """Remove the headers whose names start so, in lower case, from the stored bytes."""
        head, gap, body = self._wire.partition(b"\r\n\r\n")
        headers = _NEXT_HEADER.split(head)
        kept = [it for it in headers if not it.lower().startswith(start.encode())]
        self._wire = b"\r\n".join(kept) + gap + body

    def message(self, *, policy: Policy | None = None) -> VerbatimMessage:
        """Return the stored mail; ``policy`` determines its line ends, not its content.

        Raises ``InvalidMessage`` for headers that would take Python long, for some are read here.
        """
        bounds.check_reading(self._wire)
        usual = policies.default if django.VERSION >= (6, 0) else policies.compat32
        parser = BytesParser(VerbatimMessage, policy=policy or usual)
        mime = cast(VerbatimMessage, parser.parsebytes(self._wire))
        mime._wire = self._wire
        return mime


class VerbatimMessage(email.message.EmailMessage):
    """A parsed MIME object to inspect, whose bytes are exactly those it was parsed from."""

    _wire: bytes | None = None

    def as_bytes(
        self, unixfrom: bool = False, policy: Policy | None = None, linesep: str | None = None
    ) -> bytes:
        """Return the stored bytes, with LF line ends unless CRLF is requested.

        The line ends are those of ``linesep``, else of ``policy``, else of the policy this object
        was made with, as in Django 5.2 and Python's own ``as_bytes``.
        """
        if self._wire is None:  # a part inside the parsed object
            return super().as_bytes(unixfrom, policy)
        wire = self._wire
        if unixfrom:
            wire = f"{self.get_unixfrom() or 'From nobody'}\r\n".encode() + wire
        if (linesep or (policy or self.policy).linesep) == "\r\n":
            return wire
        return wire.replace(b"\r\n", b"\n")


def _accepts(function: Callable[..., Any], parameter: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == parameter or p.kind is p.VAR_KEYWORD for p in parameters)
