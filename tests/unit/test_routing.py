"""What a caller may say of a mail, and what a mail that says nothing gets."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.conf import ON_UNKNOWN
from django_epica_mail.routing import (
    PRIORITIES,
    Options,
    default_queue,
    parse_options,
    priority_number,
)

AWARE = datetime(2027, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize("priority", range(10))
def test_a_number_from_0_to_9_is_a_priority(priority: int) -> None:
    assert priority_number(priority) == priority


@pytest.mark.parametrize(("name", "number"), PRIORITIES.items())
def test_a_priority_may_be_given_by_name(name: str, number: int) -> None:
    assert priority_number(name) == number


def test_the_names_of_priorities_fall_from_urgent_to_low() -> None:
    assert PRIORITIES == {"urgent": 9, "high": 6, "normal": 3, "low": 0}


@pytest.mark.parametrize("priority", [-1, 10, True, False, 3.0, "9", "Urgent", "", None, b"low"])
def test_what_is_no_priority_is_refused_with_value_and_rule(priority: Any) -> None:
    with pytest.raises(ValueError, match="priority must be 0 to 9 or one of urgent") as caught:
        priority_number(priority)
    assert repr(priority) in str(caught.value)


@given(st.integers() | st.text())
def test_whatever_is_taken_as_a_priority_fits_the_row(priority: int | str) -> None:
    try:
        number = priority_number(priority)
    except ValueError:
        assert priority not in range(10)
        assert priority not in PRIORITIES
    else:
        assert number in range(10)


def test_single_mail_waits_apart_from_bulk_mail_and_is_more_urgent() -> None:
    assert default_queue(bulk=False) == ("emails", 9)
    assert default_queue(bulk=True) == ("bulk_emails", 5)


def test_what_is_not_said_is_left_open() -> None:
    options = parse_options({})
    assert [getattr(options, field.name) for field in fields(Options)] == [None] * len(
        fields(Options)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", "ses"),
        ("queue", "q" * 64),
        ("category", "sipariş onayı"),
        ("priority", 0),
        ("priority", "low"),
        ("send_at", AWARE),
        ("expires_at", AWARE),
        *(("on_unknown", choice) for choice in ON_UNKNOWN),
    ],
)
def test_what_is_said_is_kept(name: str, value: Any) -> None:
    assert getattr(parse_options({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, ValueError) for name in ("transport", "queue", "category")
          for value in ("", "q" * 65, 7, b"q")),
        ("send_at", datetime(2027, 1, 2), ValueError),
        ("expires_at", datetime(2027, 1, 2), ValueError),
        ("send_at", date(2027, 1, 2), TypeError),
        ("expires_at", "2027-01-02T00:00:00Z", TypeError),
        ("send_at", 0, TypeError),
        ("on_unknown", "shrug", ValueError),
        ("on_unknown", "", ValueError),
        ("priority", 10, ValueError),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_refused_with_name_and_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^{name} must be ") as caught:
        parse_options({name: value})
    assert repr(value) in str(caught.value)


def test_an_option_that_does_not_exist_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(TypeError, match=r"no option 'prioritty'.*priority, queue, send_at"):
        parse_options({"queue": "emails", "prioritty": 9})
