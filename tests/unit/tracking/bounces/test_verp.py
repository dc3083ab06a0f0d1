"""Signed return addresses: made, found again, and not to be forged."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.clock import uuid7
from django_epica_mail.tracking.bounces import verp
from django_epica_mail.transports.config import RETURN_ID_LENGTH

PATTERN = "bounces+{id}@example.com"


def found(text: str) -> list[UUID]:
    return [email_id for email_id, _ in verp.find([text])]


@given(st.uuids())
def test_an_address_leads_back_to_its_mail(email_id: UUID) -> None:
    address = verp.address(PATTERN, email_id)
    assert re.fullmatch(rf"bounces\+[a-z2-7]{{{RETURN_ID_LENGTH}}}@example\.com", address)
    assert found(address) == [email_id]


def test_the_first_address_comes_first_and_says_who_saw_it() -> None:
    shared, own = uuid7(), uuid7()
    texts = [verp.address(PATTERN, shared, is_shared=True), verp.address(PATTERN, own)]
    assert list(verp.find(texts)) == [(shared, True), (own, False)]
    assert list(verp.find(texts[::-1])) == [(own, False), (shared, True)]


@pytest.mark.parametrize(
    "rewritten",
    [
        str.upper,
        lambda it: f"<{it}>",
        lambda it: f"Bounces <{it}>, somebody@example.com",
        lambda it: "SRS0=HHH=TT=example.com=" + it.replace("@example.com", "@forwarder.example"),
        lambda it: f"prvs=1234567890={it}",
        lambda it: f"Return-Path: <{it}>",
    ],
)
def test_what_servers_make_of_an_address_is_understood(rewritten) -> None:
    email_id = uuid7()
    assert found(rewritten(verp.address(PATTERN, email_id))) == [email_id]


@given(st.integers(0, RETURN_ID_LENGTH - 2), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_changed_token_is_nobodys(position: int, letter: str) -> None:
    token = verp.address("{id}@example.com", UUID(int=7)).partition("@")[0]
    changed = token[:position] + letter + token[position + 1 :]
    assert bool(found(f"{changed}@example.com")) is (changed == token)


def test_a_token_of_another_site_is_nobodys(settings) -> None:
    address = verp.address(PATTERN, uuid7())
    settings.SECRET_KEY = "another"
    assert found(address) == []


def test_a_rotated_key_still_counts(settings) -> None:
    email_id = uuid7()
    address = verp.address(PATTERN, email_id)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]
    assert found(address) == [email_id]
    assert verp.address(PATTERN, email_id) != address


def test_a_part_of_a_longer_word_is_no_token() -> None:
    assert found("x" + verp.address(PATTERN.replace("+", ""), uuid7())) == []


def test_only_a_few_tokens_of_a_report_are_verified() -> None:
    true = verp.address(PATTERN, uuid7())
    forged = [verp.address(PATTERN, UUID(int=n)).replace("a", "b") for n in range(50)]
    assert list(verp.find([*forged, true])) == []
    assert len(list(verp.find([true, *forged]))) == 1


@given(st.text())
def test_no_text_breaks_the_search(text: str) -> None:
    assert found(text) == []
