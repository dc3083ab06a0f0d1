"""The HTML of a tracked mail: links and end of body are changed, and not a byte more."""

from __future__ import annotations

import html
import re
import time
from html.parser import HTMLParser

import pytest
from django.core.mail import EmailMultiAlternatives
from hypothesis import given, settings
from hypothesis import strategies as st

from django_epica_mail import routing
from django_epica_mail.messages import RawMessage
from django_epica_mail.tracking import instrument, links

IMAGE = "https://shop.example/open/x/"
IMG = f'<img src="{IMAGE}" width="1" height="1" alt="">'


def track(url: str) -> str:
    return "https://shop.example/click/" + url.encode().hex() + "/"


def rewrite(text: str, *, image: str | None = None, exempt: str = "") -> str:
    return instrument.rewrite_links(text, track=track, image=image, exempt=exempt)


def undo(text: str) -> str:
    """Return the original HTML, provided that none of its links has character references."""

    def original(found: re.Match[str]) -> str:
        return bytes.fromhex(found[1]).decode()

    return re.sub(r"https://shop\.example/click/([0-9a-f]+)/", original, text).replace(IMG, "")


@pytest.mark.parametrize(
    "before",
    [
        '<a href="{}">x</a>',
        "<a href='{}'>x</a>",
        "<a href={}>x</a>",
        '<A\n  class="b"\n  HREF = "{}" >x</A>',
        '<a href="{}"/>',
        '<a title="a > b" href="{}">x</a>',
        '<a title=" href=https://no.example/" href="{}">x</a>',
        '<area shape="rect" href="{}">',
        '<p>é\r\n<b>\n<a\thref="{}"\r\n>x</a>',
        '<a href="{}" href="https://second.example/">x</a>',
        '<table><a href="{}"><img src="https://img.example/a.png"></a></table>',
        '<!doctype html><!-- <a href="https://no.example/"> --><a href="{}">x</a>',
    ],
)
def test_a_link_is_replaced_and_nothing_else_changes(before: str) -> None:
    url = "https://example.com/a?b=1"
    assert rewrite(before.format(url)) == before.format(track(url))


def test_character_references_in_a_link_are_resolved() -> None:
    assert rewrite('<a href="https://e.com/?a=1&amp;b=2&#38;c=3">x</a>') == (
        f'<a href="{track("https://e.com/?a=1&b=2&c=3")}">x</a>'
    )
    assert (
        rewrite('<a href=" https://e.com/ ">x</a>') == f'<a href="{track("https://e.com/")}">x</a>'
    )


@pytest.mark.parametrize(
    "text",
    [
        '<a href="mailto:a@example.com">x</a>',
        '<a href="tel:+905551112233">x</a>',
        '<a href="sms:+905551112233">x</a>',
        '<a href="#top">x</a>',
        '<a href="/relative">x</a>',
        '<a href="//example.com/">x</a>',
        '<a href="javascript:alert(1)">x</a>',
        '<a href="data:text/html,x">x</a>',
        '<a href="ftp://example.com/">x</a>',
        '<a href="https://">x</a>',
        '<a href="https://[bad/">x</a>',
        '<a href="https://example.com\\@evil.example/">x</a>',
        '<a href="https://exa mple.com/">x</a>',
        '<a href="https://example.com/unsubscribe/7">x</a>',
        '<a href="https://example.com/Unsubscribe?u=7">x</a>',
        '<a href="">x</a>',
        "<a href>x</a>",
        "<a>x</a>",
        '<a name="https://example.com/">x</a>',
        '<a data-href="https://example.com/">x</a>',
        '<link rel="stylesheet" href="https://example.com/a.css">',
        '<img src="https://example.com/a.png">',
        '<form action="https://example.com/"><input></form>',
        '<style>a { background: url("https://example.com/a.png") }</style>',
        "<script>\"<a href='https://example.com/'>\"</script>",
        '<!--[if mso]><a href="https://example.com/">x</a><![endif]-->',
        f'<a href="https://example.com/{"x" * 1500}">x</a>',
        "https://example.com/",
        "<a href='https://example.com/",
        "",
        "<",
        "<a",
    ],
)
def test_anything_but_a_link_to_a_web_page_is_left_alone(text: str) -> None:
    assert rewrite(text) == text


def test_a_link_in_the_unsubscribe_header_is_left_alone() -> None:
    text = '<a href="https://example.com/leave/7">x</a>'
    assert rewrite(text, exempt="<https://example.com/leave/7>, <mailto:x@example.com>") == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<body><p>x</p></body></html>", "<body><p>x</p>{}</body></html>"),
        ("<BODY>x</BODY >\n", "<BODY>x{}</BODY >\n"),
        ("<p>x</p>", "<p>x</p>{}"),
        ("<!-- </body> --><p>x", "<!-- </body> --><p>x{}"),
        ("", "{}"),
    ],
)
def test_the_image_is_at_the_end_of_the_body(before: str, after: str) -> None:
    assert instrument.rewrite_links(before, track=None, image=IMAGE) == after.format(IMG)


def test_a_link_after_the_end_of_the_body_is_tracked_too() -> None:
    after = '</body><p><a href="https://example.com/">x</a>'
    changed = rewrite(after, image=IMAGE)
    assert changed.startswith(f"{IMG}</body><p><a href=")
    assert undo(changed) == after


FRAGMENTS = st.sampled_from(
    [
        *('<a href="https://e.com/?a">', "<a href='http://e.com/'>", "<a href=https://e.com>"),
        *('<a\nhref="https://e.com/ü" x>', "</a>", "<p>", "\n", "\r\n", "\r", "é", "&amp;", "<!--"),
        *("-->", "<![CDATA[", "]]>", "</body>", "<style>", "</style>", "<script>", "</script>"),
        *("<", ">", '"', "'", "=", "/", "<a href", "<!", "<?", "&#x26;", "\0", "\x0c", "\u2028"),
    ]
)


@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=30))
def test_any_html_is_the_same_without_our_links_and_image(fragments: list[str]) -> None:
    text = "".join(fragments)
    changed = rewrite(text, image=IMAGE)
    assert changed.count(IMG) == 1
    assert undo(changed) == text
    assert rewrite(text) == changed.replace(IMG, "")


class _Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        value = next((value for name, value in attrs if name == "href"), None)
        if tag == "a" and value:
            self.found.append(value.strip())


@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=30))
def test_every_link_that_a_parser_finds_is_tracked(fragments: list[str]) -> None:
    text = "".join(fragments) + "-->"  # Python's versions differ about a comment without an end
    seen = [url for url in _Links(text).found if links.leads_to_a_page(url)]
    ours = [url for url in _Links(rewrite(text)).found if url.startswith("https://shop.example/")]
    assert ours == [track(url) for url in seen]


def test_only_the_html_parts_of_a_message_are_rewritten() -> None:
    message = EmailMultiAlternatives("S", "see https://example.com/")
    link = '<a href="https://example.com/">x</a>'
    for content, mimetype in ((link, "text/html"), (link, "text/x-amp-html"), (link, "text/plain")):
        message.attach_alternative(content, mimetype)
    instrument.instrument_html(message, track=track, image=None)
    assert message.body == "see https://example.com/"
    alternatives = [content for content, _ in message.alternatives]
    assert alternatives == [rewrite(link), link, link]


def test_an_html_body_is_rewritten() -> None:
    message = EmailMultiAlternatives("S", '<a href="https://example.com/">x</a>')
    message.content_subtype = "html"
    instrument.instrument_html(message, track=track, image=IMAGE)
    assert message.body == f'<a href="{track("https://example.com/")}">x</a>{IMG}'


def test_a_message_in_its_wire_format_is_unchanged() -> None:
    message = RawMessage(b"Subject: S\r\n\r\nx", ["to@example.com"])
    message.content_subtype, message.body = "html", '<a href="https://example.com/">x</a>'
    instrument.instrument_html(message, track=track, image=IMAGE)
    assert message.body == '<a href="https://example.com/">x</a>'


def test_a_replacement_is_escaped() -> None:
    found = instrument.rewrite_links(
        "<a href='https://e.com/'>x</a>", track=lambda _: "x'\"&y", image=None
    )
    assert found == f"<a href='{html.escape(chr(120) + chr(39) + chr(34) + '&y')}'>x</a>"


def test_the_words_of_the_row_are_those_of_the_options() -> None:
    assert set(routing.ADDITIONS) == {instrument.UNSUBSCRIBE, instrument.OPENS, instrument.CLICKS}


HOSTILE = (
    *("<a ", "<", "<a href=", "<!--", "</a ", "&", "<a '", '<a x="', "<![", "<?", "</", "<script>"),
    *("<a a ", "<a / ", "= ", "<title>", "</title ", "<!DOCTYPE ", "<a href='x' ", "<a href=x>"),
    *("<a" + " " * 50, "<style></style", "<textarea>", "<a href=\"'", "\n", "&#"),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4), st.sampled_from(HOSTILE))
def test_the_time_to_rewrite_html_grows_with_its_length_only(
    parts: list[str], opening: str
) -> None:
    pattern = "".join(parts)
    text = opening + pattern * (200_000 // len(pattern))
    started = time.process_time()
    instrument.rewrite_links(text, track=lambda url: url, image="https://shop.example/o")
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "text",
    [
        '<!-- <a href="https://a.example/"> -->',
        "<script>\"<a href='https://a.example/'>\"</script>",
        '<title><a href="https://a.example/"></title>',
        '<textarea><a href="https://a.example/"></textarea>',
        "<p title=\"<a href='https://a.example/'>\">",
        '<a href="https://a.example/',
        '<a title="x href=https://a.example/>',
        '<abbr href="https://a.example/">',
    ],
)
def test_what_only_looks_like_a_link_is_left_alone(text: str) -> None:
    assert instrument.rewrite_links(text, track=lambda url: "changed", image=None) == text
