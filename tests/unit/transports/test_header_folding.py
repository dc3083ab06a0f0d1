"""Plain headers are written unchanged, and all others as the standard library writes them."""

from __future__ import annotations

from email.message import EmailMessage, MIMEPart
from email.policy import SMTP, compat32
from typing import Any

import django
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.transports.header_folding import POLICY, is_written_verbatim

MODERN = django.VERSION >= (6, 0)
STANDARD: Any = SMTP if MODERN else compat32.clone(linesep="\r\n")
"""The standard library's policy that ``POLICY`` must agree with."""

names = st.sampled_from(
    [
        *("Subject", "X-Order", "x-order", "List-Id", "Message-ID", "Date", "From", "To", "Cc"),
        *("Reply-To", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
    ]
)
text = st.text("aZ09 ,;:<>@=?\"()[]._-\\'", max_size=90) | st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=90
)


def write(policy: Any, name: str, value: Any) -> bytes | str:
    """Return a header as a policy writes it, or the name of the error's class."""
    try:
        return policy.fold_binary(*policy.header_store_parse(name, value))
    except Exception as error:  # noqa: BLE001 - both policies must raise it
        return type(error).__name__


@given(names, text)
def test_a_header_is_written_as_the_standard_library_does(name: str, value: str) -> None:
    assert write(POLICY, name, value) == write(STANDARD, name, value)


@given(names, text)
def test_a_verbatim_header_needs_no_folding(name: str, value: str) -> None:
    if is_written_verbatim(name, value):
        assert write(STANDARD, name, value) == f"{name}: {value}\r\n".encode("ascii")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Subject", "Your order has shipped"),
        ("X-Order", "7"),
        ("x-order", "!~"),
        ("To", "to@example.com"),
        ("reply-to", "The Shop <shop@example.com>"),
        ("Message-ID", "<1.2-3@mail.example.com>"),
    ],
)
def test_a_plain_header_is_written_verbatim(name: str, value: str) -> None:
    assert is_written_verbatim(name, value)
    assert write(POLICY, name, value) == f"{name}: {value}\r\n".encode("ascii")


@pytest.mark.parametrize(
    "value",
    [
        "",
        " leading",
        "trailing ",
        "two  spaces",
        "tab\tbed",
        "new\nline",
        "Şubat",
        "=?utf-8?q?=C5=9E?=",
        "lone \ud800",
        7,
        None,
    ],
    ids=ascii,
)
def test_a_value_that_is_not_plain_is_not_verbatim(value: object) -> None:
    assert not is_written_verbatim("Subject", value)


@pytest.mark.parametrize(("length", "expected"), [(68, True), (69, False)])
def test_a_verbatim_header_has_fewer_than_76_characters(length: int, expected: bool) -> None:
    assert len("Subject") + length == (75 if expected else 76)
    assert is_written_verbatim("Subject", "a" * length) is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("To", "a@example.com, b@example.com"),
        ("From", '"Doe, John" <j@example.com>'),
        ("Message-ID", "1@example.com"),
        ("Date", "Mon, 01 Jan 2001 00:00:00 -0000"),
        ("List-Id", "<news.example.com>"),
        ("Content-Type", "text/plain"),
    ],
)
def test_a_header_that_django_6_parses_is_not_verbatim(name: str, value: str) -> None:
    assert is_written_verbatim(name, value) is not MODERN


def test_an_own_str_subclass_does_not_lose_its_folding() -> None:
    class OneLine(str):
        __slots__ = ()
        name = "X-Link"

        def fold(self, *, policy: Any) -> str:
            return f"X-Link: {self}{policy.linesep}"

    link = OneLine("https://example.com/" + "a/ " * 40 + "b")
    assert write(POLICY, "X-Link", link) == write(STANDARD, "X-Link", link)


@pytest.mark.skipif(not MODERN, reason="Django 5.2's messages do not parse headers")
def test_a_plain_header_is_stored_as_text_with_its_name() -> None:
    name, header = POLICY.header_store_parse("Subject", "Plain")
    assert (name, str(header), header.name) == ("Subject", "Plain", "Subject")
    message = EmailMessage(policy=POLICY)
    message["Subject"] = "Plain"
    assert message["Subject"] == "Plain"
    assert message.as_bytes().startswith(b"Subject: Plain\r\n")


@pytest.mark.skipif(not MODERN, reason="Django 5.2's messages do not parse headers")
def test_a_header_keeps_the_line_ends_of_the_policy() -> None:
    unix: Any = POLICY.clone(linesep="\n")
    assert write(unix, "Subject", "Plain") == b"Subject: Plain\n"


@pytest.mark.skipif(not MODERN, reason="Django 5.2's messages do not parse headers")
def test_part_headers_without_a_boundary_are_cached() -> None:
    def parse(value: str) -> Any:
        return POLICY.header_store_parse("Content-Type", value)[1]

    plain = 'text/plain; charset="utf-8"'
    assert parse(plain) is parse(plain)
    multipart = 'multipart/mixed; boundary="a"'
    assert parse(multipart) is not parse(multipart)
    assert parse(multipart) == parse(multipart)


@pytest.mark.skipif(not MODERN, reason="Django 5.2's messages do not parse headers")
def test_changing_one_part_does_not_change_another() -> None:
    first, second = MIMEPart(policy=POLICY), MIMEPart(policy=POLICY)
    for part in (first, second):
        part["Content-Type"] = "text/plain"
    first.set_param("charset", "utf-8")
    assert first["Content-Type"] == 'text/plain; charset="utf-8"'
    assert second["Content-Type"] == "text/plain"


@pytest.mark.parametrize("value", ["Plain", "Şubat " * 20], ids=["plain", "encoded"])
def test_every_line_ends_in_crlf(value: str) -> None:
    written = write(POLICY, "Subject", value)
    assert isinstance(written, bytes)
    assert written.endswith(b"\r\n")
    assert b"\n" not in written.replace(b"\r\n", b"")
