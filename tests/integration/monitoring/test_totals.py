"""The totals count each mail and attempt once, and never lose a count."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import clock, maintenance, outbox
from django_epica_mail.models import CountingMark, EmailLog, EmailTotal
from django_epica_mail.models.bounds import LATEST, MOST_BIG
from django_epica_mail.monitoring import totals
from django_epica_mail.monitoring.totals import ALL_TIME

Event = EmailTotal.Event


def all_time() -> Counter[str]:
    """Return the totals of all time by event."""
    found: Counter[str] = Counter()
    for total in EmailTotal.objects.filter(hour=totals.ALL_TIME):
        found[total.event] += total.count
    return found


@pytest.fixture(autouse=True)
def _ids_travel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Create ids at the time of the queue's clock, which tests move."""
    ahead = SimpleNamespace(
        time_ns=lambda: time.time_ns() + clock.offset // timedelta(microseconds=1) * 1000
    )
    monkeypatch.setattr(clock, "time", ahead)


@pytest.fixture
def counted(travel: Any) -> Any:
    """Count everything up to now, and return the totals of all time."""

    def count() -> Counter[str]:
        travel(minutes=2)  # beyond the lag
        totals.count()
        return all_time()

    return count


def test_a_sent_mail_is_counted_once(smtp, queue_mail, deliver, counted) -> None:
    queue_mail()
    deliver()
    assert counted() == {"enqueued": 1, "sent": 1, "attempt": 1}
    assert counted() == {"enqueued": 1, "sent": 1, "attempt": 1}


def test_rows_within_the_lag_are_not_counted_yet(smtp, queue_mail, deliver) -> None:
    queue_mail()
    deliver()
    totals.count()
    assert all_time() == {}


def test_totals_outlive_the_mails(smtp, queue_mail, deliver, counted, travel, epica_mail) -> None:
    epica_mail(KEEP_DAYS=1)
    queue_mail()
    deliver()
    before = counted()
    travel(days=2)
    assert maintenance.cleanup() == 1
    assert counted() == before


def test_a_failed_mail_is_counted_with_kind_and_code(smtp, queue_mail, deliver, counted) -> None:
    smtp.inject(refuse("rcpt", 552, "5.2.3 Too big"))
    queue_mail()
    deliver()
    assert counted() == {"enqueued": 1, "failed": 1, "attempt": 1}
    failed = EmailTotal.objects.get(hour=totals.ALL_TIME, event=Event.FAILED)
    assert (failed.failure_kind, failed.failure_code) == ("permanent", 552)


def test_a_postponed_mail_and_its_next_attempt_are_counted(
    smtp, queue_mail, deliver, counted, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    queue_mail()
    deliver()
    assert counted() == {"enqueued": 1, "attempt": 1, "postponed": 1}
    travel(minutes=6)
    deliver()
    assert counted() == {"enqueued": 1, "attempt": 2, "postponed": 1, "retried": 1, "sent": 1}


def test_the_last_attempt_is_not_counted_as_postponed(smtp, queue_mail, deliver, counted) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later"))
    queue_mail()
    EmailLog.objects.update(max_retries=0)
    deliver()
    assert counted() == {"enqueued": 1, "attempt": 1, "failed": 1}


def test_a_lost_reply_is_counted_as_unknown(smtp, queue_mail, deliver, counted) -> None:
    smtp.inject(drop("content"))
    queue_mail(on_unknown="hold")
    deliver()
    assert counted() == {"enqueued": 1, "attempt": 1, "unknown": 1}


def test_a_mail_cancelled_and_sent_later_is_counted_as_both(
    smtp, queue_mail, deliver, counted
) -> None:
    log = queue_mail()
    outbox.cancel([log.pk])
    assert counted() == {"enqueued": 1, "cancelled": 1}
    outbox.requeue([log.pk])
    deliver()
    assert counted() == {"enqueued": 1, "cancelled": 1, "sent": 1, "attempt": 1}


def test_hours_are_kept_apart_and_add_up(smtp, queue_mail, deliver, counted, travel) -> None:
    queue_mail()
    deliver()
    counted()
    travel(hours=3)
    log = queue_mail()
    deliver()
    counted()
    sent = EmailTotal.objects.filter(event=Event.SENT)
    hours = sent.exclude(hour=totals.ALL_TIME).order_by("hour")
    first, second = (total.hour for total in hours)
    assert second - first in (timedelta(hours=3), timedelta(hours=4))
    log.refresh_from_db()
    assert log.finished_at is not None
    assert second == totals.hour_of(log.finished_at)
    assert sent.get(hour=totals.ALL_TIME).count == 2


def test_delivery_time_starts_at_queueing(smtp, queue_mail, deliver, counted) -> None:
    log = queue_mail()
    past = timedelta(seconds=20)
    EmailLog.objects.update(created_at=log.created_at - past, give_up_at=log.give_up_at - past)
    deliver()
    counted()
    sent = EmailTotal.objects.get(hour=totals.ALL_TIME, event=Event.SENT)
    assert 20 <= sent.seconds < 30
    assert sent.buckets[totals.BOUNDS[Event.SENT].index(30)] == sum(sent.buckets) == 1


def test_delivery_time_of_scheduled_mail_starts_at_its_time(
    smtp, queue_mail, deliver, counted, travel
) -> None:
    queue_mail(send_at=timezone.now() + timedelta(days=2))
    travel(days=2, seconds=1)
    deliver()
    counted()
    assert EmailTotal.objects.get(hour=totals.ALL_TIME, event=Event.SENT).seconds < 30


def test_the_sweep_counts(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    travel(minutes=2)
    maintenance.dispatch()
    assert all_time()["sent"] == 1


def test_two_sweeps_at_once_count_once(smtp, queue_mail, deliver, counted, monkeypatch) -> None:
    queue_mail()
    deliver()
    next_window = totals._next_window
    windows: list[Any] = []

    def counted_already(using: str) -> Any:
        """Return a first window that another sweep has counted since."""
        if not windows:
            windows.append(next_window(using))
            totals._count_window(*windows[0], using)
            return windows[0]
        return next_window(using)

    monkeypatch.setattr(totals, "_next_window", counted_already)
    assert counted()["sent"] == 1


def test_a_sweep_without_new_events_needs_few_queries(
    mid_hour, smtp, queue_mail, deliver, counted, travel, django_assert_num_queries
) -> None:
    queue_mail()
    deliver()
    counted()
    travel(seconds=1)
    # Mark, savepoint, mark moved; finished mail, attempts and new mail; savepoint released.
    with django_assert_num_queries(8):
        totals.count()


def test_cleanup_deletes_old_hours_and_keeps_the_sum(
    smtp, queue_mail, deliver, counted, travel
) -> None:
    queue_mail()
    deliver()
    before = counted()
    travel(days=100)
    maintenance.cleanup()
    assert not EmailTotal.objects.exclude(hour=totals.ALL_TIME).exists()
    assert all_time() == before


@pytest.mark.parametrize(
    ("share", "seconds"), [(0.45, 7.5), (0.9, 10.0), (0.95, 20.0), (1.0, 30.0)]
)
def test_a_quantile_is_interpolated_within_its_bucket(share, seconds) -> None:
    bounds = totals.BOUNDS[Event.SENT]
    buckets = [0] * (len(bounds) + 1)
    buckets[bounds.index(10)], buckets[bounds.index(30)] = 90, 10
    assert totals.quantile(Event.SENT, buckets, share) == pytest.approx(seconds)


def test_a_quantile_in_the_last_bucket_is_its_lower_bound() -> None:
    bounds = totals.BOUNDS[Event.SENT]
    buckets = [*[0] * len(bounds), 1]
    assert totals.quantile(Event.SENT, buckets, 0.5) == bounds[-1]


def test_there_is_no_quantile_without_durations() -> None:
    assert totals.quantile(Event.SENT, [], 0.5) is None


EARLY = datetime(2, 1, 1, tzinfo=dt_timezone.utc)


def test_a_mail_that_was_given_up_in_the_year_2_is_counted(
    smtp, queue_mail, deliver, counted
) -> None:
    queue_mail()
    queue_mail()
    deliver()
    hurt = EmailLog.objects.order_by("pk")[:1].values_list("pk", flat=True).get()
    EmailLog.objects.filter(pk=hurt).update(give_up_at=EARLY)
    assert counted() == {"enqueued": 2, "sent": 2, "attempt": 2}


def test_a_full_total_stops_no_count(smtp, queue_mail, deliver, counted) -> None:
    queue_mail()
    deliver()
    counted()
    EmailTotal.objects.filter(event=Event.SENT).update(count=2**63 - 1)
    queue_mail()
    deliver()
    found = counted()
    assert (found["enqueued"], found["attempt"]) == (2, 2)
    assert found["sent"] == MOST_BIG


@pytest.mark.parametrize("mark", [EARLY, ALL_TIME, LATEST], ids=["early", "1970", "late"])
def test_a_mark_that_nobody_set_there_stops_no_count(
    smtp, queue_mail, deliver, counted, mark
) -> None:
    counted()
    CountingMark.objects.update_or_create(pk=1, defaults={"counted_until": mark})
    counted()  # sets it right
    queue_mail()
    deliver()
    assert counted() == {"enqueued": 1, "sent": 1, "attempt": 1}


def test_of_a_mark_that_was_set_back_nothing_is_counted_before_the_first_mail(
    smtp, queue_mail, deliver, counted
) -> None:
    queue_mail()
    deliver()
    CountingMark.objects.create(pk=1, counted_until=EARLY)
    started = time.monotonic()
    assert counted() == {"enqueued": 1, "sent": 1, "attempt": 1}
    assert time.monotonic() - started < totals._BUSY_SECONDS


def test_what_a_row_has_beyond_its_buckets_is_ignored() -> None:
    size = len(totals.BOUNDS[Event.SENT]) + 1
    assert totals.sum_buckets(Event.SENT, [[1] * 60, [], [2]]) == [3, *[1] * (size - 1)]


def test_names_that_a_database_takes_for_the_same_are_counted(
    smtp, queue_mail, deliver, counted
) -> None:
    names = ("emails", "Emails", "émails")
    for _ in range(2):
        for name in names:
            queue_mail(queue=name)
        for name in names:
            deliver(name)
        assert counted()
    assert all_time() == {"enqueued": 6, "attempt": 6, "sent": 6}
    rows = EmailTotal.objects.filter(hour=ALL_TIME, event="sent")
    assert rows.count() == (1 if connection.vendor == "mysql" else 3)
    assert sum(sum(row.buckets) for row in rows) == 6


@pytest.mark.skipif(connection.vendor != "sqlite", reason="the others store numbers alone")
def test_a_reply_code_that_is_no_number_stops_no_count(smtp, queue_mail, deliver, travel) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user"))
    damaged, _other = queue_mail("a@example.com"), queue_mail("b@example.com")
    deliver()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE epica_mail_emaillog SET failure_code = 'abc' WHERE id = %s", [damaged.pk.hex]
        )
    travel(minutes=5)
    totals.count()
    found = EmailTotal.objects.filter(hour=ALL_TIME, event=Event.FAILED)
    assert set(found.values_list("failure_code", "count")) == {(0, 1), (550, 1)}
