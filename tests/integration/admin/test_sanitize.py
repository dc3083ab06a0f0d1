"""The HTML of a hostile e-mail, sanitised: nothing of it can reach out."""

from __future__ import annotations

import re
import sys
import time
from email.message import MIMEPart
from email.mime.image import MIMEImage
from html.parser import HTMLParser
from typing import Any

import django
import nh3
import pytest
from django.core.mail import EmailMultiAlternatives
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import outbox
from django_epica_mail.admin import sanitize
from django_epica_mail.admin.sanitize import TooMuchHTML, inline_images, sanitized
from tests.integration.admin.pages import html_of, url

PNG = b"\x89PNG\r\n\x1a\nimage"
EVIL = "//evil.example"


class Parsed(HTMLParser):
    """The start tags of a document with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "html",
    [
        f'<link rel=preconnect href="{EVIL}">', f'<link rel=dns-prefetch href="{EVIL}">',
        f'<link rel=stylesheet href="{EVIL}">', f'<base href="{EVIL}">',
        f'<meta http-equiv=refresh content="0;url={EVIL}">', f'<script src="{EVIL}"></script>',
        f'<iframe src="{EVIL}"></iframe>', f'<object data="{EVIL}"></object>',
        f'<embed src="{EVIL}">', f'<video src="{EVIL}" poster="{EVIL}"></video>',
        f'<svg><image href="{EVIL}"/></svg>', f'<form action="{EVIL}"><button>x</button></form>',
        f'<input type=image src="{EVIL}">', f'<img srcset="{EVIL}">',
        f'<map><area href="{EVIL}"></map>', f'<a href="{EVIL}" ping="{EVIL}">x</a>',
        f'<table background="{EVIL}"></table>', f'<math href="{EVIL}"></math>',
        f'<picture><source srcset="{EVIL}"></picture>', f'<body background="{EVIL}">',
    ],
)  # fmt: skip
def test_nothing_that_reaches_out_is_left(html) -> None:
    assert "evil.example" not in sanitized(f"<html><head>{html}</head><body>{html}", {})


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", " java\nscript:x", "data:text/html,x", "/admin/", "cid:x"]
)
def test_links_lead_only_to_pages_mailboxes_and_telephones(address) -> None:
    html = sanitized(f'<a href="{address}">x</a><img src="{address}">', {})
    assert "href" not in html
    assert "src" not in html


def test_links_open_in_a_new_tab_without_a_referrer() -> None:
    html = sanitized('<a href="https://shop.example/" target="_top" rel="opener">x</a>', {})
    ((_, attributes),) = [it for it in Parsed(html).tags if it[0] == "a"]
    assert attributes["target"] == "_blank"
    assert str(attributes["rel"]).split() == ["noreferrer", "noopener", "nofollow"]


def test_the_look_of_a_mail_is_kept() -> None:
    html = '<style>p{color:red}</style><table bgcolor="#fff"><tbody><tr><td style="width:1px">x'
    shown = sanitized(f"<title>gone</title>{html}", {})
    for part in ("<style>p{color:red}</style>", 'bgcolor="#fff"', 'style="width:1px"'):
        assert part in shown
    assert "gone" not in shown


@given(st.text(alphabet="<>/=\"'&; aimgsrchefstyl:-!pt\n", max_size=80))
def test_whatever_the_html_only_listed_tags_are_left(html) -> None:
    for tag, attributes in Parsed(sanitized(f"<p>{html}</p>", {})).tags:
        assert tag not in ("link", "base", "meta", "script", "iframe", "form", "svg")
        assert not [name for name in attributes if name.startswith("on")]


def with_image(subtype: str = "png", content: bytes = PNG) -> Any:
    message = EmailMultiAlternatives("S", "B", None, ["a@example.com"])
    message.attach_alternative('<img src="cid:logo@shop" alt="Logo">', "text/html")
    if django.VERSION >= (6, 0):
        image: Any = MIMEPart()
        image.set_content(content, maintype="image", subtype=subtype)
    else:
        image = MIMEImage(content, subtype)
    image["Content-ID"] = "<logo@shop>"
    message.attach(image)
    return outbox.enqueue(message, transport="smtp")


def test_inline_images_are_shown_without_asking_anybody(reader) -> None:
    mail = with_image()
    page = reader.get(url("emaillog_html", mail.pk)).content.decode()
    assert '<img src="data:image/png;base64,iVBORw0KGgppbWFnZQ==" alt="Logo">' in page


@pytest.mark.parametrize(
    ("subtype", "content"), [("svg+xml", b"<svg/>"), ("png", b"\0" * (5 * 1024 * 1024 + 1))]
)
def test_drawings_and_huge_images_are_not_inlined(db, subtype, content) -> None:
    assert inline_images(with_image(subtype, content)) == {}


def test_an_image_that_is_shown_thousands_of_times_does_not_fill_the_memory() -> None:
    image = "data:image/png;base64," + "A" * 100_000
    page = sanitized('<img src="cid:a">' * 2000, {"a": image})
    assert page.count("<img") == 2000
    assert 100 < page.count(image) < 300


def test_without_the_extra_the_page_shows_no_html_and_names_it(reader, letter, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nh3", None)
    page = reader.get(url("emaillog_html", letter.pk)).content.decode()
    assert "django-epica-mail[preview]" in page
    assert "words" not in page
    assert "plain words" in html_of(reader, "emaillog_change", letter.pk)


@pytest.mark.parametrize(
    ("html", "language"),
    [
        ('<!doctype html><html lang="tr"><body>x', "tr"),
        ("<html class=a lang=pt-BR>x", "pt-BR"),
        ('<html lang="tr" onload=evil()">x', "tr"),
        ("<html>x", None),
        ("<p lang=tr>x", None),
    ],
)
def test_the_language_of_the_document_is_kept(html: str, language: str | None) -> None:
    tags = dict(Parsed(sanitized(html, {})).tags)
    assert tags.get("html", {}) == ({"lang": language} if language else {})


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 40_000, "<span><div></span></div>" * 20_000, "<p><div></p>" * 20_000,
        "".join(f"<b id={i}><p>" for i in range(15_000)),
        "<p>" + "".join(f"<b id={i}>" for i in range(1000)) + "</p>" + "<p>x" * 40_000,
        "".join(f"<html a{i}=1>" for i in range(15_000)),
        "<div><!--</div>-->" * 10_000, '<div title="</div>">' * 10_000,
        "<svg></svg>" + "<div></div>" * 10_000, "<script><!--</script>" + "<i></i>" * 10_000,
        "<table><form>x</form>" * 10_000, "x" * 400_001, "<" * 1_000_000,
    ],
)  # fmt: skip
def test_html_that_would_take_a_parser_long_is_not_shown(html) -> None:
    started = time.process_time()
    with pytest.raises(TooMuchHTML):
        sanitized(html, {})
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "html",
    [
        "<p>one<p>two" * 5000, "<ul>" + "<li>item" * 5000 + "</ul>",
        "<!--[if mso]><table><tr><td><![endif]-->x<!--[if mso]></table><![endif]-->" * 2000,
        "<style>a > b { color: red }</style>" * 500, "<br><img src='https://a.example'>" * 3000,
        "<table>" + "<tr><td><b>cell</b><td><a href='//a.example/?a>b'>x</a>" * 3000 + "</table>",
        "<div>" * 200 + "x" + "</div>" * 200,
    ],
)  # fmt: skip
def test_the_html_of_long_reports_is_shown(html) -> None:
    assert sanitized(html, {})


ELEMENTS = ["div", "span", "b", "p", "table", "tr", "td", "li", "ul", "a", "h1", "button", "form"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["<{} id={}>", "</{}>", "x</{}>"]), st.sampled_from(ELEMENTS)),
        min_size=1,
        max_size=8,
    )
)
def test_no_order_of_tags_hides_how_deep_they_are(tags) -> None:
    """Compare what is counted with what the parser made of it."""
    html = "".join(form.format(name, number) for number in range(100) for form, name in tags)
    clean = nh3.clean(html, tags=set(ELEMENTS), attributes={it: {"id"} for it in ELEMENTS})
    depth = deepest = 0
    for closes, name in re.findall(r"<(/?)(\w+)", clean):
        if name not in sanitize._ENDED_BY_OTHERS:
            depth += -1 if closes else 1
            deepest = max(deepest, depth)
    counted = _counted(html)
    assert deepest <= counted + 10


def _counted(html: str) -> int:
    deepest = 0

    class Counted(sanitize._Nesting):
        def _push(self, name: str) -> None:
            nonlocal deepest
            super()._push(name)
            deepest = max(deepest, self._depth)

    Counted(html)
    return deepest
