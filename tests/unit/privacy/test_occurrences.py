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

from django_epica_mail.privacy import occurrences
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
        ("nn@example.com", "=?iso-8859-1?q?énn@example.com?="),
        ("nn@example.com", "=C3=\r\n=A9nn@example.com"),
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
        ("to=ADann@example.com", "adann@example.com"),
        ("to==E9=61=6E=6E=40example.com", "e9ann@example.com"),
        ("=93ann@example.com=94", "93ann@example.com"),
        ("=?iso-8859-1?q?=E9ann=40example.com?=", "e9ann@example.com"),
        ("to=ADann=40example.com", "adann@example.com"),
        ('mary."ann"@example.com', 'mary."ann"@example.com'),
        ('said"ann"@example.com', 'said"ann"@example.com'),
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
        "=?utf-8?b?" + "QQ=" * 1_500_000 + "?=",
    ],
    ids=["quadratic charset", "long local part", "many within one word", "padded within"],
)
def test_a_long_word_is_read_in_linear_time(text) -> None:
    started = time.process_time()
    ANN.find(text)
    assert time.process_time() - started < 10  # seconds; before, up to minutes


def test_a_word_longer_than_a_header_is_not_taken_apart_as_a_whole() -> None:
    text = f"=?utf-8?b?{'QUFB' * 250_000}?= =?utf-8?q?{'a_' * 100_000}ann=40example.com?="
    assert max(end - start for start, end in ANN._windows(text)) < 10_000  # characters
    assert len(ANN.find(text)) == 1


def word(charset: str, octets: bytes) -> str:
    return f"=?{charset}?b?{base64.b64encode(octets).decode()}?="


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("?q=caf%E9%20ann%40example.com&n=1", "?q=caf%E9%20[erased]&n=1"),
        ("caf%E9%3Cann%40example.com%3E%E9", "caf%E9%3C[erased]%3E%E9"),
        ("caf%C3%A9%20ann%40example.com", "caf%C3%A9%20[erased]"),
        ("%ABann%40example.com%BB", "%AB[erased]%BB"),
        ("%FF%61%6E%6E%40example%2E%63%6F%6D%FF", "%FF[erased]%FF"),
        ("%E2%82%61%6E%6E%40example.com%E2", "%E2%82[erased]%E2"),
        ("%25E9%2520ann%2540example.com", "%25E9%2520[erased]"),
        ("550 refus=E9=20ann=40example.com", "550 refus=E9=20[erased]"),
        ("550 refus=E9=0D=0Aann@example.com", "550 refus=E9=0D=0A[erased]"),
        ("550 refus=C3=\r\n=A9=20ann@example.com", "550 refus=C3=\r\n=A9=20[erased]"),
    ],
)
def test_octets_that_are_no_utf_8_hide_no_address_and_are_kept(text: str, left: str) -> None:
    assert replace(text, ANN.find(text)) == left


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_any_octets_around_an_address_are_kept(before: bytes, after: bytes) -> None:
    first, last = (f"{quote(before)}%20", f"%20{quote(after)}")
    text = f"{first}%61nn%40example%2Ecom{last}"
    assert replace(text, ANN.find(text)) == f"{first}[erased]{last}"


@pytest.mark.parametrize(
    "text",
    [
        word("utf-8", b"caf\xe9 ann@example.com"),
        word("us-ascii", b"caf\xe9 ann@example.com"),
        word("utf-8", b"\xffann@example.com\xff"),
        word("x-unknown", b"ann@example.com"),
        word("unknown-8bit", b"to ann@example.com"),
        word("zlib", b"ann@example.com"),
        word("punycode", b"to ann@example.com"),
        word("utf-8*en", b"ann@example.com"),
        word("utf-8", b"to ann@example.com").replace("?=", "A?="),
        "=?utf-8?b?dG8g=YW5uQGV4YW1wbGUuY29t?=",
        "=?utf-8*en-GB?Q?caf=E9_ann=40example=2Ecom?=",
        "=?utf-8?q?To_ann=40exam?=\r\n =?x-unknown?q?ple.com?=",
    ],
)
def test_a_word_is_read_as_far_as_possible(text: str) -> None:
    assert [hit.longer for hit in ANN.find(text)] == [""]


def test_only_the_word_with_the_address_is_replaced() -> None:
    other, own = word("utf-8", b"Caf\xe9"), word("iso-8859-1", b"\xabann@example.com\xbb")
    text = f"{other} {own} {other} and more"
    assert replace(text, ANN.find(text)) == f"{other} [erased] {other} and more"


@pytest.mark.parametrize("before", [r"\f", r"\b", r"\\f", r"%5Cb"])
def test_an_address_after_any_control_character_of_json_is_found(before: str) -> None:
    text = f"{before}ann@example.com"
    assert replace(text, ANN.find(text)) == f"{before}[erased]"


@pytest.mark.parametrize(
    "written", ['"ann"@example.com', r"\"ann\"@example.com", "&quot;ann&quot;@example.com",
                "%22ann%22%40example.com"],
)  # fmt: skip
def test_quotes_around_the_local_part_are_replaced_too(written: str) -> None:
    text = f"550 <{written}> unknown"
    assert replace(text, ANN.find(text)) == "550 <[erased]> unknown"


@pytest.mark.parametrize(
    "text", ['"Smith ann"@example.com', '"joann"@example.com', 'ann"@example.com']
)
def test_another_quoted_local_part_is_never_touched(text: str) -> None:
    assert ANN.find(text) == []


MIXED = "@@@@@@@@@@@@@@%2541=3D41&amp;#65;\\u005cx41=?utf-8?q?=25?= "


@pytest.mark.parametrize("unit", [MIXED, "@=", "ann@example.com ", "=?utf-8?q?ann?= "])
@pytest.mark.parametrize("address", ["ann@example.com", f"ann.{'a' * 50}@{'b' * 40}.example.com"])
def test_dense_text_is_read_in_few_and_short_windows(monkeypatch, unit, address) -> None:
    needle = Needle([address])
    text = unit * (20_000 // len(unit))
    lengths = []
    readings = occurrences._readings

    def counted(window, start):
        lengths.append(len(window))
        assert sum(lengths) <= 2 * len(text)  # characters, each of which costs microseconds
        return readings(window, start)

    monkeypatch.setattr(occurrences, "_readings", counted)
    needle.find(text)
    assert max(lengths, default=0) < len(text)  # or every reading would be as long as the text


@pytest.mark.parametrize("unit", [MIXED, "@ ", "=40 "])
def test_every_address_in_dense_text_is_found_wherever_windows_end(unit: str) -> None:
    text = "".join(f"{unit * (number % 7)} <ann%40example.com>" for number in range(200))
    assert replace(text, ANN.find(text)) == text.replace("ann%40example.com", "[erased]")


@pytest.mark.parametrize(
    "text", ["aa@b.co{} @ a=40", "@ a=40{}a@b.community", "%C3%A9a@b.co{} @ a=40"]
)
def test_the_end_of_a_window_cuts_no_other_address(text: str) -> None:
    needle = Needle(["a@b.co"])
    assert not any(needle.find(text.format(" " * length)) for length in range(400))
    assert not any(needle.find(text.format(" @" * length)) for length in range(400))
