"""An address that skips the parser is one the parser would not change."""

from __future__ import annotations

from email.utils import parseaddr

import pytest
from django.core.mail import EmailMessage
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.messages import addresses
from tests import corpus

PLAIN = st.from_regex(addresses._PLAIN, fullmatch=True)


@given(PLAIN)
def test_django_accepts_a_plain_address(address: str) -> None:
    assert corpus.wire(EmailMessage("Subject", "Body", "from@example.com", [address]))[1]


@given(st.from_regex(addresses._PLAIN_BARE, fullmatch=True))
def test_a_plain_bare_address_is_unchanged_in_the_envelope(address: str) -> None:
    message = EmailMessage("Subject", "Body", address, [address])
    assert corpus.wire(message)[:2] == (address, [address])
    assert parseaddr(address)[1] == address


@given(PLAIN | st.emails() | st.text(max_size=30))
def test_bare_removes_only_the_display_name(address: str) -> None:
    assert addresses.bare(address) == (parseaddr(address)[1] or address)


@pytest.mark.parametrize(
    "value", ["a@b\n", "a..b@c", "Ali <a@b", "a@b>", "ü@b", "", None, ("a", "b")]
)
def test_an_ambiguous_value_is_not_plain(value: object) -> None:
    assert not addresses.is_plain(value)
    assert not addresses.is_plain_and_bare(value)
