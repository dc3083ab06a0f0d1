"""Bounded text is checked and built in bounded time, whatever it is."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from email import message_from_bytes

import pytest
from django.core.mail import EmailMessage
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_epica_mail import messages
from django_epica_mail.exceptions import InvalidMessage
from django_epica_mail.messages import Rules, bounds
from django_epica_mail.transports import wire


def calls(work: Callable[[], object]) -> int:
    """How many functions *work* calls and returns from: its cost, on whatever machine."""
    number = 0

    def counted(*_: object) -> None:
        nonlocal number
        number += 1

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number


def message() -> EmailMessage:
    return EmailMessage("S", "B", "from@example.com", ["to@example.com"])


def test_a_bound_names_value_rule_and_remedy_in_a_line() -> None:
    with pytest.raises(InvalidMessage) as refused:
        bounds.check_length("subject", "x" * 999, bounds.MAX_SUBJECT)
    words = str(refused.value)
    assert "999" in words
    assert "998" in words
    assert "shorten it" in words
    assert len(words) < 200
    bounds.check_length("subject", "x" * 998, bounds.MAX_SUBJECT)


def test_a_thousand_hostile_addresses_are_refused_at_once() -> None:
    mail = message()
    mail.to = ['""' * 245 + f" <a{number}@example.com>" for number in range(1000)]
    started = time.process_time()
    with pytest.raises(InvalidMessage, match="quotation marks"):
        messages.check(mail)
    assert time.process_time() - started < 1
    mail.to = ['""' * 8 + f" <a{number}@example.com>" for number in range(100)]
    messages.check(mail)


@pytest.mark.parametrize("rules", Rules)
def test_an_attached_message_has_the_same_bounds_for_every_transport(rules: Rules) -> None:
    mail, inner = message(), message()
    mail.attach("", inner, "message/rfc822")
    messages.check(mail, rules)
    inner.subject = "x" * 999
    with pytest.raises(InvalidMessage, match="999 characters"):
        messages.check(mail, rules)


@pytest.mark.parametrize("place", ["from_email", "reply_to", "Reply-To"])
@pytest.mark.parametrize("letter", ["🎉", "ş "])
def test_a_name_that_is_no_ascii_is_folded_in_a_bounded_number_of_calls(
    place: str, letter: str
) -> None:
    def named(octets: int) -> EmailMessage:
        name = letter * (octets // len(letter.encode()))
        text = f"{name} <a@example.com>"
        mail = message()
        if place == "Reply-To":
            mail.extra_headers[place] = text
        else:
            setattr(mail, place, [text] if place == "reply_to" else text)
        return mail

    with pytest.raises(InvalidMessage, match=r"bytes in UTF-8.*shorten"):
        messages.check(named(700))
    mail = named(480)
    messages.check(mail)
    mail.extra_headers.setdefault("Message-ID", "<1@example.com>")
    wire.build(mail)  # what a process does once
    wire._fold_header.cache_clear()
    assert 0 < calls(lambda: wire.build(mail)) < 8_000_000  # 0.1 to 0.2 s


@settings(max_examples=60, deadline=None)
@example(")(", "reply_to")
@example("ş(", "reply_to")
@given(
    st.text(st.sampled_from('"\\(),.;:<>@[] =?aş\n'), min_size=1, max_size=6),
    st.sampled_from(["from_email", "to", "reply_to", "X-A", "subject"]),
)
def test_bounded_text_is_checked_and_built_in_bounded_time(pattern: str, place: str) -> None:
    most = {"X-A": 4096, "subject": 998}.get(place, 480)
    text = (pattern * most)[:most]
    mail = message()
    if place == "X-A":
        mail.extra_headers = {"X-A": text}
    elif place in ("from_email", "subject"):
        setattr(mail, place, f"{text} <a@example.com>" if place == "from_email" else text)
    else:
        setattr(mail, place, [f"{text} <a@example.com>"])
    started = time.process_time()
    with contextlib.suppress(ValueError):
        messages.check(mail)
        mail.extra_headers.setdefault("Message-ID", "<1@example.com>")
        wire.build(mail)
    assert time.process_time() - started < 3


MARKS = '"' * 16_000
FOLDED = "\r\n ".join(['"' * 70] * 250)
PART = f"--b\r\nContent-Type: text/plain; x={MARKS}"


@pytest.mark.parametrize(
    "headers",
    [
        f"To: {MARKS}",
        f"Subject: S\r\nResent-Sender: {MARKS}",
        f"Reply-To:{FOLDED}",
        f"from:\r {MARKS}",
        f"Content-Type: text/plain; x={MARKS}",
        f"Message-ID: <{MARKS}",
        f"Content-Type: multipart/mixed; boundary=b\r\n\r\n{PART}",
        "Cc: " + "(a)" * 8000,
        "Sender: " + "\\a" * 12_000,
        "To: " + "a " * 16_000,
        "To: a@example.com\r\n" * 30_000,
    ],
)
def test_a_message_in_bytes_whose_headers_are_read_slowly_is_refused(headers: str) -> None:
    content = f"{headers}\r\n\r\nText".encode()
    with pytest.raises(InvalidMessage, match="too long to be read"):
        bounds.check_reading(content)
    with pytest.raises(InvalidMessage):
        messages.RawMessage(content, ["a@example.com"]).message()
    built = EmailMessage("S", "B", None, ["a@example.com"])
    vars(built)["message"] = lambda **_: message_from_bytes(content)
    with pytest.raises(InvalidMessage):
        messages.dump(built)


@pytest.mark.parametrize(
    "content",
    [
        b"To: "
        + b",\r\n ".join(b'"Name Surname" <name.surname%d@example.com>' % n for n in range(1000)),
        b"Subject: " + MARKS.encode() + b"\r\n\r\n" + b"To: whom it may concern\r\n" * 5000,
    ],
)
def test_a_message_in_bytes_to_many_is_read(content: bytes) -> None:
    bounds.check_reading(content)
