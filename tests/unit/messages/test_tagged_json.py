"""Values that JSON has no form for come back as what they were."""

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
from django_epica_mail.messages.tagged_json import UnencodableValue, decode, encode

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


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def plain(value: Any) -> Any:
    """Return what is compared: types, NaN by its name, a moment by its offset and not its zone."""
    if isinstance(value, dict):
        return [dict, {repr(plain(key)): plain(item) for key, item in value.items()}]
    if isinstance(value, (set, frozenset)):
        return [type(value), sorted(repr(plain(item)) for item in value)]
    if isinstance(value, (list, tuple)):
        return [type(value), *map(plain, value)]
    return [type(value), value.isoformat() if hasattr(value, "isoformat") else repr(value)]


@given(values)
def test_a_value_comes_back_with_its_type(value: Any) -> None:
    assert plain(there_and_back(value)) == plain(value)


def test_a_moment_stays_the_same_moment_without_the_name_of_its_zone() -> None:
    moment = datetime(2027, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Istanbul"))
    assert there_and_back(moment) == moment
    assert there_and_back(moment).utcoffset() == moment.utcoffset()


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
def test_lazy_and_special_values_become_what_they_stand_for(value: Any, expected: Any) -> None:
    assert there_and_back(value) == expected
    assert type(there_and_back(value)) is type(expected)


def test_pythons_charset_and_header_write_the_same_as_before() -> None:
    header = Header("ışık", Charset("utf-8"), header_name="X-Light", maxlinelen=40)
    header.append(b"plain", "us-ascii")
    back = there_and_back(header)
    assert back.encode() == header.encode()
    assert vars(there_and_back(Charset("iso-8859-9"))) == vars(Charset("iso-8859-9"))


def test_what_has_no_form_is_refused_with_its_type() -> None:
    with pytest.raises(UnencodableValue, match=r"^builtins\.complex$"):
        encode({"a": [1j]})
    assert encode([1j], unknown=str) == ["1j"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnreadableEnvelope, match="'complex'"):
        decode([{"$": "complex", "v": "1j"}])
