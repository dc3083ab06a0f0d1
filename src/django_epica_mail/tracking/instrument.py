"""What the worker adds to a message, where the site asks for it: headers, and tracking."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterator
from email.policy import Policy
from functools import partial
from html.parser import HTMLParser
from typing import Any, Final

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


class _OneLine(str):
    """The value of a header that stays on one line: a link that is folded is none.

    Python's own headers write a long word as an encoded one, which no mail reader looks into.
    """

    name = LIST_UNSUBSCRIBE
    max_count = None

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


def instrument(message: EmailMessage, mail: EmailLog) -> None:
    """Change a message as its row asks for. Only mails with exactly one recipient do.

    A mail is sent without them where no link to the site can be made any more.
    """
    words = mail.additions.split()
    try:
        if UNSUBSCRIBE in words:
            _offer_unsubscribe(message, mail)
        if OPENS in words or CLICKS in words:
            _track(message, mail, opens=OPENS in words, clicks=CLICKS in words)
    except ImproperlyConfigured as error:
        logger.error("E-mail %s is sent without the links it was to carry. %s", mail.pk, error)


def _track(message: EmailMessage, mail: EmailLog, *, opens: bool, clicks: bool) -> None:
    """Let the provider count opens and clicks where it can, and count them ourselves elsewhere."""
    if transports.tracks(mail.transport):
        vars(message).update(track_opens=opens, track_clicks=clicks)
        return
    instrument_html(
        message,
        track=partial(links.click_url, mail.pk) if clicks else None,
        image=links.open_url(mail.pk) if opens else None,
        but=str(_header(message, LIST_UNSUBSCRIBE) or ""),
    )
    for name in ("track_opens", "track_clicks"):  # which the provider would refuse
        vars(message).pop(name, None)


def _offer_unsubscribe(message: EmailMessage, mail: EmailLog) -> None:
    """Add the headers of RFC 2369 and RFC 8058, unless the caller has said how to unsubscribe."""
    if _header(message, LIST_UNSUBSCRIBE) is not None:
        return
    (address,) = message.recipients()
    url = links.unsubscribe_url(address, mail.category, email_id=mail.pk)
    message.extra_headers[LIST_UNSUBSCRIBE] = _OneLine(f"<{url}>")
    message.extra_headers[LIST_UNSUBSCRIBE_POST] = "List-Unsubscribe=One-Click"


def _header(message: EmailMessage, name: str) -> Any:
    """Return a header that the caller has set, however the name is written."""
    headers = {known.lower(): value for known, value in message.extra_headers.items()}
    return headers.get(name.lower())


_LONGEST = 1500
"""Characters. Django redirects to no longer address than 2048, and a signed link is longer."""

_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>=][^\s/>=]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>]*))?""")


def instrument_html(
    message: EmailMessage, *, track: Callable[[str], str] | None, image: str | None, but: str = ""
) -> None:
    """Rewrite the HTML of a message, and nothing else of it.

    ``track`` returns the link that stands in for another; ``image`` is the address of the image;
    ``but`` is text, in which links stand that are left alone. A message that is stored as it goes
    over the wire is left as it is.
    """

    def rewritten(text: str) -> str:
        return rewrite_links(text, track=track, image=image, but=but)

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
    text: str, *, track: Callable[[str], str] | None, image: str | None, but: str = ""
) -> str:
    """Return HTML with its links replaced and an image at its end; the rest is as it was."""
    page = _Page(text)
    edits = []
    if track is not None:
        for start, end in page.hrefs:
            url = html.unescape(text[start:end]).strip()
            if _is_tracked(url, but):
                edits.append((start, end, html.escape(track(url))))
    if image is not None:
        tag = f'<img src="{html.escape(image)}" width="1" height="1" alt="">'
        edits.append((page.end_of_body, page.end_of_body, tag))
    pieces, done = [], 0
    for start, end, new in sorted(edits):  # a link may stand after the end of the body
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


def _is_tracked(url: str, but: str) -> bool:
    is_way_out = "unsubscribe" in url.lower() or url in but
    return len(url) <= _LONGEST and links.leads_to_a_page(url) and not is_way_out


class _Page(HTMLParser):
    """Finds where in HTML the links stand, and where its body ends."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.hrefs: list[tuple[int, int]] = []
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self._end: int | None = None
        self.feed(text)
        self.close()
        self.end_of_body = len(text) if self._end is None else self._end

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where the first ``href`` of a link stands; of several, it is the one that counts."""
        if tag in ("a", "area"):
            written = self.get_starttag_text() or ""
            start = self._offset()
            for name, first, last in _attributes(written, 1 + len(tag)):
                if name == "href":
                    self.hrefs.append((start + first, start + last))
                    break

    def handle_endtag(self, tag: str) -> None:
        """Note where the body ends; the last time counts."""
        if tag == "body":
            self._end = self._offset()

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column


def _attributes(tag: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the attributes of a tag that have a value: name, and where the value stands."""
    while (found := _ATTRIBUTE.match(tag, start)) is not None:
        start = found.end()
        if found[2]:
            first, last = found.span(2)
            if found[2][0] in "\"'":
                first, last = first + 1, last - 1
            yield found[1].lower(), first, last
