"""The text of a reply is one line that controls neither a terminal nor a page."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import replies, retry

hostile = st.text(
    st.sampled_from(
        "\x1b[]0;31mHPX^_\\\x07\x9b\x9c\x9d\x90\r\n\t\0\u202e\u2066\u200b\u2028\ud800a "
    )
)


@given(hostile | st.binary() | st.text())
def test_the_text_of_a_reply_is_one_line_without_controls(words: bytes | str) -> None:
    text = replies.reply_text(words)
    assert not [it for it in text if unicodedata.category(it) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert replies.reply_text(text) == text
    assert len(text) <= replies.REPLY_LENGTH


def test_an_endless_reply_is_cut_before_it_is_read() -> None:
    started = time.monotonic()
    for words in ("\x1b]" * 10_000_000, b"\x1b[" * 10_000_000):
        assert replies.reply_text(words) == ""
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (b"5.1.1 \x1b[31mred\x1b[0m", "5.1.1 red"),
        (b"\x1b]0;title\x07Gone", "Gone"),
        ("a\u202eb\u2066c\u200bd", "abcd"),
        (b"one\ntwo\r\nthree", "one two  three"),
        ("\x9b2Jcleared", "cleared"),
        (b"\x1bcreset", "reset"),
        ("Ayşe yok", "Ayşe yok"),
    ],
)
def test_a_reply_cannot_control_a_terminal_or_a_page(words, shown) -> None:
    assert replies.reply_text(words) == shown
    assert retry.classify_reply(550, words).reply == shown
