"""The message of one mail, for who looks at it or sends it again."""

from __future__ import annotations

import email.policy
from collections.abc import Mapping
from dataclasses import dataclass
from email.header import decode_header, make_header
from email.message import EmailMessage as MIMEMessage
from email.parser import BytesParser
from email.utils import format_datetime
from typing import Any

from django.core.mail import EmailMessage

from django_epica_mail import serialization
from django_epica_mail.models import EmailLog
from django_epica_mail.serialization import RawMessage
from django_epica_mail.serialization.raw_message import render


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What there is to read in a mail."""

    headers: list[tuple[str, str]]
    """As they are sent, decoded."""
    text: str
    html: str
    """Either is empty if the mail has none."""


class _Absent(Mapping[str, bytes]):
    """Stands for contents of attachments that nobody is going to look at."""

    def __getitem__(self, digest: str) -> bytes:
        return b""

    def __contains__(self, digest: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def message_of(mail: EmailLog) -> EmailMessage:
    """Rebuild a mail's message, for all of its recipients, as its caller gave it.

    Raises ``UnreadableEnvelope`` where it cannot be, as for content that is forgotten, and
    ``MissingKey`` for what no key of the site's decrypts.
    """
    blobs = {row.digest: row.data for row in mail.attachments.all()}
    return serialization.load(mail.envelope, blobs)


def read(mail: EmailLog) -> Reading:
    """Return what a mail says, without reading its attachments.

    Raises ``UnreadableEnvelope`` as ``message_of`` does, and whatever building the message raises.
    """
    message = serialization.load(mail.envelope, _Absent())
    if isinstance(message, RawMessage):  # kept as bytes, which are an attachment to the row
        wire = render(message_of(mail))
        mime = BytesParser(policy=email.policy.default).parsebytes(wire)
        headers = [(name, str(value)) for name, value in mime.items()]
        return Reading(headers=headers, text=_part(mime, "plain"), html=_part(mime, "html"))
    html = [_decoded(it[0]) for it in _alternatives(message) if it[1] == "text/html"]
    body = _decoded(message.body)
    if message.content_subtype == "html":
        body, html = "", [body, *html]
    message.attachments, message.body = [], ""
    vars(message)["alternatives"] = []
    _complete(message, mail)
    headers = [(name, _header(value)) for name, value in message.message().items()]
    return Reading(headers=headers, text=body, html=html[0] if html else "")


def wire(mail: EmailLog) -> bytes:
    """Return a mail as it is put on the wire, but for the boundaries between its parts.

    The time is that of its end or, before that, of its row. Raises as ``read`` does.
    """
    message = message_of(mail)
    if not isinstance(message, RawMessage):
        _complete(message, mail)
    return render(message)


def _complete(message: EmailMessage, mail: EmailLog) -> None:
    """Give a message what it is given when it is sent."""
    names = {name.lower() for name in message.extra_headers}
    own = {
        "Message-ID": mail.message_id,
        "Date": format_datetime(mail.finished_at or mail.created_at),
    }
    missing = {name: value for name, value in own.items() if name.lower() not in names}
    message.extra_headers = {**missing, **message.extra_headers}


def _alternatives(message: EmailMessage) -> list[Any]:
    return list(getattr(message, "alternatives", None) or ())


def _part(mime: MIMEMessage, subtype: str) -> str:
    part = mime.get_body((subtype,))
    return "" if part is None else str(part.get_content())


def _decoded(content: Any) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else str(content or "")


def _header(value: Any) -> str:
    try:
        return str(make_header(decode_header(str(value))))
    except (LookupError, UnicodeError):  # a charset that Python does not know
        return str(value)
