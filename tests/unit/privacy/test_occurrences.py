"""An address is found in every encoding that text brings it in, and never within another."""

from __future__ import annotations

import base64
import html
import itertools
import json
import quopri
import time
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_epica_mail.privacy.occurrences import Needle, fold, replace

ANN = Needle(["ann@example.com"])
ENCODERS = {
    "percent": lambda text: quote(text, safe=""),
    "json": lambda text: json.dumps(text)[1:-1],
    "escaped at": lambda text: text.replace("@", "\\u0040"),
    "quoted-printable": lambda text: quopri.encodestring(text.encode()).decode(),
    "html": lambda text: html.escape(text).replace("@", "&#64;").replace(".", "&period;"),
    "hexadecimal": lambda text: text.replace("@", "&#x40;"),
}


@pytest.mark.parametrize(
    "text",
    [
        "https://x.example/?to=ann%40example.com&n=1",
        "https://x.example/?to=ann%2540example.com&n=1",
        "https://x.example/?next=%2F%3Fto%3Dann%252540example.com",
        "https://x.example/%61nn@example.com",
        "550 user=3Dann@example.com unknown",
        "550 ann=40example.com unknown",
        "550 ann@exam=\r\nple.com unknown",
        "550 ann\\u00=\r\n40example.com unknown",
        "550 ann&#6=\n4;example.com unknown",
        "550 ann%=\n40example.com unknown",
        "VERP bounce=ann@example.com=",
        "<b>ann&#64;example.com</b>",
        "<b>ann&amp;#64;example&period;com</b>",
        r"Traceback\nann@example.com",
        r"{\"to\": \"ann\\u0040example.com\"}",
        "=?utf-8?b?{}?=".format(base64.b64encode(b"Ann ann@example.com").decode()),
        "=?utf-8?q?To=20ann=40example=2Ecom?=",
        "ann@example.com\u00a0",
        "ann\u200b@exam\u200bple.com",
        "Ann＠example.com",
        "_ann@example.com_",
        "report_of,ann@example.com_2026.pdf",
        "ANN@EXAMPLE.COM.",
        "...ann@example.com",
    ],
)
def test_an_address_is_found_and_replaced_in_every_encoding(text: str) -> None:
    hits = ANN.find(text)
    assert [hit.longer for hit in hits] == [""]
    assert ANN.find(replace(text, hits)) == []


@pytest.mark.parametrize(
    ("needle", "text"),
    [
        ("a@b.co", "aa@b.com"),
        ("a@b.co", "user=aaa@b.co"),
        ("a@b.co", "%61a@b.co"),
        ("a@b.co", "a@b.community"),
        ("a@b.co", "=?utf-8?b?{}?=".format(base64.b64encode(b"aa@b.com").decode())),
        ("nn@example.com", "user=dann@example.com"),
        ("nn@example.com", "é\u0301nn@example.com"),
    ],
)
def test_another_address_is_never_touched(needle: str, text: str) -> None:
    assert Needle([needle]).find(text) == []


@pytest.mark.parametrize(
    ("text", "longer"),
    [
        ("invoice_ann@example.com.pdf", "invoice_ann@example.com.pdf"),
        ("mary.ann@example.com", "mary.ann@example.com"),
        ("o'ann@example.com", "o'ann@example.com"),
        ("to ann@example.com.tr now", "ann@example.com.tr"),
    ],
)
def test_what_may_be_another_address_is_reported_and_left(text: str, longer: str) -> None:
    hits = ANN.find(text)
    assert [hit.longer for hit in hits] == [longer]
    assert replace(text, hits) == text


@pytest.mark.parametrize("text", ["İpek@example.com", "i\u0307pek@example.com", "İPEK@EXAMPLE.COM"])
def test_the_dotted_i_of_turkish_is_one_letter(text: str) -> None:
    assert [hit.longer for hit in Needle(["i\u0307pek@example.com"]).find(text)] == [""]


def test_the_beginning_of_an_address_that_a_column_cut_off_is_replaced() -> None:
    text = "Mozilla/5.0 for ann%40exam"
    assert ANN.find(text) == []
    assert replace(text, ANN.find(text, is_cut=True)) == "Mozilla/5.0 for [erased]"
    assert ANN.find("Mozilla/5.0 for joann", is_cut=True) == []


def test_tags_are_included_if_asked_for() -> None:
    text = "ann+news@example.com ann+@example.com"
    assert ANN.find(text) == []
    tagged = Needle(["ann@example.com"], tagged=True)
    assert replace(text, tagged.find(text)) == "[erased] [erased]"


@example(
    "\x80\x80\x80\U00010000\U00010000\U00010000\U00010000", ["escaped at", "quoted-printable"], " "
)
@given(
    st.text(max_size=20),
    st.lists(st.sampled_from(sorted(ENCODERS)), max_size=2),
    st.sampled_from([" ", "<", "\n", "(", ",", '"']),
)
def test_an_address_that_was_encoded_twice_is_found(
    noise: str, encoders: list[str], before: str
) -> None:
    text = f"{noise}{before}ann@example.com {noise}"
    for name in encoders:
        text = ENCODERS[name](text)
    assert any(not hit.longer for hit in ANN.find(text))


@given(st.text(alphabet="%=&\\@?_.u0041bqBQ;#x\r\n annexample.com", max_size=300))
def test_any_text_can_be_searched_and_replaced(text: str) -> None:
    hits = ANN.find(text, is_cut=True)
    assert all(0 <= hit.start < hit.end <= len(text) for hit in hits)
    assert all(one.end <= other.start for one, other in itertools.pairwise(hits))
    replace(text, hits)


def test_a_long_text_without_the_address_is_searched_in_passing() -> None:
    hits = ANN.find("someone%40else.example&x=1 " * 20_000)
    assert hits == []


@given(st.text())
def test_folding_is_idempotent(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    "bad", ["=?utf-8?b?abcde?=", "=?nothing?q?a?=", "=?punycode?q?a-b?=", "=?utf-8?q?=FF?="]
)
def test_a_word_that_cannot_be_read_hides_no_other(bad) -> None:
    assert ANN.find(bad) == []
    text = f"{bad} =?utf-8?q?ann=40example.com?= {bad}"
    assert "ann=40example" not in replace(text, ANN.find(text))
    assert ANN.find(f"{bad} ann@example.com")


@pytest.mark.parametrize(
    "text",
    [
        "=?punycode?q?" + "a" * 200_000 + "-" + "a" * 200_000 + "?=",
        "=?utf-8?q?" + "a" * 100_000 + "<ann@example.com?=",
        "=?utf-8?q?" + "ann@example.com," * 10_000 + "?=",
    ],
    ids=["quadratic charset", "long local part", "many within one word"],
)
def test_a_long_word_is_read_in_linear_time(text) -> None:
    started = time.process_time()
    ANN.find(text)
    assert time.process_time() - started < 10  # seconds; before, up to minutes
