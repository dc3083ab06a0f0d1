"""The history of a period, in hours and days of the site's time zone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
import time_machine

from django_epica_mail.models import EmailTotal
from django_epica_mail.monitoring import history, totals
from django_epica_mail.monitoring.history import PERIODS

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=timezone.utc)  # 15:30 in Istanbul


@pytest.fixture(autouse=True)
def _now(settings):
    with time_machine.travel(NOW, tick=False):
        yield


def total(hour: datetime, count: int, event: str = "sent", **more) -> None:
    values = {"queue": "emails", "transport": "smtp", **more}
    EmailTotal.objects.create(hour=hour, event=event, count=count, **values)


def sent(period: str, **where) -> dict[str, int]:
    """Return the mails sent, by the local start of the slot, without empty slots."""
    slots = history.read(PERIODS[period], "default", **where).slots
    counts = {f"{slot.start:%d %H:%M}": slot.counts["sent"] for slot in slots}
    return {start: count for start, count in counts.items() if count}


def test_an_hour_is_shown_in_the_sites_time_zone() -> None:
    total(NOW.replace(minute=0), 3)
    total(NOW.replace(minute=0) - timedelta(hours=23), 4)
    total(NOW.replace(minute=0) - timedelta(hours=24), 99)
    total(totals.ALL_TIME, 999)
    assert sent("24h") == {"09 16:00": 4, "10 15:00": 3}


def test_a_day_ends_at_midnight_of_the_sites_time_zone() -> None:
    total(datetime(2026, 3, 8, 20, tzinfo=timezone.utc), 1)  # 23:00
    total(datetime(2026, 3, 8, 21, tzinfo=timezone.utc), 2)  # 00:00 of the next day
    total(datetime(2026, 3, 9, 20, tzinfo=timezone.utc), 4)
    assert sent("7d") == {"08 00:00": 1, "09 00:00": 6}


def test_a_day_with_a_change_of_clocks_is_one_day(settings) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    with time_machine.travel(datetime(2026, 3, 31, 12, tzinfo=timezone.utc), tick=False):
        total(datetime(2026, 3, 28, 23, tzinfo=timezone.utc), 1)  # Sunday, 0:00
        total(datetime(2026, 3, 29, 21, tzinfo=timezone.utc), 2)  # Sunday, 23:00
        total(datetime(2026, 3, 29, 22, tzinfo=timezone.utc), 4)  # Monday, 0:00
        assert sent("7d") == {"29 00:00": 3, "30 00:00": 4}
        assert len(history.read(PERIODS["90d"], "default").slots) == 90


def test_history_can_be_limited_to_a_queue_or_transport() -> None:
    total(NOW.replace(minute=0), 3)
    total(NOW.replace(minute=0), 5, queue="bulk_emails")
    total(NOW.replace(minute=0), 7, transport="ses")
    assert sent("24h") == {"10 15:00": 15}
    assert sent("24h", queue="emails") == {"10 15:00": 10}
    assert sent("24h", queue="emails", transport="ses") == {"10 15:00": 7}


def test_reasons_are_summed_and_sorted_by_frequency() -> None:
    hour = NOW.replace(minute=0)
    for at, number in ((hour, 2), (hour - totals.HOUR, 3)):
        total(at, number, "failed", failure_kind="permanent", failure_code=550)
    total(hour, 9, "failed", failure_kind="transient", failure_code=451)
    found = history.read(PERIODS["24h"], "default").reasons
    assert [(it.kind, it.code, it.count) for it in found] == [
        ("transient", 451, 9),
        ("permanent", 550, 5),
    ]


def test_delivery_times_are_summed_by_slot_and_by_queue() -> None:
    hour = NOW.replace(minute=0)
    total(hour, 3, buckets=[1, 2])
    total(hour, 1, transport="ses", buckets=[0, 0, 1])
    total(hour - totals.HOUR, 1, buckets=[1])
    found = history.read(PERIODS["24h"], "default")
    assert found.slots[-1].buckets == [1, 2, 1]
    assert found.times == {("emails", "smtp"): [2, 2], ("emails", "ses"): [0, 0, 1]}
    assert found.counts == {"sent": 5}


def test_a_slot_knows_the_same_hour_and_weekday_a_week_before() -> None:
    hour = NOW.replace(minute=0)
    week = timedelta(days=7)
    total(hour - week, 5)
    total(hour, 3)
    last = history.read(PERIODS["24h"], "default").slots[-1]
    assert (last.counts["sent"], last.earlier.counts["sent"]) == (3, 5)
    assert history.read(PERIODS["24h"], "default").slots[0].earlier is None, "not counted then"
    total(hour - timedelta(days=8), 7)
    total(hour - timedelta(days=9), 1)  # so that the whole of that day is counted
    yesterday = history.read(PERIODS["30d"], "default").slots[-1]
    assert (yesterday.counts["sent"], yesterday.earlier.counts["sent"]) == (0, 7)
