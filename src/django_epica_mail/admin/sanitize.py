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

from django.utils.translation import gettext
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
_MAX_SHOWN = 4 * _MAX_INLINE_BYTES
"""Characters of their data URLs in a page: each place that shows an image has a copy of it."""

MAX_LENGTH = 400_000
"""Characters of HTML that are shown; mail clients show some 100,000."""
MAX_DEPTH = 2000
"""Elements within each other, counting those closed in the wrong order; browsers stop at 512."""
_MAX_WORK = 1_000_000
"""Tags, each counted once more for every open ``<b>`` and its like: a parser opens all of these
anew in each paragraph."""
_MAX_ROOTS = 10
"""Start tags of ``<html>``: a parser compares all attributes of each with those before."""

_SPACE = r"\t\n\f\r "
_TAG = re.compile(rf"<(?P<closes>/?)(?P<name>[a-z][^{_SPACE}/>]*)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rf"""[{_SPACE}/]*[^{_SPACE}/>][^{_SPACE}/>=]*
    (?:[{_SPACE}]*=[{_SPACE}]*(?:"[^"]*"|'[^']*'|(?P<opened>["'])|[^{_SPACE}>"'][^{_SPACE}>]*|))?""",
    re.VERBOSE,
)
_END_OF_TAG = re.compile(rf"[{_SPACE}/]*>")
_COMMENT = re.compile(r"<!--(?:-?>|.*?(?:--!?>|\Z))", re.DOTALL)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOID = _names(
    "area base basefont bgsound br col embed frame hr image img input keygen link meta param "
    "source track wbr"
)
_ENDED_BY_OTHERS = _names("p li dt dd td th tr thead tbody tfoot option colgroup")
"""Elements whose end tag may be left out: within each other only inside of further elements."""
_ENDS_THOSE = _names(
    "address article aside blockquote center dd details dialog dir div dl dt fieldset figcaption "
    "figure footer header hgroup li main menu nav ol p pre section summary ul "
    "table caption tbody thead tfoot tr td th"
)
"""Elements whose end tag also ends those within it whose own was left out."""
_FORMATTING = _names("a b big code em font i nobr s small strike strong tt u")
_RAW_TEXT = {
    name: re.compile(rf"</{name}(?=[{_SPACE}/>])", re.IGNORECASE)
    for name in _names("script style textarea title xmp iframe noembed noframes")
}
_UNCERTAIN = _names("svg math select plaintext frameset noscript template")
"""Elements within which the rules of HTML change."""


class TooMuchHTML(ValueError):  # noqa: N818
    """HTML that would take a parser much time or memory; the text says it to staff."""

    def __str__(self) -> str:
        return gettext(
            "This HTML is too long or nested too deeply to be shown here. Download the e-mail to "
            "read it."
        )


class _Nesting:
    """How deep the elements of HTML stand within each other, as a parser would see it at most.

    Reads tags as the HTML standard does (sections 13.2.5 and 13.2.6), in linear time. What is not
    closed in order counts as open, whatever the standard makes of it.
    """

    def __init__(self, html: str) -> None:
        """Read the HTML; raise ``TooMuchHTML`` if it is out of bounds."""
        self._html = html
        self._open: list[str] = []
        self._depth = self._formatting = self._roots = self._work = 0
        position: int | None = 0
        if len(html) > MAX_LENGTH:
            raise TooMuchHTML
        while position is not None and (start := html.find("<", position)) >= 0:
            position = self._read(start)
            if self._depth > MAX_DEPTH or self._work > _MAX_WORK or self._roots > _MAX_ROOTS:
                raise TooMuchHTML

    def _read(self, start: int) -> int | None:
        """Read what starts with ``<``; return its end, ``None`` if it has none."""
        comment, tag = _COMMENT.match(self._html, start), _TAG.match(self._html, start)
        if comment is not None:
            return comment.end()
        if tag is None:
            is_bogus = self._html.startswith(("<!", "<?", "</"), start)
            return (self._html.find(">", start + 2) + 1 or None) if is_bogus else start + 1
        position = tag.end()
        while (attribute := _ATTRIBUTE.match(self._html, position)) is not None:
            if attribute["opened"]:
                return None
            position = attribute.end()
        end = _END_OF_TAG.match(self._html, position)
        if end is None:
            return None
        name = tag["name"].lower()
        self._work += 1 + self._formatting
        if tag["closes"]:
            self._close(name)
            return end.end()
        self._push(name)
        if name in _UNCERTAIN:
            return self._count_rest(end.end())
        if name not in _RAW_TEXT:
            return end.end()
        closing = _RAW_TEXT[name].search(self._html, end.end())
        if name == "script" and "<!--" in self._html[end.end() : closing and closing.start()]:
            return self._count_rest(end.end())
        return closing and closing.start()

    def _count_rest(self, start: int) -> int:
        """Count all that may be a start tag from here on, and no end tag; return the end."""
        names = [
            tag["name"].lower() for tag in _TAG.finditer(self._html, start) if not tag["closes"]
        ]
        for name in names:
            self._push(name)
        self._work += len(names) * (1 + self._formatting)
        return len(self._html)

    def _push(self, name: str) -> None:
        if name not in _VOID:
            self._open.append(name)
            self._depth += name not in _ENDED_BY_OTHERS
            self._formatting += name in _FORMATTING
            self._roots += name == "html"

    def _close(self, name: str) -> None:
        """Close the last element that is open, if an end tag is its."""
        at = len(self._open) - 1
        if name == "form":
            return  # it does not always end the last one
        if name in _ENDS_THOSE:
            while at >= 0 and self._open[at] != name and self._open[at] in _ENDED_BY_OTHERS:
                at -= 1
                self._work += 1
        if at >= 0 and self._open[at] == name:
            del self._open[at:]
            self._depth -= name not in _ENDED_BY_OTHERS
            self._formatting -= name in _FORMATTING


def sanitized(html: str, images: Mapping[str, str]) -> str:
    """Return HTML with nothing but what the allow-list names.

    ``images`` are the data URLs of inline images by Content-ID, shown as often as there is room.
    Links open in a new tab without a referrer. Raises ``MissingExtra`` if the package ``nh3`` is
    missing, and ``TooMuchHTML`` for what is too long or nested too deeply to be parsed in a moment.
    """
    _Nesting(html)
    try:
        nh3: Any = import_module("nh3")
    except ImportError as error:
        raise MissingExtra(
            "To show the HTML of e-mails, a package is needed that removes what could reach out: "
            'pip install "django-epica-mail[preview]".'
        ) from error

    left = _MAX_SHOWN

    def shown(content_id: str) -> str | None:
        nonlocal left
        url = images.get(content_id, "")
        if len(url) > left:
            return None
        left -= len(url)
        return url or None

    def checked(tag: str, name: str, value: str) -> str | None:
        start = value.strip().lower()
        if name == "href":
            return value if start.startswith(_LINK_SCHEMES) else None
        if name == "src" and start.startswith("cid:"):
            return shown(unquote(value.strip()[len("cid:") :]))
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
