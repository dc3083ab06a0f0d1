"""The rules of ROUTES: which mail they match, and which rules are invalid."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import rules
from django_epica_mail.models import EmailLog
from django_epica_mail.rules import PRIORITIES, priority_number
from django_epica_mail.rules import routes as route_rules
from django_epica_mail.rules.routes import Facts, Rule

MAIL = Facts(
    category="order",
    recipients=["a@Example.com", "b@maliye.gov.tr"],
    sender="shop@example.com",
    headers={"X-Campaign": "spring-27"},
    template="emails/order",
)


@pytest.mark.parametrize("priority", range(10))
def test_a_number_from_0_to_9_is_a_priority(priority: int) -> None:
    assert priority_number(priority) == priority


@pytest.mark.parametrize(("name", "number"), PRIORITIES.items())
def test_a_priority_can_be_given_by_name(name: str, number: int) -> None:
    assert priority_number(name) == number


def test_priority_names_run_from_urgent_to_low() -> None:
    assert PRIORITIES == {"urgent": 9, "high": 6, "normal": 3, "low": 0}


@pytest.mark.parametrize("priority", [-1, 10, True, False, 3.0, "9", "Urgent", "", None, b"low"])
def test_an_invalid_priority_is_refused_naming_value_and_rule(priority: Any) -> None:
    with pytest.raises(ValueError, match="priority must be 0 to 9 or one of urgent") as caught:
        priority_number(priority)
    assert repr(priority) in str(caught.value)


@given(st.integers() | st.text())
def test_every_accepted_priority_fits_the_row(priority: int | str) -> None:
    try:
        number = priority_number(priority)
    except ValueError:
        assert priority not in range(10)
        assert priority not in PRIORITIES
    else:
        assert number in range(10)


@pytest.mark.parametrize("pattern", ["*@Bücher.example", "*@xn--bcher-kva.example", "*@*.EXAMPLE"])
def test_a_rule_matches_an_international_domain_in_either_spelling(pattern: str) -> None:
    (rule,) = route_rules.parse([{"match": {"to": pattern}}])
    assert rule.matches(Facts(recipients=["a@xn--bcher-kva.example"]))


@pytest.mark.parametrize(
    "match",
    [
        {},
        {"category": "order"},
        {"category": ["invoice", "ord*"]},
        {"to": "*.GOV.tr"},
        {"to": "a@example.com"},
        {"from": "*@example.com"},
        {"header": {"x-campaign": "spring-*"}},
        {"template": "emails/*"},
        {"bulk": False},
        {"category": "order", "to": "b@*", "bulk": False},
    ],
)
def test_a_rule_matches_mail_that_meets_all_conditions(match: Any) -> None:
    (rule,) = route_rules.parse([{"match": match}])
    assert rule.matches(MAIL)


@pytest.mark.parametrize(
    "match",
    [
        {"category": "orders"},
        {"to": "c@*"},
        {"from": "*@example.org"},
        {"header": {"x-campaign": "autumn-*"}},
        {"header": {"x-missing": "*"}},
        {"template": ""},
        {"bulk": True},
        {"category": "order", "bulk": True},
    ],
)
def test_a_rule_does_not_match_mail_that_misses_a_condition(match: Any) -> None:
    (rule,) = route_rules.parse([{"match": match}])
    assert not rule.matches(MAIL)


def test_a_rule_sets_only_what_it_contains() -> None:
    assert route_rules.parse([{}, {"priority": "high", "transport": "ses"}]) == (
        Rule(),
        Rule(priority=6, transports=("ses",)),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "must be a list of rules; it is {}"),
        (["x"], "rule 0 must be a dict; it is 'x'"),
        ([{}, {"que": "a"}], "rule 1 has no key 'que'; its keys are: match, queue, priority"),
        ([{"match": []}], "match must be a dict"),
        ([{"match": {"too": "x"}}], "match has no key 'too'; its keys are: category, to"),
        ([{"match": {"bulk": "yes"}}], "must be True or False; it is 'yes'"),
        (
            [{"match": {"to": 7}}],
            "'to' must be a pattern such as '*@example.com', or a list of",
        ),
        ([{"match": {"header": "X"}}], "must be a dict of header names and patterns"),
        ([{"queue": ""}], "queue must be a name of 1 to 64 printable characters; it is ''"),
        ([{"priority": 11}], "priority must be 0 to 9 or one of urgent"),
        ([{"transport": []}], "transport must be an alias or a list of aliases"),
        ([{"on_unknown": "shrug"}], "on_unknown must be one of resend, hold, fail"),
        (
            [{"retry": {"tries": 1}}],
            "retry has no key 'tries'; its keys are: max_retries, delay, factor, max_delay",
        ),
        ([{"retry": {"max_retries": -1}}], "max_retries must be a whole number"),
        ([{"retry": {"delay": "x"}}], "delay must be a number of seconds"),
        ([{"expires_after": -1}], "expires_after must be a number of seconds"),
    ],
)
def test_an_invalid_rule_is_refused_naming_place_and_reason(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        route_rules.parse(value)


@given(
    first=st.floats(0.001, rules.MOST_SECONDS),
    factor=st.floats(1.1, 100),
    most=st.floats(0, rules.MOST_SECONDS),
)
def test_growing_delays_grow_up_to_the_longest_and_fit_their_column(first, factor, most) -> None:
    policy = route_rules.parse_retry({"delay": first, "factor": factor, "max_delay": most})
    assert policy is not None
    assert policy.delays is not None
    mail = EmailLog()
    mail.delays = policy.delays
    assert len(mail.retry_delays) <= EmailLog._meta.get_field("retry_delays").max_length
    assert mail.delays == pytest.approx(policy.delays)
    assert list(policy.delays) == sorted(policy.delays)
    assert policy.delays[0] == first
    assert policy.delays[-1] <= max(first, most)
