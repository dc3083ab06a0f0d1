"""The options of a mail, and the route decided from options, rules and defaults."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from django_epica_mail import conf
from django_epica_mail.routing import Options, decide, parse_options
from django_epica_mail.rules import ON_UNKNOWN
from django_epica_mail.rules.routes import Facts

AWARE = datetime(2027, 1, 2, tzinfo=timezone.utc)
DEFAULTS = conf.Settings()


def test_single_mail_has_its_own_queue_and_is_more_urgent() -> None:
    single, bulk = (
        decide(Options(), Facts(is_bulk=is_bulk), DEFAULTS) for is_bulk in (False, True)
    )
    assert (single.queue, single.priority) == ("emails", 9)
    assert (bulk.queue, bulk.priority) == ("bulk_emails", 5)
    assert single.transports == bulk.transports == ()
    assert (single.max_retries, single.retry_delays, single.on_unknown) == (3, (300,), "resend")


@pytest.mark.parametrize(
    ("given", "rule", "of_celery", "queue", "priority"),
    [
        ({"queue": "a", "priority": 1}, {"queue": "b", "priority": 2}, {}, "a", 1),
        ({}, {"queue": "b", "priority": "high"}, {"queue": "c", "priority": 3}, "b", 6),
        ({"priority": 0}, {}, {"queue": "c", "priority": 3}, "c", 0),
        ({}, {}, {"queue": "c", "priority": "low"}, "c", 0),
        ({}, {"priority": 4}, {"queue": None, "priority": None}, "emails", 4),
    ],
)
def test_the_call_precedes_the_rule_which_precedes_celery(
    given: Any, rule: Any, of_celery: Any, queue: str, priority: int
) -> None:
    settings = conf.parse({"ROUTES": [rule]})
    route = decide(parse_options(given), Facts(), settings, of_celery)
    assert (route.queue, route.priority) == (queue, priority)


def test_the_first_matching_rule_takes_effect_and_is_recorded() -> None:
    settings = conf.parse(
        {
            "ROUTES": [
                {"match": {"to": "*@gov.tr"}, "transport": ["ses", "smtp"], "on_unknown": "hold"},
                {"match": {"category": "invoice"}, "retry": {"max_retries": 9, "delay": 60}},
                {"expires_after": 3600},
            ]
        }
    )
    official = decide(Options(), Facts(category="invoice", recipients=["a@gov.tr"]), settings)
    assert (official.rule, official.transports) == (0, ("ses", "smtp"))
    assert (official.on_unknown, official.max_retries) == ("hold", 3)
    invoice = decide(Options(), Facts(category="invoice"), settings)
    assert (invoice.rule, invoice.max_retries, invoice.retry_delays) == (1, 9, (60,))
    other = decide(Options(), Facts(), settings)
    assert (other.rule, other.expires_after) == (2, timedelta(hours=1))


def test_a_transport_named_by_the_call_has_no_failover() -> None:
    settings = conf.parse({"ROUTES": [{"transport": ["ses", "smtp"]}]})
    assert decide(Options(transport="smtp"), Facts(), settings).transports == ("smtp",)


def test_options_not_given_are_none() -> None:
    options = parse_options({})
    assert [getattr(options, field.name) for field in fields(Options)] == [None] * len(
        fields(Options)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", "ses"),
        ("queue", "q" * 64),
        ("category", "sipariş onayı"),
        ("priority", 0),
        ("priority", "low"),
        ("send_at", AWARE),
        ("expires_at", AWARE),
        ("expires_after", 60),
        ("expires_after", timedelta(days=1)),
        ("idempotency_key", "order-7"),
        ("store_result", False),
        ("keep_content", "never"),
        *(("on_unknown", choice) for choice in ON_UNKNOWN),
    ],
)
def test_a_valid_option_is_kept(name: str, value: Any) -> None:
    assert getattr(parse_options({name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, ValueError) for name in ("transport", "queue", "category")
          for value in ("", "q" * 65, 7, b"q", "a\0b", "a\ud800")),
        ("expires_after", 0, ValueError),
        ("expires_after", timedelta(-1), ValueError),
        ("expires_after", True, TypeError),
        ("expires_after", 10**400, ValueError),
        ("priority", 10**400, ValueError),
        ("idempotency_key", "", ValueError),
        ("idempotency_key", "k" * 256, ValueError),
        ("idempotency_key", 7, ValueError),
        ("store_result", "yes", TypeError),
        ("keep_content", "sometimes", ValueError),
        ("send_at", datetime(2027, 1, 2), ValueError),
        ("expires_at", datetime(2027, 1, 2), ValueError),
        ("send_at", date(2027, 1, 2), TypeError),
        ("expires_at", "2027-01-02T00:00:00Z", TypeError),
        ("send_at", 0, TypeError),
        ("on_unknown", "shrug", ValueError),
        ("on_unknown", "", ValueError),
        ("priority", 10, ValueError),
    ],
)  # fmt: skip
def test_an_invalid_option_is_refused_naming_it_and_its_value(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^{name} must be ") as caught:
        parse_options({name: value})
    assert repr(value)[:300] in str(caught.value)


@pytest.mark.parametrize(
    "zone", [None, timezone.utc, ZoneInfo("America/New_York"), ZoneInfo("Asia/Tokyo")], ids=str
)
@pytest.mark.parametrize("name", ["send_at", "expires_at"])
@pytest.mark.parametrize("edge", [datetime.max, datetime.min], ids=["max", "min"])
def test_the_last_and_the_first_time_of_python_are_refused(edge, name, zone) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be in the years"):
        parse_options({name: edge.replace(tzinfo=zone)})


def test_mail_that_expires_before_it_is_sent_is_refused() -> None:
    for expires_at in (AWARE, AWARE - timedelta(seconds=1)):
        with pytest.raises(ValueError, match=r"^expires_at must be after send_at"):
            parse_options({"send_at": AWARE, "expires_at": expires_at})
    parse_options({"send_at": AWARE, "expires_at": AWARE + timedelta(seconds=1)})


def test_the_order_of_times_is_not_that_of_the_readings_of_a_clock() -> None:
    rome = ZoneInfo("Europe/Rome")  # where the clock goes back from three to two
    first = datetime(2026, 10, 25, 2, 50, tzinfo=rome, fold=0)
    later = datetime(2026, 10, 25, 2, 10, tzinfo=rome, fold=1)
    parse_options({"send_at": first, "expires_at": later})
    with pytest.raises(ValueError, match="after send_at"):
        parse_options({"send_at": later, "expires_at": first})


def test_an_unknown_option_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"no option 'prioritty'.*priority, queue, retry, send_at"):
        parse_options({"queue": "emails", "prioritty": 9})


FIRST_HOUR = [60, 300, 1800]


@pytest.mark.parametrize(
    ("settings", "rule", "call", "retries", "delays"),
    [
        ({}, {}, None, 3, (300,)),
        ({"MAX_RETRIES": 5, "RETRY_DELAY": 60}, {}, None, 5, (60,)),
        ({"RETRY": FIRST_HOUR}, {}, None, 3, (60, 300, 1800)),
        ({"RETRY": FIRST_HOUR}, {"retry": {"max_retries": 9}}, None, 9, (60, 300, 1800)),
        ({"RETRY": FIRST_HOUR}, {"retry": [5]}, None, 1, (5,)),
        ({"RETRY": FIRST_HOUR}, {"retry": [5]}, {"delay": 7}, 1, (7,)),
        ({}, {}, [], 0, (300,)),
        ({}, {}, {"delay": 60, "factor": 2, "max_delay": 200}, 3, (60, 120, 200)),
    ],
)
def test_a_retry_policy_comes_from_the_call_the_rule_or_the_settings(
    settings, rule, call, retries, delays
) -> None:
    site = conf.parse({**settings, "ROUTES": [rule]})
    route = decide(Options(retry=call), Facts(), site)
    assert (route.max_retries, route.retry_delays) == (retries, delays)
