"""Checks a message in the caller for errors that would otherwise appear only in the worker.

Covers headers, addresses, bodies, attachments and alternatives; the last two are also normalised.
"""

from __future__ import annotations

import contextlib
import mimetypes
import re
from email import message_from_bytes
from email import policy as policies
from email.headerregistry import AddressHeader, UnstructuredHeader
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from enum import Enum
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
from django.utils.encoding import force_bytes
from django.utils.functional import LazyObject, Promise

from django_epica_mail.exceptions import InvalidHeader, InvalidMessage
from django_epica_mail.messages import addresses, bounds
from django_epica_mail.messages.mime import check_payloads
from django_epica_mail.messages.raw import builds_itself

if TYPE_CHECKING:
    from collections.abc import Iterator

Attachment: TypeAlias = EmailAttachment | Message

_HEADER_NAME = re.compile("[!-9;-~]+")
_PLAIN_HEADER_NAME = re.compile("X-[A-Za-z0-9-]{1,60}", re.ASCII | re.IGNORECASE)
_BUILD_OPTIONS = frozenset({"mixed_subtype", "alternative_subtype"})
"""Attributes that, when set on a message, change how Django builds it."""
_NEWLINE = re.compile(r"[\r\n]")
_PARSED_TYPES = "message/" if django.VERSION >= (6, 0) else "message/rfc822"
"""How media types start whose content Django parses and writes anew, if it is text or bytes."""
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_UNFOLDED_NEWLINE = re.compile(rb"\r\n(?![ \t])|\r(?![ \t\n])|(?<!\r)\n(?![ \t])")
"""A newline that does not start a folded line; RFC 5322, section 2.2.3."""


class Rules(Enum):
    """What the transports of a message read of it, and so what it has to comply with."""

    FIELDS = "fields"
    """The fields, as a provider's API takes them. The provider judges their values."""
    MIME = "mime"
    """The MIME object that ``message()`` builds."""
    SMTP = "smtp"
    """That object, and the addresses as the dialogue with a server has them."""


def check_injection(message: EmailMessage) -> None:
    """Raise for what no transport may be given: text without bounds, headers within headers.

    That is a newline in an address, a subject or a header, a header's name that is none, and a
    ``Bcc`` header. Raises ``ValueError``.
    """
    bounds.check_parts(message)
    _check_headers(message)
    for address in (message.from_email, *message.recipients(), *(message.reply_to or ())):
        if not addresses.is_plain(address) and _NEWLINE.search(str(address)):
            raise InvalidHeader(f"Addresses cannot contain newlines: {str(address)!r}.")


def is_simple(message: EmailMessage) -> bool:
    """Return whether a message complies with all ``Rules``, so that its transports do not matter.

    ``False`` only means that ``check`` has to find out. Ask it after ``check_injection``.
    """
    return not builds_itself(message) and _is_plain(message)


def check(message: EmailMessage, rules: Rules = Rules.SMTP) -> None:
    """Raise any error that sending this message would raise in the worker.

    Raises ``ValueError`` (``TypeError`` where Django does), also for what ``check_injection``
    refuses, which some versions of Django accept.

    Calls Django's own ``message()`` on a copy without the content of attachments, which is checked
    separately; the message itself does not change. Skips that for most messages, whose parts are
    certainly valid: building costs more than everything else in the caller. A message that builds
    its own MIME is not built here: ``dump`` builds it, once, and its errors reach the caller.
    """
    check_injection(message)
    if rules is Rules.FIELDS:
        _check_lines(message)
        return
    if rules is Rules.SMTP:
        _check_addresses(message)
    if builds_itself(message) or _is_plain(message):
        return
    copy = _copy_without_content(message)
    with _as_invalid_message("this message"):
        mime = copy.message()
        if django.VERSION >= (6, 0):
            _write_risky_headers(copy, mime)
    check_payloads(mime)


def attachments(message: EmailMessage) -> list[Attachment]:
    """Return a message's attachments in the form that ``attach()`` gives them.

    Each has a media type, and ``text/*`` content is ``str`` if it is UTF-8. Raises
    ``InvalidMessage`` for anything Django cannot attach.
    """
    return [_attachment(item) for item in message.attachments or ()]


def alternatives(message: EmailMessage) -> list[EmailAlternative]:
    """Return a message's alternatives, plain tuples included, with text or bytes as content.

    Raises ``InvalidMessage`` for anything Django cannot send.
    """
    return [_alternative(item) for item in getattr(message, "alternatives", None) or ()]


def _check_headers(message: EmailMessage) -> None:
    for name in message.extra_headers:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidHeader(
                f"{name!r} is not a valid header name: use printable ASCII without spaces, colons "
                "or newlines (RFC 5322, section 2.2)."
            )
        if name.lower() == "bcc":
            raise InvalidHeader(
                f"The header {name!r} is not allowed, because it would reveal the hidden "
                "recipients: pass them in the bcc argument instead."
            )
    if _NEWLINE.search(str(message.content_subtype)):
        raise InvalidHeader(
            f"The content subtype cannot contain newlines: {message.content_subtype!r}."
        )


def _check_addresses(message: EmailMessage) -> None:
    """Raise for addresses that this Django's SMTP backend refuses."""
    for address in (message.from_email, *message.recipients()):
        text = address if isinstance(address, str) else str(address)
        if addresses.is_plain(text):
            continue
        with _as_invalid_message(f"the address {text!r}"):
            _check_with_smtp_backend(text, str(message.encoding or settings.DEFAULT_CHARSET))


def _check_lines(message: EmailMessage) -> None:
    """Raise for a newline where Django's ``message()``, which is not called, would find one."""
    for name, value in {"Subject": message.subject, **message.extra_headers}.items():
        if _NEWLINE.search(str(value)):
            raise InvalidHeader(f"Headers cannot contain newlines: {name!r}.")


@lru_cache(maxsize=256)  # a site has few senders; errors are not cached
def _check_with_smtp_backend(address: str, encoding: str) -> None:
    if django.VERSION >= (6, 0):
        # Only this method is needed; __init__ would read the site's settings.
        smtp.EmailBackend.__new__(smtp.EmailBackend).prep_address(address)
    else:
        django_mail.sanitize_address(address, encoding)


@contextlib.contextmanager
def _as_invalid_message(what: str) -> Iterator[None]:
    """Convert every error except a plain ``ValueError`` or ``TypeError`` to ``InvalidMessage``."""
    try:
        yield
    except UnicodeError as error:
        # Not chained: the error contains the whole text.
        raise InvalidMessage(
            f"Django cannot encode {what}: {error}. Remove that character or use another encoding."
        ) from None
    except (ValueError, TypeError):
        raise
    except Exception as error:  # an AttributeError, for example, if a field has the wrong type
        raise InvalidMessage(
            f"Django cannot build {what}: {type(error).__name__}: {error}."
        ) from error


def _is_plain(message: EmailMessage) -> bool:
    """Return whether every version of Django certainly builds a message, judging by its parts.

    ``False`` only means that Django has to decide. Headers and addresses were checked before.
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
        and _is_printable(message.subject)
        and all(map(addresses.is_plain, names))
        and all(
            _PLAIN_HEADER_NAME.fullmatch(name) and _is_printable(value)
            for name, value in message.extra_headers.items()
        )
        and all(_is_plain_text_part(part) for part in parts)
    )


def _is_plain_text_part(part: object) -> bool:
    """Return whether a body or alternative is a pair of encodable text and a common media type."""
    if not isinstance(part, tuple) or len(part) != 2:
        return False
    text, mimetype = part
    usual = mimetype in ("text/plain", "text/html")
    return usual and isinstance(text, str) and _fits_encoding(text, "utf-8")


def _is_printable(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()


def _copy_without_content(message: EmailMessage) -> EmailMessage:
    """Return a shallow copy of a message; its attachments keep only content that may be invalid."""
    copy = object.__new__(type(message))
    vars(copy).update(vars(message))
    encoding = message.encoding or settings.DEFAULT_CHARSET
    vars(copy)["attachments"] = [_without_content(it, encoding) for it in attachments(message)]
    if isinstance(copy, EmailMultiAlternatives):
        vars(copy)["alternatives"] = alternatives(message)
    return copy


def _without_content(attachment: Attachment, encoding: Any) -> Attachment:
    """Return an attachment without valid content; raise if a part or message in it is invalid."""
    if isinstance(attachment, Message):
        _check_part(attachment)
        return attachment
    content: Any = attachment.content
    if isinstance(content, bytes):
        content = b""
    elif isinstance(content, EmailMessage):
        _check_headers(content)
        content = EmailMessage() if builds_itself(content) else _copy_without_content(content)
    elif isinstance(content, Message):
        _check_part(content)
    elif _fits_encoding(content, encoding):
        content = ""
    return attachment._replace(content=content)


def _fits_encoding(text: str, encoding: Any) -> bool:
    """Return whether text certainly fits an encoding; if ``False``, Django has to decide."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError, TypeError):  # TypeError: a Charset object
        return False
    return True


def _write_risky_headers(message: EmailMessage, mime: Message) -> None:
    """Write headers for which only writing shows whether they can be encoded.

    Text and addresses are not among them unless some text contains escaped bytes (lone
    surrogates), or an address a comment, on whose folding Python may fail. Writing them always
    would be most of the cost.
    """
    listed = (message.to, message.cc, message.reply_to)
    given = (message.subject, message.from_email, *(it for names in listed for it in names or ()))
    texts = (*given, *message.extra_headers.values())
    has_parenthesis = any("(" in str(text) for text in texts)
    is_escaped = any(_ESCAPED_BYTE.search(str(text)) for text in texts)
    for name, value in mime.raw_items():
        is_safe = value.isascii() or isinstance(value, (UnstructuredHeader, AddressHeader))
        may_have_comment = isinstance(value, AddressHeader) and has_parenthesis
        if is_escaped or may_have_comment or not is_safe:
            policies.SMTP.fold_binary(name, value)


def _check_part(part: Message) -> None:
    """Raise for headers of a MIME object that Django's SMTP backend could not write soon."""
    bounds.check_folding(part)
    for inner in part.walk():
        policy = policies.SMTP if django.VERSION >= (6, 0) else inner.policy
        of = f"of the attached {inner.get_content_type()}"
        for name, value in inner.raw_items():
            bounds.check_length(f"header {name!r} of an attached part", value, bounds.MAX_HEADER)
            with _as_invalid_message(f"the header {name!r} {of}"):
                folded = policy.fold_binary(name, value)
            if _UNFOLDED_NEWLINE.search(folded.rstrip(b"\r\n")):
                raise InvalidHeader(f"Headers cannot contain newlines: {name!r} {of}.")


def _attachment(item: Any) -> Attachment:
    if isinstance(item, Message):
        if not isinstance(item, (MIMEPart, MIMEBase) if django.VERSION >= (6, 0) else MIMEBase):
            raise InvalidMessage(
                f"A {type(item).__name__} cannot be attached with Django {django.__version__}: "
                "pass a tuple of file name, content and media type."
            )
        return item
    if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
        raise InvalidMessage(
            f"An attachment of type {type(item).__name__} is not valid: pass a MIME object or a "
            "tuple of file name, content and, optionally, media type."
        )
    filename, content, mimetype = [*item, None][:3]
    filename = None if filename is None else _single_line(filename, "file name of an attachment")
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
    if mimetype.startswith(_PARSED_TYPES) and isinstance(content, (str, bytes)):
        wire = force_bytes(content, errors="surrogatepass")
        if not _may_be_parsed(wire):  # it is attached as the file that it is
            content, mimetype = wire, DEFAULT_ATTACHMENT_MIME_TYPE
    return EmailAttachment(filename, content, mimetype)


def _may_be_parsed(wire: bytes) -> bool:
    """Return whether Django, which parses a message in bytes and writes it anew, can do so soon."""
    try:
        bounds.check_parsing(wire)
        parsed = message_from_bytes(wire)
        bounds.check_parts(parsed)
        _check_part(parsed)
    except Exception:  # noqa: BLE001 - it may be anybody's
        return False
    return True


def _attachment_content(content: Any, mimetype: str, filename: str | None) -> Any:
    if isinstance(content, (bytearray, memoryview)):
        return bytes(content)
    if isinstance(content, Promise):
        return str(content)
    if isinstance(content, LazyObject):
        _, (content,) = content.__reduce__()  # what it stands for
    is_message = mimetype.startswith("message/") and isinstance(content, (EmailMessage, Message))
    if is_message or isinstance(content, (str, bytes)):
        return content
    raise InvalidMessage(
        f"The content of the attachment {filename!r} ({mimetype}) is of type "
        f"{type(content).__name__}: pass bytes, text or, for message/rfc822, a message."
    )


def _alternative(item: Any) -> EmailAlternative:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InvalidMessage(
            f"An alternative of type {type(item).__name__} is not valid: pass a tuple of content "
            "and media type."
        )
    content, mimetype = item
    if isinstance(content, Promise):
        content = str(content)
    if not isinstance(content, (str, bytes)):
        raise InvalidMessage(
            f"The content of the alternative {mimetype!r} is of type {type(content).__name__}: "
            "pass text or bytes."
        )
    return EmailAlternative(content, _media_type(mimetype, "alternative"))


def _media_type(mimetype: Any, owner: str) -> str:
    text = _single_line(mimetype, f"media type of the {owner}")
    if not all(text.partition("/")):
        raise InvalidMessage(
            f"The media type of the {owner} is {text!r}: pass type and subtype, like "
            "'application/pdf' (RFC 2045, section 5.1)."
        )
    return text


def _single_line(value: Any, what: str) -> str:
    if isinstance(value, (Promise, LazyObject)):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidMessage(f"The {what} is {value!r}: pass a str.")
    if _NEWLINE.search(value):
        raise InvalidHeader(f"The {what} cannot contain newlines: {value!r}.")
    return value
