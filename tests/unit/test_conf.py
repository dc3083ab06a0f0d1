"""The checks of the setting EPICA_MAIL, and their error messages."""

from __future__ import annotations

from dataclasses import fields

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_epica_mail import conf


def test_every_default_passes_its_own_check() -> None:
    defaults = conf.Settings()
    given = {field.name.upper(): getattr(defaults, field.name) for field in fields(defaults)}
    assert conf.parse(given) == defaults


@pytest.mark.parametrize(("key", "near"), [("MAX_RETRYS", "MAX_RETRIES"), ("transports", "TRANS")])
def test_an_unknown_key_is_refused_naming_the_nearest_one(key: str, near: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"{key}.*{near}"):
        conf.parse({key: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEND_TIMEOUT", 0),
        ("SEND_TIMEOUT", "60"),
        ("SEND_TIMEOUT", True),
        ("SEND_TIMEOUT", float("nan")),
        ("RETRY_DELAY", float("inf")),
        ("RETRY_DELAY", -1),
        ("RETRY_DELAY", None),
        ("RETRY_DELAY", False),
        ("BATCH_SIZE", 0),
        ("BATCH_SIZE", True),
        ("BATCH_SIZE", 1.5),
        ("MAX_RETRIES", -1),
        ("MAX_RETRIES", 1.0),
        ("ON_UNKNOWN", "shrug"),
        ("ON_UNKNOWN", ["hold"]),
        ("DEFAULT_TRANSPORT", ""),
        ("DEFAULT_TRANSPORT", "t" * 65),
        ("REAL_TRANSPORTS_IN_TESTS", 1),
        ("TRANSPORTS", []),
        ("TRANSPORTS", {"a": {"HOST": "h"}}),
        ("TRANSPORTS", {1: {}}),
        ("REDIRECT_ALL_TO", [7]),
        ("BASE_URL", "https://[example.com"),
        ("GIVE_UP_AFTER", 1e300),
        ("MAX_RETRIES", 1001),
        ("KEEP_DAYS", 36_501),
        ("CLEANUP_MIN_DAYS", False),
        ("ROUTES", [{"retry": {"delay": 10**400}}]),
    ],
)
def test_an_invalid_value_is_refused_naming_the_key(key, value) -> None:
    with pytest.raises(ImproperlyConfigured, match=key):
        conf.parse({key: value})


@pytest.mark.parametrize("key", ["SEND_TIMEOUT", "RETRY_DELAY", "KEEP_DAYS", "MAX_RETRIES"])
@pytest.mark.parametrize("power", [20, 400, 5000])
def test_a_number_out_of_range_is_refused_and_shown_in_few_words(key: str, power: int) -> None:
    with pytest.raises(ImproperlyConfigured, match=key) as refused:
        conf.parse({key: 10**power})
    assert len(str(refused.value)) < 700


def test_an_error_names_the_key_the_rule_and_the_value() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"\['ON_UNKNOWN'\] .* hold, .*it is 'shrug'"):
        conf.parse({"ON_UNKNOWN": "shrug"})


def test_the_setting_must_be_a_dict() -> None:
    with pytest.raises(ImproperlyConfigured, match="dict"):
        conf.parse(["MAX_RETRIES"])


def test_overriding_the_setting_takes_effect_at_once(settings) -> None:
    settings.EPICA_MAIL = {"MAX_RETRIES": 7}
    assert conf.get().max_retries == 7
    settings.EPICA_MAIL = {}
    assert conf.get().max_retries == 3


def test_removed_keys_are_ignored_until_a_check_names_them() -> None:
    assert conf.parse({"SETTLE_DELAY": 0.05, "BATCH_SECONDS": 5}) == conf.parse({})


def test_a_claim_holds_no_more_than_a_worker_may() -> None:
    assert conf.parse({"BATCH_SIZE": conf.PERMITS}).batch_size == conf.PERMITS
    with pytest.raises(ImproperlyConfigured, match=r"BATCH_SIZE.* 25 at most; it is 26"):
        conf.parse({"BATCH_SIZE": conf.PERMITS + 1})


def test_a_lease_outlasts_a_batch_and_its_last_mail() -> None:
    values = conf.get()
    assert values.lease_seconds > conf.BEGIN_SECONDS + values.send_timeout
    assert values.task_seconds > values.run_seconds + values.lease_seconds


@pytest.mark.parametrize(
    "value",
    [
        {"SUPPRESSION_KEYS": "a secret of the site"},
        {"TRANSPORTS": {"smtp": {"HOST": "h", "OPTIONS": {"password": "a secret of the site"}}}},
        {"ENCRYPTION_KEYS": "a secret of the site"},
        {"ENCRYPTION_KEYS": ["a secret of the site"]},
        {"MONITORING_TOKEN": ["a secret of the site"]},
        {"BOUNCE_MAILBOX": {"URL": "a secret of the site"}},
        {"BOUNCE_MAILBOX": {"URI": "imap://u@h", "PASSWORD": ["a secret of the site"]}},
        {"BOUNCE_MAILBOX": {"URI": "imap://u@h", "OAUTH": "a secret of the site"}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_an_error_never_shows_a_value_that_may_be_a_secret(value: dict[str, object]) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        conf.parse(value)
    assert "a secret" not in str(refused.value)


@pytest.mark.parametrize("other", [{"MAX_RETRIES": 3}, {"RETRY_DELAY": 300}])
def test_retry_and_the_settings_that_it_replaces_are_not_given_together(other) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"RETRY.* replaces .*{next(iter(other))}"):
        conf.parse({"RETRY": [60], **other})


def test_a_retry_policy_is_checked_in_the_settings() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"EPICA_MAIL\['RETRY'\]: retry\[1\] must be"):
        conf.parse({"RETRY": [60, "x"]})
