"""The health checks, given measurements."""

from __future__ import annotations

from typing import Any

import pytest

from django_epica_mail.conf import Settings
from django_epica_mail.monitoring.health import Measurements, judge, spoken

PAIR = ("emails", "smtp")


def measured(**found: Any) -> Measurements:
    """Return the measurements of a healthy queue, with ``found`` replaced."""
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
        "rates": [],
    }
    return Measurements(**{**well, **found})


def failing(**found: Any) -> set[str]:
    """Return the names of the checks that fail."""
    report = judge(measured(**found), Settings())
    assert report.is_well == all(check.is_well for check in report.checks)
    return {check.name for check in report.checks if not check.is_well}


def test_all_checks_pass_while_mail_flows() -> None:
    assert failing() == set()
    assert failing(due_ages={PAIR: 30.0}) == set()


def test_mail_due_for_too_long_fails_even_with_a_busy_worker() -> None:
    assert failing(due_ages={PAIR: 301.0}) == {"backlog"}
    assert failing(due_ages={PAIR: 301.0}, is_at_work=True) == {"backlog"}


@pytest.mark.parametrize("stopped", ["queue emails", "transport smtp"])
def test_paused_mail_may_wait(stopped) -> None:
    assert failing(due_ages={PAIR: 9e4}, claimable=set(), paused=[stopped]) == set()


def test_mail_of_a_removed_transport_fails_the_backlog_check() -> None:
    assert failing(due_ages={PAIR: 301.0}, claimable=set(), last_attempt_age=999.0) == {"backlog"}


def test_unclaimed_due_mail_fails_the_worker_check() -> None:
    assert failing(due_ages={PAIR: 130.0}, last_attempt_age=130.0) == {"worker"}
    assert failing(due_ages={PAIR: 130.0}, last_attempt_age=None) == {"worker"}
    assert failing(due_ages={PAIR: 130.0}, last_attempt_age=None, is_at_work=True) == set()
    assert failing(due_ages={PAIR: 110.0}, last_attempt_age=9e5) == set()


def test_an_idle_worker_without_due_mail_is_fine() -> None:
    assert failing(last_attempt_age=9e5) == set()


@pytest.mark.parametrize("limited", ["smtp", "*"])
def test_rate_limited_mail_does_not_fail_the_worker_check(limited) -> None:
    settings = Settings(rates={limited: "5/h"})
    report = judge(measured(due_ages={PAIR: 200.0}, last_attempt_age=200.0), settings)
    assert report.is_well


def test_an_old_sweep_fails() -> None:
    assert failing(last_sweep_age=301.0) == {"beat"}


def test_a_missing_sweep_fails_once_mail_is_old_enough() -> None:
    assert failing(last_sweep_age=None) == {"beat"}
    assert failing(last_sweep_age=None, first_mail_age=20.0) == set()
    assert failing(last_sweep_age=None, first_mail_age=None) == set()


def test_an_open_breaker_fails_only_the_breaker_check() -> None:
    found = {"due_ages": {PAIR: 9e4}, "claimable": set(), "out_of_order": ["smtp"]}
    assert failing(**found) == {"breaker"}


def test_the_share_of_failures_counts_only_from_ten_failures() -> None:
    assert failing(sent=100, failed=30) == {"failures"}
    assert failing(sent=100_000, failed=300) == set()
    assert failing(sent=0, failed=9) == set()
    assert failing(sent=0, failed=0) == set()


def test_the_limits_come_from_the_settings() -> None:
    settings = Settings(health_oldest_due=10, health_last_sweep=5, health_failed_share=0.001)
    found = judge(measured(due_ages={PAIR: 11.0}, failed=10), settings).checks
    assert [check.is_well for check in found] == [False, True, False, True, False, True]
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
def test_a_duration_is_shown_in_the_unit_people_would_use(seconds, words) -> None:
    assert spoken(seconds) == words
