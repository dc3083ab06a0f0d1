"""Adds to a message what its row asks for: unsubscribe headers, open and click tracking."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from email.policy import SMTP, Policy
from functools import partial
from typing import Any, Final, NamedTuple

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailAlternative, EmailMessage, EmailMultiAlternatives

from django_epica_mail.messages import RawMessage
from django_epica_mail.models import EmailLog
from django_epica_mail.tracking import links
from django_epica_mail.transports import config as transports

logger = logging.getLogger(__name__)

UNSUBSCRIBE: Final = "unsubscribe"
OPENS: Final = "opens"
CLICKS: Final = "clicks"

LIST_UNSUBSCRIBE, LIST_UNSUBSCRIBE_POST = "List-Unsubscribe", "List-Unsubscribe-Post"

_MAX_URL_LENGTH = 1500
"""Characters of a link that is tracked. Django redirects to URLs of 2048 at most, and the signed
link is longer than its target."""

_MAX_LINE = 998
"""Characters of a line without its end (RFC 5322, section 2.1.1)."""

_TAG_NAME = re.compile(r"[A-Za-z][^\s/>]*")
_ATTRIBUTE = re.compile(
    r"""[\s/]*(?P<name>[^\s/>][^\s/>=]*)
    (?:\s*=\s*(?:(?P<value>"[^"]*"|'[^']*'|[^\s>"'][^\s>]*)|(?P<opened>["'])|))?""",
    re.VERBOSE,
)
_RAW_TEXT = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
}
"""Elements whose content is text, with what ends it."""


class _OneLine(str):
    """A header value that is never folded, because a folded link is broken.

    Python would write a long link as an encoded word, which mail clients do not decode here.
    """

    __slots__ = ("name",)
    max_count = None
    name: str

    def __new__(cls, name: str, value: str) -> _OneLine:
        header = super().__new__(cls, value)
        header.name = name
        return header

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Return what a copy is made of; Django's locmem backend keeps one of each message."""
        return self.name, str(self)

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


def keep_links_whole(message: EmailMessage) -> None:
    """Keep the links of a mailing list's headers (RFC 2369) on one line.

    Since Django 6.0, Python would encode those too long for one.
    """
    if django.VERSION < (6, 0):
        return
    for name, value in message.extra_headers.items():
        if (
            name.lower().startswith("list-")
            and isinstance(value, str)
            and value.isascii()
            and value.isprintable()
            and len(name) + len(value) + 2 <= _MAX_LINE
            and "=?" in SMTP.fold(name, value)
        ):
            message.extra_headers[name] = _OneLine(name, value)


def instrument(message: EmailMessage, mail: EmailLog) -> None:
    """Add to a message what its row asks for, which only a mail to one recipient does.

    If links to the site can no longer be made, the mail is sent without them.
    """
    wanted = mail.additions.split()
    try:
        if UNSUBSCRIBE in wanted:
            _offer_unsubscribe(message, mail)
        if OPENS in wanted or CLICKS in wanted:
            _track(message, mail, opens=OPENS in wanted, clicks=CLICKS in wanted)
    except ImproperlyConfigured as error:
        logger.error("E-mail %s is sent without its links to the site. %s", mail.pk, error)


def _offer_unsubscribe(message: EmailMessage, mail: EmailLog) -> None:
    """Add the headers of RFC 2369 and RFC 8058, unless the caller has set its own."""
    if _header(message, LIST_UNSUBSCRIBE) is not None:
        return
    (address,) = message.recipients()
    url = links.unsubscribe_url(address, mail.category, email_id=mail.pk)
    message.extra_headers[LIST_UNSUBSCRIBE] = _OneLine(LIST_UNSUBSCRIBE, f"<{url}>")
    message.extra_headers[LIST_UNSUBSCRIBE_POST] = "List-Unsubscribe=One-Click"


def _track(message: EmailMessage, mail: EmailLog, *, opens: bool, clicks: bool) -> None:
    """Have the provider count opens and clicks if it can; otherwise count them ourselves."""
    if transports.tracks(mail.transport):
        vars(message).update(track_opens=opens, track_clicks=clicks)
        return
    instrument_html(
        message,
        track=partial(links.click_url, mail.pk) if clicks else None,
        image=links.open_url(mail.pk) if opens else None,
        exempt=str(_header(message, LIST_UNSUBSCRIBE) or ""),
    )
    for name in ("track_opens", "track_clicks"):  # the provider would refuse these
        vars(message).pop(name, None)


def _header(message: EmailMessage, name: str) -> Any:
    """Return a header set by the caller, or ``None``; case does not matter in its name."""
    headers = {known.lower(): value for known, value in message.extra_headers.items()}
    return headers.get(name.lower())


def instrument_html(
    message: EmailMessage,
    *,
    track: Callable[[str], str] | None,
    image: str | None,
    exempt: str = "",
) -> None:
    """Rewrite the links in the HTML parts of a message, and nothing else.

    ``track`` returns the replacement for a link; ``image`` is the URL of the tracking image; links
    that occur in the text ``exempt`` are left alone. A ``RawMessage``, which is stored in its wire
    format, is left unchanged.
    """

    def rewritten(text: str) -> str:
        return rewrite_links(text, track=track, image=image, exempt=exempt)

    if isinstance(message, RawMessage):
        return
    if message.content_subtype == "html" and isinstance(message.body, str):
        message.body = rewritten(message.body)
    if isinstance(message, EmailMultiAlternatives):
        message.alternatives = [
            EmailAlternative(rewritten(content), mimetype)
            if mimetype == "text/html" and isinstance(content, str)
            else EmailAlternative(content, mimetype)
            for content, mimetype in message.alternatives
        ]


def rewrite_links(
    text: str, *, track: Callable[[str], str] | None, image: str | None, exempt: str = ""
) -> str:
    """Return HTML with its links replaced and an image at its end; the rest is unchanged."""
    page = _Page(text)
    edits = []
    if track is not None:
        for start, end in page.hrefs:
            url = html.unescape(text[start:end]).strip()
            if _is_tracked(url, exempt):
                edits.append((start, end, html.escape(track(url))))
    if image is not None:
        tag = f'<img src="{html.escape(image)}" width="1" height="1" alt="">'
        edits.append((page.end_of_body, page.end_of_body, tag))
    pieces, done = [], 0
    for start, end, new in sorted(edits):  # a link may come after the end of the body
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


def _is_tracked(url: str, exempt: str) -> bool:
    is_unsubscribe = "unsubscribe" in url.lower() or url in exempt
    return len(url) <= _MAX_URL_LENGTH and links.leads_to_a_page(url) and not is_unsubscribe


class Tag(NamedTuple):
    """A start tag or an end tag in HTML."""

    name: str
    """In lower case."""
    start: int
    end: int
    """The position after it."""
    attributes: Mapping[str, tuple[int, int]] | None
    """Where the value of each attribute starts and ends; ``None`` for an end tag."""


def tags(text: str) -> Iterator[Tag]:
    """Yield the tags in HTML, found in one linear pass.

    It recognises what may hide a tag as the HTML standard does (section 13.2.5): comments, quoted
    attribute values, and the text of scripts, styles, titles and text areas. What is never closed
    hides all that follows.
    """
    position: int | None = 0
    while position is not None and (start := text.find("<", position)) >= 0:
        closes = text.startswith("</", start)
        name = _TAG_NAME.match(text, start + 1 + closes)
        if name is not None and not closes:
            tag = _start_tag(text, name[0].lower(), start, name.end())
            if tag is None:
                return
            yield tag
            position = tag.end
            if (ending := _RAW_TEXT.get(tag.name)) is not None:
                closing = ending.search(text, position)
                position = None if closing is None else closing.start()
        elif text.startswith("<!--", start):
            position = _after(text, "-->", start + 4)
        elif closes or text.startswith(("<!", "<?"), start):
            position = _after(text, ">", start + 2)
            if name is not None:
                yield Tag(name[0].lower(), start, position or len(text), None)
        else:
            position = start + 1


def _start_tag(text: str, name: str, start: int, position: int) -> Tag | None:
    """Read a start tag; return ``None`` if it is never closed."""
    attributes: dict[str, tuple[int, int]] = {}
    while (found := _ATTRIBUTE.match(text, position)) is not None:
        position = found.end()
        if found["opened"]:
            return None  # a quoted value that is never closed
        if value := found["value"]:
            quoted = value[0] in "\"'"
            span = found.start("value") + quoted, found.end("value") - quoted
        else:
            span = position, position
        attributes.setdefault(found["name"].lower(), span)  # the first one counts
    end = _after(text, ">", position)
    return None if end is None else Tag(name, start, end, attributes)


class _Page:
    """The positions of the links in HTML and of the end of its body."""

    def __init__(self, text: str) -> None:
        self.hrefs: list[tuple[int, int]] = []
        self.end_of_body = len(text)
        for tag in tags(text):
            if tag.attributes is None:
                if tag.name == "body":
                    self.end_of_body = tag.start  # the last one counts
            elif tag.name in ("a", "area") and (href := tag.attributes.get("href")) is not None:
                self.hrefs.append(href)


def _after(text: str, mark: str, start: int) -> int | None:
    """Return the position after the next ``mark``; ``None`` if there is none."""
    found = text.find(mark, start)
    return None if found < 0 else found + len(mark)
