"""Sanitises the HTML of an e-mail by an allow-list, so that showing it tells nobody.

The policy of the page (CSP) stops what the list lets through; this stops what no policy covers,
such as ``<link rel=preconnect>``. It needs the extra ``preview``.
"""

from __future__ import annotations

import base64
import email.policy
import re
from collections.abc import Iterator, Mapping
from email.message import Message
from email.parser import BytesParser
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from django.views.decorators.debug import sensitive_variables

from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.messages import RawMessage
from django_epica_mail.messages.raw import render
from django_epica_mail.models import EmailLog

_TAG_NAMES = """
a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup dd
del details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img ins
kbd li main mark nav ol p pre q s samp section small span strike strong style sub summary sup table
tbody td tfoot th thead time tr tt u ul var wbr
"""
"""No form, no frame, no embedded document, no vector image, and nothing of the head but styles."""

_REMOVED_WITH_CONTENT = frozenset(
    {"script", "title", "noscript", "template", "iframe", "object", "svg", "math", "select"}
)

_ATTRIBUTE_NAMES = """
align alt bgcolor border cellpadding cellspacing class color colspan dir face height id lang role
rowspan size style title valign width
"""
"""What every tag may have."""

_ATTRIBUTES = {
    "*": frozenset(_ATTRIBUTE_NAMES.split()),
    "a": frozenset({"href"}),
    "img": frozenset({"src"}),
    "ol": frozenset({"start", "type"}),
}

_LINK_SCHEMES = ("http:", "https:", "mailto:", "tel:")
_IMAGE_TYPES = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
_IMAGE_SOURCES = ("http:", "https:", *(f"data:{it};base64," for it in sorted(_IMAGE_TYPES)))
_LANGUAGE = re.compile(
    r"<html\b[^<>]{0,500}\blang=[\"']?([a-z]{2,8}(?:-[a-z0-9]{1,8}){0,3})\b", re.IGNORECASE
)
"""The language, by which a screen reader pronounces the text."""
_HEAD_CHARACTERS = 2000
"""Characters in which the language is looked for."""
_MAX_INLINE_BYTES = 5 * 1024 * 1024
"""Bytes of all inline images of an e-mail that are shown."""


def sanitized(html: str, images: Mapping[str, str]) -> str:
    """Return HTML with nothing but what the allow-list names.

    ``images`` are the data URLs of inline images by Content-ID. Links open in a new tab without a
    referrer. Raises ``MissingExtra`` if the package ``nh3`` is missing.
    """
    try:
        nh3: Any = import_module("nh3")
    except ImportError as error:
        raise MissingExtra(
            "To show the HTML of e-mails, a package is needed that removes what could reach out: "
            'pip install "django-epica-mail[preview]".'
        ) from error

    def checked(tag: str, name: str, value: str) -> str | None:
        start = value.strip().lower()
        if name == "href":
            return value if start.startswith(_LINK_SCHEMES) else None
        if name == "src" and start.startswith("cid:"):
            return images.get(unquote(value.strip()[len("cid:") :]))
        if name == "src":
            return value if start.startswith(_IMAGE_SOURCES) else None
        return value

    clean: str = nh3.clean(
        html,
        tags=set(_TAG_NAMES.split()),
        clean_content_tags=set(_REMOVED_WITH_CONTENT),
        attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
        attribute_filter=checked,
        url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
        link_rel="noreferrer noopener nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    language = _LANGUAGE.search(html[:_HEAD_CHARACTERS])
    start = f'<html lang="{language[1]}">\n' if language else ""
    return f"<!doctype html>\n{start}{clean}"


@sensitive_variables()
def inline_images(mail: EmailLog) -> dict[str, str]:
    """Return the data URLs of an e-mail's inline images by Content-ID, up to a limit of bytes.

    Raises ``UnreadableEnvelope`` and ``MissingKey`` as ``EmailLog.message`` does.
    """
    found, left = {}, _MAX_INLINE_BYTES
    for part in _parts(mail):
        name = str(part.get("Content-ID", "")).strip().strip("<>")
        if not name or part.get_content_type() not in _IMAGE_TYPES:
            continue
        content = part.get_payload(decode=True)
        if isinstance(content, bytes) and len(content) <= left:
            left -= len(content)
            data = base64.b64encode(content).decode()
            found[name] = f"data:{part.get_content_type()};base64,{data}"
    return found


def _parts(mail: EmailLog) -> Iterator[Message]:
    """Yield the MIME objects of an e-mail that may be inline images."""
    message = mail.message()
    if isinstance(message, RawMessage):
        yield from BytesParser(policy=email.policy.default).parsebytes(render(message)).walk()
        return
    for attachment in message.attachments:
        if isinstance(attachment, Message):
            yield from attachment.walk()
