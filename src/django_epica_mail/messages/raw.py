"""Messages that build their own MIME: recognised, rendered once, and sent as those very bytes."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.message import Message
    from email.policy import Policy


_DJANGO = (EmailMessage, EmailMultiAlternatives)
_BUILDERS = frozenset(
    name
    for cls in _DJANGO
    for name, value in vars(cls).items()
    if inspect.isfunction(value)
    and (name == "message" or (name.startswith("_") and not name.startswith("__")))
)
"""``message()`` and the private methods it is made of, in this version of Django."""


_SUBJECT = re.compile(rb"\r\nSubject:", re.IGNORECASE)


def builds_itself(message: EmailMessage) -> bool:
    """Tell whether a message's class, or the object itself, replaces how Django builds the MIME.

    Such a message (signed, encrypted, built beforehand) cannot be kept by its parts: what they
    mean is known only to code that may not be there, or be another, when the mail is sent.
    """
    own = [vars(message), *(vars(cls) for cls in type(message).__mro__ if cls not in _DJANGO)]
    return any(not _BUILDERS.isdisjoint(names) for names in own)


def build(message: EmailMessage) -> Message:
    """Return the MIME object that Django's SMTP backend of this version would have built.

    A ``message()`` written for Django 5.2, without ``policy``, is called without it on later
    versions too, where Django's own backend would fail.
    """
    if django.VERSION >= (6, 0) and _takes(message.message, "policy"):
        return message.message(policy=policies.SMTP)
    return message.message()


def render(message: EmailMessage) -> bytes:
    """Return the bytes Django's SMTP backend of this version would have put on the wire."""
    mime = build(message)
    if django.VERSION < (6, 0) and _takes(mime.as_bytes, "linesep"):
        return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]
    if django.VERSION >= (6, 0) and _takes(message.message, "policy"):
        return mime.as_bytes()
    wire = BytesIO()
    generator = BytesGenerator(wire, mangle_from_=False, policy=mime.policy.clone(linesep="\r\n"))
    generator.flatten(mime)
    return wire.getvalue()


def message_id(wire: bytes) -> str:
    """Return the Message-ID of a mail kept as bytes, or an empty string if it has none."""
    return str(BytesHeaderParser().parsebytes(wire).get("Message-ID", "")).strip()


def _takes(function: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


class VerbatimMessage(email.message.EmailMessage):
    """A parsed MIME object to look into, whose bytes are those it was parsed from."""

    _wire: bytes | None = None

    def as_bytes(
        self, unixfrom: bool = False, policy: Policy | None = None, linesep: str | None = None
    ) -> bytes:
        """Return the bytes as stored, or with line feeds only where no CRLF is asked for.

        The line ends asked for are those of ``linesep``, else of ``policy``, else of the policy
        this object was made with, as in Django 5.2 and Python's own ``as_bytes``.
        """
        if self._wire is None:  # a part inside
            return super().as_bytes(unixfrom, policy)
        wire = self._wire
        if unixfrom:
            wire = f"{self.get_unixfrom() or 'From nobody'}\r\n".encode() + wire
        if (linesep or (policy or self.policy).linesep) == "\r\n":
            return wire
        return wire.replace(b"\r\n", b"\n")


class RawMessage(EmailMessage):
    """A message kept as bytes: its headers are for people, its recipients and bytes for sending."""

    def __init__(self, wire: bytes, recipients: Sequence[str]) -> None:
        """Take the whole mail (headers and body, CRLF line ends) and its envelope recipients."""
        super().__init__()
        self._wire = wire
        self._recipients = list(recipients)

    def recipients(self) -> list[str]:
        """Return the envelope's recipients as the original message gave them."""
        return list(self._recipients)

    def prefix_subject(self, words: str) -> None:
        """Put words before the subject in the stored bytes; all else stays as it is."""
        encoded = Header(words, "ascii" if words.isascii() else "utf-8").encode(linesep="\r\n")
        prefix = b"Subject: " + encoded.encode()
        head, gap, body = self._wire.partition(b"\r\n\r\n")
        lines = b"\r\n" + head
        new, count = _SUBJECT.subn(lambda _: b"\r\n" + prefix, lines, count=1)
        self._wire = (new[2:] if count else prefix + lines) + gap + body

    def message(self, *, policy: Policy | None = None) -> VerbatimMessage:
        """Return the stored mail; ``policy`` decides its line ends, not its content."""
        usual = policies.default if django.VERSION >= (6, 0) else policies.compat32
        parser = BytesParser(VerbatimMessage, policy=policy or usual)
        mime = cast(VerbatimMessage, parser.parsebytes(self._wire))
        mime._wire = self._wire
        return mime
