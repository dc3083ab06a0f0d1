"""A person's address is found in every spelling, and similar addresses are not."""

from __future__ import annotations

import json

import pytest

from django_epica_mail.privacy.person import Person


@pytest.mark.parametrize(
    "text",
    [
        "ann@example.com",
        "<Ann@Example.COM>",
        "550 5.1.1 <ann@example.com>: no such user",
        "Write to ann@example.com.",
        "mailto:ann@example.com?subject=x",
        "https://example.org/?to=ann%40example.com&x=1",
        r"first line\nann@example.com",
        "“ann@example.com”",
        "ann@example.com\nnext",
    ],
)
def test_an_address_is_found_and_replaced(text) -> None:
    ann = Person("Ann <Ann@example.com>")
    assert ann.is_mentioned(text)
    scrubbed = ann.scrub(text)
    assert "[erased]" in scrubbed
    assert not ann.is_mentioned(scrubbed)


@pytest.mark.parametrize(
    "text",
    [
        "joann@example.com",
        "jo.ann@example.com",
        "x+ann@example.com",
        "ann@example.com.tr",
        "ann@example.community",
        "ann@example.com-x.org",
        "ann at example.com",
        "ann@sub.example.com",
    ],
)
def test_another_address_is_left_alone(text) -> None:
    ann = Person("ann@example.com")
    assert not ann.is_mentioned(text)
    assert ann.scrub(text) == text


@pytest.mark.parametrize("before", ["\n", "\u00a0", "“", "é: ", "\t", ""])
def test_an_address_is_found_in_json_after_any_character(before) -> None:
    stored = json.dumps({"state": {"body": f"x{before} {before}ann@example.com"}})
    assert Person("ann@example.com").is_mentioned_in(stored)
    assert not Person("n@example.com").is_mentioned_in(stored)


@pytest.mark.parametrize("given", ["ayşe@çiçek.example", "ayşe@xn--iek-1lab.example"])
def test_both_spellings_of_an_international_domain_match(given) -> None:
    person = Person(given)
    assert set(person.addresses) == {"ayşe@çiçek.example", "ayşe@xn--iek-1lab.example"}
    assert person.is_mentioned_in(json.dumps({"to": ["ayşe@çiçek.example"]}))


@pytest.mark.parametrize("given", ["", "ann", "@example.com", "ann@", "a b@example.com"])
def test_an_invalid_address_is_refused(given) -> None:
    with pytest.raises(ValueError, match="not an e-mail address"):
        Person(given)


def test_an_address_is_not_taken_for_a_pattern() -> None:
    assert not Person("a.n@example.com").is_mentioned("axn@example.com")
    assert not Person("a%n@example.com").is_mentioned("abn@example.com")
