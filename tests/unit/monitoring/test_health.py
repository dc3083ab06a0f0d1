"""The verdict on signs of life."""

from __future__ import annotations

from typing import Any

import pytest

from django_epica_mail.conf import Settings
from django_epica_mail.monitoring.health import Measurements, judge, spoken

LANE = ("emails", "smtp")


def signs(**found: Any) -> Measurements:
    """Return signs of a queue that is well, but for what is given."""
    well: dict[str, Any] = {
        "due_ages": {},
        "claimable": set(found.get("due_ages", ())),
        "paused": [],
        "out_of_order": [],
        "first_mail_age": 86_400.0,
        "last_sweep_age": 12.0,
        "last_attempt_age": 3.0,
        "is_at_work": False,
        "sent": 1000,
        "failed": 3,
    }
    return Measurements(**{**well, **found})


def failing(**found: Any) -> set[str]:
    """Return the checks that fail."""
    verdict = judge(signs(**found), Settings())
    assert verdict.is_well == all(check.is_well for check in verdict.checks)
    return {check.name for check in verdict.checks if not check.is_well}


def test_all_is_well_where_mail_flows() -> None:
    assert failing() == set()
    assert failing(due_ages={LANE: 30.0}) == set()


def test_mail_that_is_due_for_long_fails_although_a_worker_is_busy() -> None:
    assert failing(due_ages={LANE: 301.0}) == {"backlog"}
    assert failing(due_ages={LANE: 301.0}, is_at_work=True) == {"backlog"}


@pytest.mark.parametrize("stopped", ["queue emails", "transport smtp"])
def test_what_a_person_has_paused_may_wait(stopped) -> None:
    assert failing(due_ages={LANE: 9e4}, claimable=set(), paused=[stopped]) == set()


def test_mail_of_a_transport_that_is_not_configured_any_more_fails() -> None:
    assert failing(due_ages={LANE: 301.0}, claimable=set(), last_attempt_age=999.0) == {"backlog"}


def test_due_mail_that_nobody_takes_means_that_no_worker_runs() -> None:
    assert failing(due_ages={LANE: 130.0}, last_attempt_age=130.0) == {"worker"}
    assert failing(due_ages={LANE: 130.0}, last_attempt_age=None) == {"worker"}
    assert failing(due_ages={LANE: 130.0}, last_attempt_age=None, is_at_work=True) == set()
    assert failing(due_ages={LANE: 110.0}, last_attempt_age=9e5) == set()


def test_a_worker_with_nothing_to_do_is_not_missed() -> None:
    assert failing(last_attempt_age=9e5) == set()


@pytest.mark.parametrize("limited", ["smtp", "*"])
def test_mail_that_waits_for_the_budget_of_a_rate_does_not_say_that_no_worker_runs(limited) -> None:
    settings = Settings(rates={limited: "5/h"})
    verdict = judge(signs(due_ages={LANE: 200.0}, last_attempt_age=200.0), settings)
    assert verdict.is_well


def test_sweeps_that_stopped_fail() -> None:
    assert failing(last_sweep_age=301.0) == {"beat"}


def test_a_sweep_is_missed_once_there_has_been_mail_for_a_while() -> None:
    assert failing(last_sweep_age=None) == {"beat"}
    assert failing(last_sweep_age=None, first_mail_age=20.0) == set()
    assert failing(last_sweep_age=None, first_mail_age=None) == set()


def test_a_transport_out_of_order_fails_and_the_mail_that_waits_for_it_does_not_fail_again() -> (
    None
):
    found = {"due_ages": {LANE: 9e4}, "claimable": set(), "out_of_order": ["smtp"]}
    assert failing(**found) == {"breaker"}


def test_many_failed_mails_fail_and_a_few_of_a_small_site_do_not() -> None:
    assert failing(sent=100, failed=30) == {"failures"}
    assert failing(sent=100_000, failed=300) == set()
    assert failing(sent=0, failed=9) == set()
    assert failing(sent=0, failed=0) == set()


def test_the_limits_are_the_sites() -> None:
    settings = Settings(health_oldest_due=10, health_last_sweep=5, health_failed_share=0.001)
    found = judge(signs(due_ages={LANE: 11.0}, failed=10), settings).checks
    assert [check.is_well for check in found] == [False, True, False, True, False]
    assert found[0].value == 11.0
    assert found[0].limit == 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 ms"),
        (0.25, "250 ms"),
        (1.5, "1.5 s"),
        (90, "90 s"),
        (150, "2.5 min"),
        (3600, "60 min"),
        (9000, "2.5 h"),
        (10 * 86_400, "10 days"),
    ],
)
def test_a_time_is_told_in_the_unit_people_would_use(seconds, words) -> None:
    assert spoken(seconds) == words
