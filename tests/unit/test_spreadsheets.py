"""Cells of CSV files."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.spreadsheets import escape, is_formula, line, unescape


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "\nx",
        "  =1",
        "\u00a0=1",
        "\ufeff=1",
        "\u200b=1",
        "\u2060\u200d +1",
        "\u00ad@x",
        "\0=1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20x",
    ],
)
def test_a_cell_that_looks_like_a_formula_is_escaped(text: str) -> None:
    assert escape(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a", "1+1", "a@example.com", "'quoted", " a", "'"])
def test_any_other_cell_stays_unchanged(text: str) -> None:
    assert escape(text) == text


@given(st.text() | st.text(alphabet="'=+ a\t\u00a0", max_size=6))
def test_a_cell_is_safe_and_comes_back_the_same(text: str) -> None:
    escaped = escape(text)
    assert not is_formula(escaped)
    assert unescape(escaped) == text


def test_a_line_is_csv() -> None:
    assert line(["a", 'b"c', "d,e"]) == 'a,"b""c","d,e"\r\n'
    assert line(["a", "1"], quotes_all=True) == '"a","1"\r\n'


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("x;=1+1;", "x;'=1+1;"),
        ("x\t@SUM(A1)", "x\t'@SUM(A1)"),
        ("x\r\n\u00a0-1", "x\r\n'\u00a0-1"),
        ("x;'=1", "x;''=1"),
        ("=1;+1", "'=1;'+1"),
        ("x; y, -z = 1", "x; y, -z = 1"),
    ],
)
def test_no_cell_begins_a_formula_where_another_language_splits_it(text: str, escaped: str) -> None:
    assert escape(text) == escaped
    assert unescape(escaped) == text


@given(st.text(alphabet="'=;\t\n a\u00a0", max_size=8))
def test_no_part_of_a_cell_is_a_formula(text: str) -> None:
    escaped = escape(text)
    parts = re.split(r"[;\t\r\n]", escaped)
    assert not any(map(is_formula, parts))
    assert unescape(escaped) == text
