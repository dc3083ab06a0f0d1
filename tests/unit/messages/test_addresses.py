"""An address that skips the parser is one the parser would not change."""

from __future__ import annotations

import time
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


@given(PLAIN | st.emails() | st.text(max_size=400))
def test_a_canonical_address_is_canonical(address: str) -> None:
    found = addresses.canonical(address)
    assert len(found) <= addresses.LENGTH
    assert addresses.canonical(found) == found


@given(PLAIN)
def test_a_plain_address_skips_the_parser_and_gets_the_same_form(address: str) -> None:
    rcpt = addresses._rcpt(address).lower()
    assert addresses.canonical(address) == rcpt[: addresses.LENGTH].rstrip(".")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Ann <ANN@Example.COM>", "ann@example.com"),
        ('"v"@example.com', "v@example.com"),
        ('"john doe"@Example.com', '"john doe"@example.com'),
        ('"ann@example.com" <bob@example.com>', "bob@example.com"),
        ("(work) ann@example.com", "ann@example.com"),
        ("root", "root"),
        ("ann@example.com\u200b", "ann@example.com"),
        ("ann@example.com\u00a0", "ann@example.com"),
        ("ann@example.com.", "ann@example.com"),
        ("İpek@example.com", "i\u0307pek@example.com"),
        ("i\u0307pek@example.com", "i\u0307pek@example.com"),
        ("ann@Bücher.example", "ann@xn--bcher-kva.example"),
        ("a@b.co, c@d.co", "a@b.co, c@d.co"),
    ],
)
def test_every_spelling_of_an_address_has_one_canonical_form(written: str, expected: str) -> None:
    assert addresses.canonical(written) == expected


@pytest.mark.parametrize("written", ['"v"@example.com', '"x q"@example.com', "a@Bücher.example"])
def test_the_canonical_form_is_what_the_server_is_told(written: str) -> None:
    (told,) = corpus.wire(EmailMessage("Subject", "Body", "from@example.com", [written]))[1]
    assert addresses.canonical(written) == told.lower()


@pytest.mark.parametrize(
    "written",
    ["mi\u212ae@example.com", "a\u200bnn@example.com", "\u200bann@example.com", "a\0nn@example.com",
     "Ann <ann\u00ad@example.com>", "j\u200börg@example.com"],
)  # fmt: skip
def test_an_address_with_the_canonical_form_of_another_mailbox_is_recognised(written: str) -> None:
    assert addresses.resembles_another(written)


@pytest.mark.parametrize(
    "written",
    ["ann@example.com", "ANN@Example.com", "jörg@example.com", "İpek@example.com", "root",
     "ann@example.com\u200b", "ann@exam\u00adple.com", "a@\u212a.example", '"v w"@example.com',
     "\t ann@example.com\t", "A\u200b\u212a <ann@example.com>", "ann(work)@example.com"],
)  # fmt: skip
def test_another_spelling_of_the_same_mailbox_is_not(written: str) -> None:
    assert not addresses.resembles_another(written)


@pytest.mark.parametrize(
    "text", ["", "root", "a@", "@b.co", "a@b.co, c@d.co", "a b@c.co", "a\u00a0@b.co", "<a@b.co>"]
)
def test_text_that_is_not_one_address_is_not_complete(text: str) -> None:
    assert not addresses.is_complete(text)


@pytest.mark.parametrize(
    "value", ["a@b\n", "a..b@c", "Ali <a@b", "a@b>", "ü@b", "", None, ("a", "b")]
)
def test_an_ambiguous_value_is_not_plain(value: object) -> None:
    assert not addresses.is_plain(value)
    assert not addresses.is_plain_and_bare(value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ayse@example.com", "a…@e….com"),
        ("a@b.co.uk", "a…@b….uk"),
        ("root", "r…"),
        ("root@localhost", "r…"),
        ('"v w"@example.com', '"…@e….com'),
        ("", "…"),
    ],
)
def test_a_masked_address_names_nobody(address: str, shown: str) -> None:
    assert addresses.masked(address) == shown


@pytest.mark.parametrize("text", ["(" * 100_000, "(" * 1_990, "(a)" * 5_000, "a@b.co, " * 20_000])
def test_no_text_keeps_a_parser_busy_or_exhausts_it(text: str) -> None:
    started = time.process_time()
    assert len(addresses.canonical(text)) <= addresses.LENGTH
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("given", "domain"),
    [
        ([], ""),
        (["a@x.example"], "x.example"),
        (["a@x.example", "b@x.example"], "x.example"),
        (["a@x.example", "b@y.example"], ""),
        (["root"], "root"),
        ([f"a@{'x' * 256}"], ""),
    ],
)
def test_recipients_have_one_domain_or_none(given, domain) -> None:
    assert addresses.common_domain(given) == domain
