"""Values that JSON has no form for are restored with their types."""

from __future__ import annotations

import json
import zoneinfo
from datetime import datetime
from email.charset import Charset
from email.header import Header
from typing import Any

import pytest
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.safestring import SafeString
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages.tagged_json import MOST_LEVELS, UnencodableValue, decode, encode

keys = st.none() | st.booleans() | st.integers() | st.text() | st.just("$") | st.uuids()
scalars = (
    keys
    | st.floats()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.timezones(no_cache=True))
    | st.dates()
    | st.times()
    | st.timedeltas()
)
hashables = keys | st.tuples(keys, keys) | st.frozensets(keys)
values = st.recursive(
    scalars | st.sets(hashables) | st.frozensets(hashables),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashables, inner),
    max_leaves=20,
)


def round_trip(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def plain(value: Any) -> Any:
    """Return a comparable form: with types, NaN by its name, times by offset instead of zone."""
    if isinstance(value, dict):
        return [dict, {repr(plain(key)): plain(item) for key, item in value.items()}]
    if isinstance(value, (set, frozenset)):
        return [type(value), sorted(repr(plain(item)) for item in value)]
    if isinstance(value, (list, tuple)):
        return [type(value), *map(plain, value)]
    return [type(value), value.isoformat() if hasattr(value, "isoformat") else repr(value)]


@given(values)
def test_a_value_is_restored_with_its_type(value: Any) -> None:
    assert plain(round_trip(value)) == plain(value)


def test_a_datetime_keeps_its_offset_but_not_its_zone_name() -> None:
    moment = datetime(2027, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Istanbul"))
    assert round_trip(moment) == moment
    assert round_trip(moment).utcoffset() == moment.utcoffset()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lazystr("lazy"), "lazy"),
        ([lazystr("lazy")], ["lazy"]),
        ({lazystr("key"): 1}, {"key": 1}),
        (SimpleLazyObject(lambda: {"a": 1}), {"a": 1}),
        (SafeString("<p>"), "<p>"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
    ],
    ids=repr,
)
def test_lazy_and_special_values_become_ordinary_ones(value: Any, expected: Any) -> None:
    assert round_trip(value) == expected
    assert type(round_trip(value)) is type(expected)


def test_a_charset_and_a_header_are_restored() -> None:
    header = Header("ışık", Charset("utf-8"), header_name="X-Light", maxlinelen=40)
    header.append(b"plain", "us-ascii")
    back = round_trip(header)
    assert back.encode() == header.encode()
    assert vars(round_trip(Charset("iso-8859-9"))) == vars(Charset("iso-8859-9"))


def test_a_value_without_a_form_is_refused_with_its_type() -> None:
    with pytest.raises(UnencodableValue, match=r"^builtins\.complex$"):
        encode({"a": [1j]})
    assert encode([1j], unknown=str) == ["1j"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnreadableEnvelope, match="'complex'"):
        decode([{"$": "complex", "v": "1j"}])


@pytest.mark.parametrize("wrap", [lambda it: [it], lambda it: {"k": it}, lambda it: (it,)])
def test_values_have_a_bounded_depth(wrap) -> None:
    value = "x"
    for _ in range(MOST_LEVELS):
        value = wrap(value)
    assert decode(encode(value)) == value
    with pytest.raises(RecursionError):
        encode(wrap(value))
