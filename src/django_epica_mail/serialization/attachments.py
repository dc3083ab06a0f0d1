"""Attachments and alternatives in the one form Django's own ``attach()`` would give them."""

from __future__ import annotations

import mimetypes
import re
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from typing import Any, TypeAlias

import django
from django.core.mail import (
    DEFAULT_ATTACHMENT_MIME_TYPE,
    EmailAlternative,
    EmailAttachment,
    EmailMessage,
)
from django.utils.functional import Promise

from django_epica_mail.exceptions import InvalidHeader, InvalidMessage

Attachment: TypeAlias = EmailAttachment | Message

_NEWLINE = re.compile(r"[\r\n]")


def attachments(message: EmailMessage) -> list[Attachment]:
    """Return a message's attachments as ``attach()`` would have put them there.

    That is: text for ``text/*`` where it is UTF-8, a media type for each. Raises
    ``InvalidMessage`` for what Django cannot attach.
    """
    return [_attachment(item) for item in message.attachments or ()]


def _attachment(item: Any) -> Attachment:
    if isinstance(item, Message):
        if not isinstance(item, (MIMEPart, MIMEBase) if django.VERSION >= (6, 0) else MIMEBase):
            raise InvalidMessage(
                f"A {type(item).__name__} cannot be attached with Django {django.__version__}: "
                "give a tuple of file name, content and media type."
            )
        return item
    if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
        raise InvalidMessage(
            f"An attachment of the type {type(item).__name__} is not valid: give a MIME object or "
            "a tuple of file name, content and, optionally, media type."
        )
    filename, content, mimetype = [*item, None][:3]
    filename = None if filename is None else _text("file name of an attachment", filename)
    mimetype = mimetype or (mimetypes.guess_type(filename)[0] if filename else None)
    mimetype = _media_type(
        mimetype or DEFAULT_ATTACHMENT_MIME_TYPE, f"attachment {filename or ''!r}"
    )
    content = _content(content, mimetype, filename)
    if mimetype.startswith("text/") and isinstance(content, bytes):
        try:
            content = content.decode()
        except UnicodeDecodeError:
            mimetype = DEFAULT_ATTACHMENT_MIME_TYPE
    return EmailAttachment(filename, content, mimetype)


def _content(content: Any, mimetype: str, filename: str | None) -> Any:
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, Promise):
        return str(content)
    is_message = mimetype.startswith("message/") and isinstance(content, (EmailMessage, Message))
    if is_message or isinstance(content, (str, bytes)):
        return content
    raise InvalidMessage(
        f"The content of the attachment {filename!r} ({mimetype}) is of the type "
        f"{type(content).__name__}: give bytes, text or, for message/rfc822, a message."
    )


def alternatives(message: EmailMessage) -> list[EmailAlternative]:
    """Return a message's alternatives, plain tuples too, each with text or bytes as content.

    Raises ``InvalidMessage`` for what Django cannot send.
    """
    return [_alternative(item) for item in getattr(message, "alternatives", None) or ()]


def _alternative(item: Any) -> EmailAlternative:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InvalidMessage(
            f"An alternative of the type {type(item).__name__} is not valid: give a tuple of "
            "content and media type."
        )
    content, mimetype = item
    if isinstance(content, Promise):
        content = str(content)
    if not isinstance(content, (str, bytes)):
        raise InvalidMessage(
            f"The content of the alternative {mimetype!r} is of the type "
            f"{type(content).__name__}: give text or bytes."
        )
    return EmailAlternative(content, _media_type(mimetype, "alternative"))


def _media_type(mimetype: Any, what: str) -> str:
    text = _text(f"media type of the {what}", mimetype)
    if not all(text.partition("/")):
        raise InvalidMessage(
            f"The media type of the {what} is {text!r}: give type and subtype, like "
            "'application/pdf' (RFC 2045, section 5.1)."
        )
    return text


def _text(what: str, value: Any) -> str:
    if isinstance(value, Promise):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidMessage(f"The {what} is {value!r}: give a str.")
    if _NEWLINE.search(value):
        raise InvalidHeader(f"The {what} cannot contain newlines: {value!r}.")
    return value
