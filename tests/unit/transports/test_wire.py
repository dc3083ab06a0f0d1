"""A mail is built with the bytes that Django's own backend sends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from typing import Any

import pytest
from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage, EmailMultiAlternatives
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from django_epica_mail.messages import addresses, raw
from django_epica_mail.tracking import instrument
from django_epica_mail.transports import header_folding, wire
from tests import corpus

BUILT_BY_DJANGO = {name: make for name, make in corpus.CORPUS if not raw.builds_itself(make())}

ID = "<1.2@example.com>"

# Around the length at which lines are folded, and with text that only looks plain.
words = st.text("aZ09 ,;:<>@=?\"()[]._-\\'", max_size=90)
line = words | st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=90)
address = (
    st.from_regex(addresses._PLAIN, fullmatch=True)
    | st.emails()
    | st.builds("{} <{}>".format, words, st.emails())
)
message_id = st.from_regex(r"<[a-z0-9.-]{1,40}@[a-z0-9.-]{1,40}>", fullmatch=True) | line
header = st.tuples(st.sampled_from(["X-Order", "x-b", "List-Id", "Reply-To", "Message-ID"]), line)
# With everything that ends lines somewhere, and around the lengths at which text is encoded.
text = st.lists(
    st.sampled_from(
        ["\n", "\r", "\r\n", "\v", "\x1c", "\u2028", ".", "From ", " ", "\t", "\0", "="]
    )
    | st.text(max_size=20)
    | st.builds("".ljust, st.sampled_from([76, 77, 78, 79, 996, 998, 999]), st.sampled_from("aé")),
    max_size=8,
).map("".join)
subtype = st.sampled_from(["plain", "html", "calendar", "x-amp-html"])


def outcome(build: Callable[[EmailMessage], bytes], message: EmailMessage) -> bytes | str:
    """Return the normalised bytes, or the name of the error's class."""
    try:
        return corpus.normalise(build(message))
    except Exception as error:  # noqa: BLE001 - both builders must raise it
        return type(error).__name__


@pytest.mark.parametrize("make", BUILT_BY_DJANGO.values(), ids=BUILT_BY_DJANGO)
def test_every_kind_of_message_is_built_as_django_builds_it(
    make: Callable[[], EmailMessage],
) -> None:
    assert corpus.normalise(wire.build(make())) == corpus.normalise(corpus.wire_bytes(make()))


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    subject=line,
    sender=address,
    to=st.lists(address, min_size=1, max_size=3),
    reply_to=st.lists(address, max_size=1),
    headers=st.lists(header, max_size=2).map(dict),
    own_id=st.none() | message_id,
    html=st.none() | st.just("<p>ğ</p>"),
)
def test_every_header_is_written_as_django_writes_it(
    subject: str,
    sender: str,
    to: list[str],
    reply_to: list[str],
    headers: dict[str, Any],
    own_id: str | None,
    html: str | None,
) -> None:
    if own_id is not None:
        headers["Message-ID"] = own_id

    def make() -> EmailMessage:
        made = EmailMultiAlternatives(
            subject, "Body", sender, to, reply_to=reply_to, headers=dict(headers)
        )
        if html is not None:
            made.attach_alternative(html, "text/html")
        return made

    assert outcome(wire.build, make()) == outcome(raw.render, make())


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    body=text,
    content_subtype=subtype,
    alternatives=st.lists(st.tuples(text, subtype.map("text/{}".format)), max_size=2),
)
def test_every_text_is_written_as_django_writes_it(
    body: str, content_subtype: str, alternatives: list[tuple[str, str]]
) -> None:
    def make() -> EmailMessage:
        made = EmailMultiAlternatives("S", body, to=["to@example.com"], headers={"Message-ID": ID})
        made.content_subtype = content_subtype
        for alternative in alternatives:
            made.attach_alternative(*alternative)
        return made

    assert outcome(wire.build, make()) == outcome(raw.render, make())


def simple_mail(**changes: Any) -> EmailMultiAlternatives:
    made = EmailMultiAlternatives(
        "Siparişiniz yolda", "Çay yolda.\n", "Çaycı <shop@example.com>", ["to@example.com"]
    )
    made.attach_alternative("<p>Çay yolda.</p>", "text/html")
    made.extra_headers = {"Message-ID": ID, "List-Unsubscribe": "<https://example.com/u/1>"}
    vars(made).update(changes)
    return made


def test_a_simple_mail_is_written_directly() -> None:
    assert wire.chosen_way() is wire.Way.DIRECT
    assert wire.write_simple(simple_mail(), "b") is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"body": ""},
        {"encoding": "iso-8859-9"},
        {"attachments": [EmailAttachment("a.txt", "a", "text/plain")]},
        {"alternatives": [EmailAlternative(b"\0", "application/x-own")]},
        {"alternatives": [EmailAlternative("\ud800", "text/html")]},
        {"extra_headers": {}},
        {"extra_headers": {"Message-ID": ID, "X-Order": 7}},
        {"extra_headers": {"Message-ID": ID, "message-id": ID}},
        {"extra_headers": {"Message-ID": ID, "Content-Language": "tr", "MIME-Version": "1.0"}},
        {"extra_headers": {"Message-ID": ID, "X Order": "7"}},
        {"subject": "One\nTwo"},
    ],
    ids=str,
)
def test_a_mail_that_is_not_simple_is_not_written_directly(changes: dict[str, Any]) -> None:
    assert wire.write_simple(simple_mail(**changes), "b") is None


def test_a_non_ascii_domain_is_written_as_django_writes_it() -> None:
    made = partial(simple_mail, to=["Ayşe <ayse@bücher.example>"])
    assert outcome(wire.build, made()) == outcome(raw.render, made())


def test_a_header_with_its_own_folding_keeps_it() -> None:
    link = f"<https://example.com/{'a' * 90}>"
    headers = {"Message-ID": ID, "List-Unsubscribe": instrument._OneLine("List-Unsubscribe", link)}
    for value in (link, headers["List-Unsubscribe"]):  # the same text, but not the same header
        made = partial(simple_mail, extra_headers={**headers, "List-Unsubscribe": value})
        assert outcome(wire.build, made()) == outcome(raw.render, made())
        assert wire.write_simple(made(), "b") is not None


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Let the way be chosen anew, and again after the test."""
    wire.chosen_way.cache_clear()
    yield
    wire.chosen_way.cache_clear()


def wrong_header(name: str, value: object) -> bool:
    """Stand for a check that takes for plain what has to be encoded."""
    return isinstance(value, str) and len(value) > 100 and value.isascii()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("changed", "way", "sample"),
    [
        ((wire, "_MIME_VERSION", "MIME-Version: 1.1\r\n"), wire.Way.POLICIES, "one part"),
        ((wire, "_fold_header", lambda *_: b"X: 1\r\n"), wire.Way.POLICIES, ""),
        ((wire, "_encode_text", None), wire.Way.POLICIES, "one part"),
        ((header_folding, "is_written_verbatim", wrong_header), wire.Way.DJANGO, "folded headers"),
        ((header_folding, "_is_plain", None), wire.Way.DJANGO, "one part"),
    ],
    ids=lambda it: it[1] if isinstance(it, tuple) else None,
)
def test_a_way_that_builds_differently_from_django_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changed: tuple[Any, str, Any],
    way: wire.Way,
    sample: str,
) -> None:
    expected = {name: corpus.wire_bytes(make()) for name, make in wire._SAMPLES.items()}
    monkeypatch.setattr(*changed)
    for name, make in wire._SAMPLES.items():
        assert corpus.normalise(wire.build(make())) == corpus.normalise(expected[name])
    assert wire.chosen_way() is way
    (record,) = caplog.records
    assert f"a sample mail ({sample}" in record.getMessage()
    assert f"So mail is {way.value}" in record.getMessage()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("charset", ["iso-8859-1", "us-ascii", "iso-8859-9"])
def test_a_site_with_another_charset_sends_mail(settings: Any, charset: str) -> None:
    settings.DEFAULT_CHARSET = charset
    made = partial(simple_mail, subject="Order", body="Thank you.", from_email="shop@example.com")
    made = partial(made, alternatives=[], extra_headers={"Message-ID": ID, "Date": "x"})
    assert wire.build(made()) == raw.render(made())


@pytest.mark.usefixtures("fresh_choice")
def test_the_choice_builds_each_sample_once_by_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counter[str]()

    def counting(name: str) -> Callable[..., bytes | None]:
        build = getattr(wire, name)

        def counted(*args: Any) -> bytes | None:
            counts[name] += 1
            built: bytes | None = build(*args)
            return built

        return counted

    for name in ("_build_as_django", "_build_with_django", "write_simple"):
        monkeypatch.setattr(wire, name, counting(name))
    assert wire.chosen_way() is wire.chosen_way() is wire.Way.DIRECT
    samples = len(wire._SAMPLES)
    assert samples < 20  # a worker's start waits for them
    assert counts == {
        "_build_as_django": 2 * samples,  # to compare either way with
        "_build_with_django": samples,
        "write_simple": samples,
    }


def test_parts_of_one_message_do_not_leak_into_the_next() -> None:
    first = EmailMultiAlternatives("One", "Text", "from@example.com", ["to@example.com"])
    first.attach("a.txt", "content", "text/plain")
    second = EmailMessage("Two", "Text", "from@example.com", ["to@example.com"])
    before = corpus.normalise(wire.build(second))
    wire.build(first)
    assert corpus.normalise(wire.build(second)) == before


@given(st.binary(max_size=60) | st.text("a\r\n\0.").map(str.encode))
def test_nul_and_bare_line_ends_never_reach_the_wire(content) -> None:
    clean = wire.cleaned(content)
    assert b"\0" not in clean
    assert clean.count(b"\r") == clean.count(b"\n") == clean.count(b"\r\n")
    assert wire.cleaned(clean) is clean


def test_a_mail_that_is_fit_for_the_wire_is_left_as_it_is() -> None:
    content = b"A: b\r\n\r\n.\r\n"
    assert wire.cleaned(content) is content


@pytest.mark.parametrize("in_local_time", [True, False])
def test_dates_of_one_second_are_those_of_django_in_each_zone(
    settings: Any, monkeypatch: pytest.MonkeyPatch, in_local_time: bool
) -> None:
    settings.EMAIL_USE_LOCALTIME = in_local_time
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    dates = set()
    for zone in ("Asia/Tokyo", "America/Lima"):
        with timezone.override(zone):
            message = EmailMessage(
                "Subject", "Body", "a@b.co", ["c@d.co"], headers={"Message-ID": ID}
            )
            written = wire.write_simple(message, "boundary")
        assert written is not None
        parsed = message_from_bytes(written)
        assert mktime_tz(parsedate_tz(parsed["Date"])) == 1_700_000_000
        dates.add(parsed["Date"])
    assert len(dates) == (2 if in_local_time and wire._IS_MODERN else 1)
