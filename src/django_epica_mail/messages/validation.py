"""What would fail in the worker, raised in the caller: headers, addresses, bodies, attachments."""

from __future__ import annotations

import contextlib
import mimetypes
import re
from email import policy as policies
from email.headerregistry import AddressHeader, UnstructuredHeader
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import django
from django.conf import settings
from django.core.mail import (
    DEFAULT_ATTACHMENT_MIME_TYPE,
    EmailAlternative,
    EmailAttachment,
    EmailMessage,
    EmailMultiAlternatives,
)
from django.core.mail import message as django_mail
from django.core.mail.backends import smtp
from django.utils.functional import Promise

from django_epica_mail.exceptions import InvalidHeader, InvalidMessage
from django_epica_mail.messages import addresses
from django_epica_mail.messages.raw import builds_itself

if TYPE_CHECKING:
    from collections.abc import Iterator


Attachment: TypeAlias = EmailAttachment | Message

_NEWLINE_IN_TEXT = re.compile(r"[\r\n]")


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
    filename = None if filename is None else _one_line("file name of an attachment", filename)
    mimetype = mimetype or (mimetypes.guess_type(filename)[0] if filename else None)
    mimetype = _media_type(
        mimetype or DEFAULT_ATTACHMENT_MIME_TYPE, f"attachment {filename or ''!r}"
    )
    content = _attachment_content(content, mimetype, filename)
    if mimetype.startswith("text/") and isinstance(content, bytes):
        try:
            content = content.decode()
        except UnicodeDecodeError:
            mimetype = DEFAULT_ATTACHMENT_MIME_TYPE
    return EmailAttachment(filename, content, mimetype)


def _attachment_content(content: Any, mimetype: str, filename: str | None) -> Any:
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
    text = _one_line(f"media type of the {what}", mimetype)
    if not all(text.partition("/")):
        raise InvalidMessage(
            f"The media type of the {what} is {text!r}: give type and subtype, like "
            "'application/pdf' (RFC 2045, section 5.1)."
        )
    return text


def _one_line(what: str, value: Any) -> str:
    if isinstance(value, Promise):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidMessage(f"The {what} is {value!r}: give a str.")
    if _NEWLINE_IN_TEXT.search(value):
        raise InvalidHeader(f"The {what} cannot contain newlines: {value!r}.")
    return value


_HEADER_NAME = re.compile("[!-9;-~]+")
_PLAIN_HEADER_NAME = re.compile("X-[A-Za-z0-9-]{1,60}", re.ASCII | re.IGNORECASE)
# What a message may have set on itself that changes how it is built.
_BUILD_OPTIONS = frozenset({"mixed_subtype", "alternative_subtype"})
_NEWLINE = re.compile(r"[\r\n]")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# A newline that does not begin a folded line; RFC 5322, section 2.2.3.
_UNFOLDED_NEWLINE = re.compile(rb"\r\n(?![ \t])|\r(?![ \t\n])|(?<!\r)\n(?![ \t])")


def check(message: EmailMessage) -> None:
    """Raise what sending this message would raise in the worker, and what Django lets through.

    Django's own ``message()`` is called on a stand-in without the content of the attachments,
    which is checked apart; the message itself is left untouched. A message that builds its own
    MIME is not built here: ``dump`` does that, once, and what it then raises reaches the caller.
    Nor is one that is surely sound, as most are: building costs more than all else in the caller.

    Raises ``ValueError`` (``TypeError`` where Django does), also for what Django only refuses in
    some versions: a newline in a header's name or in a recipient, a ``Bcc`` header.
    """
    _check_headers(message)
    _check_addresses(message)
    if builds_itself(message) or _is_plain(message):
        return
    stand_in = _stand_in(message)
    with _refusing("this message"):
        mime = stand_in.message()
        if django.VERSION >= (6, 0):
            _write_risky_headers(stand_in, mime)


def _is_plain(message: EmailMessage) -> bool:
    """Tell whether every version of Django builds a message for certain, by looking at its parts.

    A no only means that Django has to be asked. Headers and addresses were checked before.
    """
    listed = (message.to, message.cc, message.bcc, message.reply_to)
    names = (message.from_email, *(name for names in listed for name in names or ()))
    parts = [
        (message.body, f"text/{message.content_subtype}"),
        *(getattr(message, "alternatives", None) or ()),
    ]
    return (
        type(message) in (EmailMessage, EmailMultiAlternatives)
        and not message.attachments
        and (message.encoding or settings.DEFAULT_CHARSET) == "utf-8"
        and _BUILD_OPTIONS.isdisjoint(vars(message))
        and _is_plain_text(message.subject)
        and all(map(addresses.is_plain, names))
        and all(
            _PLAIN_HEADER_NAME.fullmatch(name) and _is_plain_text(value)
            for name, value in message.extra_headers.items()
        )
        and all(_is_plain_part(part) for part in parts)
    )


def _is_plain_part(part: object) -> bool:
    """Tell whether a body or an alternative is a pair of sound text and a usual type."""
    if not isinstance(part, tuple) or len(part) != 2:
        return False
    text, mimetype = part
    usual = mimetype in ("text/plain", "text/html")
    return usual and isinstance(text, str) and _encodes(text, "utf-8")


def _is_plain_text(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raise as ``InvalidMessage`` whatever Django raises that is no ValueError or TypeError."""
    try:
        yield
    except UnicodeError as error:
        # Not chained: it carries the whole text it is about.
        raise InvalidMessage(
            f"Django cannot encode {what}: {error}. Remove that character, or use another encoding."
        ) from None
    except (ValueError, TypeError):
        raise
    except Exception as error:  # an AttributeError, say, of a field's wrong type
        raise InvalidMessage(
            f"Django cannot build {what}: {type(error).__name__}: {error}."
        ) from error


def _check_headers(message: EmailMessage) -> None:
    for name in message.extra_headers:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidHeader(
                f"{name!r} is not a header name: use printable ASCII without space, colon or "
                "newline (RFC 5322, section 2.2)."
            )
        if name.lower() == "bcc":
            raise InvalidHeader(
                f"{name!r} is not a valid e-mail header, it would show the hidden recipients: "
                "give them in the bcc argument instead."
            )
    if _NEWLINE.search(str(message.content_subtype)):
        raise InvalidHeader(
            f"The content subtype cannot contain newlines: {message.content_subtype!r}."
        )


def _check_addresses(message: EmailMessage) -> None:
    """Refuse what the SMTP backend of this Django refuses, and newlines everywhere."""
    for address in (message.from_email, *message.recipients()):
        text = address if isinstance(address, str) else str(address)
        if addresses.is_plain(text):
            continue
        if _NEWLINE.search(text):
            raise InvalidHeader(f"Addresses cannot contain newlines: {text!r}.")
        with _refusing(f"the address {text!r}"):
            _ask_smtp_backend(text, str(message.encoding or settings.DEFAULT_CHARSET))


@lru_cache(maxsize=256)  # a site has few senders, and an error is not remembered
def _ask_smtp_backend(address: str, encoding: str) -> None:
    if django.VERSION >= (6, 0):
        # Only the class: to configure a backend would read the site's settings.
        smtp.EmailBackend.__new__(smtp.EmailBackend).prep_address(address)
    else:
        django_mail.sanitize_address(address, encoding)


def _stand_in(message: EmailMessage) -> EmailMessage:
    """Return a shallow copy of a message, its attachments without what cannot be wrong in them."""
    copy = object.__new__(type(message))
    vars(copy).update(vars(message))
    encoding = message.encoding or settings.DEFAULT_CHARSET
    vars(copy)["attachments"] = [_without_content(it, encoding) for it in attachments(message)]
    if isinstance(copy, EmailMultiAlternatives):
        vars(copy)["alternatives"] = alternatives(message)
    return copy


def _without_content(attachment: Attachment, encoding: Any) -> Attachment:
    if isinstance(attachment, Message):
        _check_part(attachment)
        return attachment
    content: Any = attachment.content
    if isinstance(content, bytes):
        content = b""
    elif isinstance(content, EmailMessage):
        _check_headers(content)
        content = EmailMessage() if builds_itself(content) else _stand_in(content)
    elif isinstance(content, Message):
        _check_part(content)
    elif _encodes(content, encoding):
        content = ""
    return attachment._replace(content=content)


def _encodes(text: str, encoding: Any) -> bool:
    """Tell whether text surely fits an encoding; what may not is for Django to judge."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError, TypeError):  # TypeError: a Charset object
        return False
    return True


def _write_risky_headers(message: EmailMessage, mime: Message) -> None:
    """Write the headers that may turn out, only when written, to hold what cannot be encoded.

    Text and addresses cannot, unless with escaped bytes (lone surrogates) somewhere; to write
    them always would be most of the cost of writing.
    """
    given = (message.subject, message.from_email, *message.to, *message.cc, *message.reply_to)
    texts = (*given, *message.extra_headers.values())
    is_escaped = any(_ESCAPED_BYTE.search(str(text)) for text in texts)
    for name, value in mime.raw_items():
        is_sound = value.isascii() or isinstance(value, (UnstructuredHeader, AddressHeader))
        if is_escaped or not is_sound:
            policies.SMTP.fold_binary(name, value)


def _check_part(part: Message) -> None:
    """Refuse headers of a MIME object that Django's SMTP backend could not write."""
    for inside in part.walk():
        policy = policies.SMTP if django.VERSION >= (6, 0) else inside.policy
        for name, value in inside.raw_items():
            with _refusing(f"the header {name!r} of the attached {inside.get_content_type()}"):
                folded = policy.fold_binary(name, value)
            if _UNFOLDED_NEWLINE.search(folded.rstrip(b"\r\n")):
                raise InvalidHeader(
                    f"Headers cannot contain newlines: {name!r} of the attached "
                    f"{inside.get_content_type()}."
                )
