"""What would fail in the worker, raised in the caller: headers, addresses, bodies, attachments."""

from __future__ import annotations

import contextlib
import re
from email import policy as policies
from email.headerregistry import AddressHeader, UnstructuredHeader
from email.message import Message
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail import message as django_mail
from django.core.mail.backends import smtp

from django_epica_mail import addresses
from django_epica_mail.exceptions import InvalidHeader, InvalidMessage
from django_epica_mail.serialization.attachments import Attachment, alternatives, attachments
from django_epica_mail.serialization.raw_message import builds_itself

if TYPE_CHECKING:
    from collections.abc import Iterator

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
