"""Own tracking: the HTML of a mail changed so that its links and an image tell of being used."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

from django.core.mail import EmailAlternative, EmailMessage, EmailMultiAlternatives

from django_epica_mail import links
from django_epica_mail.serialization import RawMessage

_LONGEST = 1500
"""Characters. Django redirects to no longer address than 2048, and a signed link is longer."""

_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>=][^\s/>=]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>]*))?""")


def apply(
    message: EmailMessage, *, track: Callable[[str], str] | None, image: str | None, but: str = ""
) -> None:
    """Rewrite the HTML of a message, and nothing else of it.

    ``track`` returns the link that stands in for another; ``image`` is the address of the image;
    ``but`` is text, in which links stand that are left alone. A message that is stored as it goes
    over the wire is left as it is.
    """

    def rewritten(text: str) -> str:
        return rewrite(text, track=track, image=image, but=but)

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


def rewrite(
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
