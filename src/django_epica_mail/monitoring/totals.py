"""Counts what happens to mail, by hour and in total, for charts, metrics and the health check.

Queueing and sending count nothing themselves. The sweep counts later, from the rows of mails and
attempts, up to a mark that stays ``LAG`` behind the clock: rows older than the mark are committed
by then, and each is counted once. Rows are missed if their transaction stays open for longer than
``LAG``, or if the clock of their host is that far behind.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, cast

from django.db import router, transaction
from django.db.models import Count

from django_epica_mail import clock, conf, lifecycle
from django_epica_mail.clock import EPOCH, lowest_id_at, time_of
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import CountingMark, DeliveryAttempt, EmailLog, EmailTotal
from django_epica_mail.monitoring import reputation
from django_epica_mail.retry import LOST, PASSING, Kind

Event = EmailTotal.Event

ALL_TIME = EPOCH
"""The ``hour`` value of the all-time rows."""
LAG = timedelta(seconds=60)
"""How far the mark stays behind the clock."""
HOUR = timedelta(hours=1)
_MOST_AHEAD = timedelta(days=1)
"""A mark that is further ahead of the clock is none of this package; less may be a clock that was
set back, and what was counted up to then is not counted again."""
KEPT = timedelta(days=92)
"""How long hourly totals are kept; all-time totals are kept forever."""

BOUNDS: Mapping[str, Sequence[float]] = {
    # From queueing, or the scheduled time, until a server accepted the mail.
    Event.SENT: (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 10_800, 86_400),
    # One attempt: the dialogue with a server.
    Event.ATTEMPT: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
}
"""The upper bounds, in seconds, of the buckets of each event with a duration.

One more bucket is open-ended. Counts are stored in this order, so bounds may be appended but
never changed.
"""

_BUSY_SECONDS = 5.0
"""No window is started after this time; the next sweep counts the rest."""
_Key = tuple[str, str, str, str, int]
"""Queue, transport, event, failure kind and failure code."""


@dataclass
class _Tally:
    """The totals of one key in a window."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=list)

    def add(self, event: str, seconds: float | None) -> None:
        """Count one event; ``seconds`` is its duration, if it has one."""
        self.count += 1
        if seconds is not None:
            bounds = BOUNDS[event]
            self.buckets = self.buckets or [0] * (len(bounds) + 1)
            self.buckets[bisect_left(bounds, seconds)] += 1
            self.seconds += seconds


def count() -> int:
    """Count events up to ``LAG`` ago; return how many were counted.

    Stops starting windows after ``_BUSY_SECONDS``; a window is an hour at most.
    """
    using = router.db_for_write(EmailTotal)
    started, counted = time.monotonic(), 0
    while time.monotonic() - started < _BUSY_SECONDS:
        window = _next_window(using)
        if window is None:
            break
        counted += _count_window(*window, using)
        if window[1] < hour_of(window[0]) + HOUR:
            break  # caught up with the clock
    return counted


def forget_hours(using: str) -> None:
    """Delete hourly totals, and days of reputation, older than ``KEPT``."""
    old = EmailTotal.objects.using(using).filter(hour__gt=ALL_TIME, hour__lt=clock.now(-KEPT))
    old.delete()
    reputation.forget_days(KEPT, using)


def quantile(event: str, buckets: Sequence[int], share: float) -> float | None:
    """Estimate the quantile ``share`` of counted durations in seconds; ``None`` if none is counted.

    Like Prometheus, assumes that durations are spread evenly within a bucket; for the last bucket,
    which is open-ended, returns its lower bound.
    """
    wanted, below = share * sum(buckets), 0
    if not wanted:
        return None
    lower = 0.0
    for upper, number in zip(BOUNDS[event], buckets, strict=False):
        if number and below + number >= wanted:
            return lower + (upper - lower) * (wanted - below) / number
        below += number
        lower = upper
    return lower


def sum_buckets(event: str, rows: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of each bucket of an event over all rows.

    A row may be empty or shorter than others; what a longer one has beyond the buckets is ignored.
    """
    total: list[int] = []
    most = len(BOUNDS.get(event, ())) + 1
    for row in rows:
        total += [0] * (min(len(row), most) - len(total))
        for index, number in enumerate(row[:most]):
            total[index] += number
    return total


def _next_window(using: str) -> tuple[datetime, datetime] | None:
    """Return the next window to count, within one hour, or ``None`` if there is none."""
    marks = CountingMark.objects.using(using).filter(pk=1).annotate(limit=clock.now(-LAG))
    mark = marks.values_list("counted_until", "limit").first()
    if mark is None:
        if (oldest := _first_hour(using)) is not None:
            CountingMark.objects.using(using).get_or_create(
                pk=1, defaults={"counted_until": oldest}
            )
            return _next_window(using)
        return None
    start, limit = mark
    # Only if it still is beyond what this package writes: another sweep may have mended it.
    if start > limit + _MOST_AHEAD:
        marks.filter(counted_until__gt=limit + _MOST_AHEAD).update(counted_until=limit)
        return None
    if start < limit - KEPT and start < (first := _first_hour(using) or limit):
        marks.filter(counted_until__lt=first).update(counted_until=first)
        return _next_window(using)
    end = min(limit, hour_of(start) + HOUR)
    return (start, end) if end > start else None


def _first_hour(using: str) -> datetime | None:
    """Return the hour in which the oldest mail was queued, by its id."""
    oldest = EmailLog.objects.using(using).order_by("pk").values_list("pk", flat=True).first()
    return None if oldest is None else hour_of(time_of(oldest))


def hour_of(moment: datetime) -> datetime:
    """Return the start of the hour in UTC, which has no hour repeated by a clock change."""
    return moment.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)


def _count_window(start: datetime, end: datetime, using: str) -> int:
    with transaction.atomic(using=using):
        mark = CountingMark.objects.using(using).filter(pk=1, counted_until=start)
        if not mark.update(counted_until=end):
            return 0  # counted by another sweep; from here on, others wait for this row
        tallies: dict[_Key, _Tally] = {}
        mails: Counter[reputation.Key] = Counter()
        for key, seconds in (*_finished(start, end, mails, using), *_attempts(start, end, using)):
            tallies.setdefault(key, _Tally()).add(key[2], seconds)
        for queue, transport, number in _enqueued(start, end, using):
            tallies[queue, transport, Event.ENQUEUED.value, "", 0] = _Tally(number)
        if tallies:
            _write(hour_of(start), tallies, using)
        reputation.add(mails, start, end, using)
    return sum(tally.count for tally in tallies.values())


def _enqueued(start: datetime, end: datetime, using: str) -> Iterable[tuple[str, str, int]]:
    rows = EmailLog.objects.using(using).filter(
        pk__gte=lowest_id_at(start), pk__lt=lowest_id_at(end)
    )
    grouped = rows.order_by().values_list("queue", "transport").annotate(number=Count("pk"))
    return list(grouped)


def _finished(
    start: datetime, end: datetime, mails: Counter[reputation.Key], using: str
) -> Iterator[tuple[_Key, float | None]]:
    """Yield the final status of each finished mail, with the delivery time of sent mail.

    Counts in ``mails`` those that count for a reputation.
    """
    give_up_after = timedelta(seconds=conf.get().give_up_after)
    rows = EmailLog.objects.using(using).filter(
        failure_kind__in=["", *Kind],  # the first column of the index
        finished_at__gte=start,
        finished_at__lt=end,
        status__in=lifecycle.FINAL,
    )
    ended = rows.order_by().values_list(
        "queue",
        "transport",
        "status",
        "failure_kind",
        "failure_code",
        "created_at",
        "give_up_at",
        "finished_at",
        "category",
        "from_email",
    )
    for queue, transport, status, kind, code, *times, category, sender in ended.iterator():
        created, give_up, finished = cast(tuple[datetime, datetime, datetime], tuple(times))
        if reputation.is_counted(status, kind):
            mails[reputation.key(finished, category, sender)] += 1
        if status == Status.SENT:
            # For scheduled or requeued mail, give_up_at was set from that later time.
            began = max(created, give_up - give_up_after)
            seconds = max(0.0, (finished - began).total_seconds())
            yield (queue, transport, status, "", 0), seconds
        elif status == Status.FAILED:
            yield (queue, transport, status, kind, code or 0), None
        else:
            yield (queue, transport, status, "", 0), None


def _attempts(start: datetime, end: datetime, using: str) -> Iterator[tuple[_Key, float | None]]:
    """Yield an event per attempt, plus those that follow from it.

    That is one if it was a retry, and one if its outcome is unknown or it was postponed.
    """
    rows = DeliveryAttempt.objects.using(using).filter(
        pk__gte=lowest_id_at(start), pk__lt=lowest_id_at(end)
    )
    attempted = rows.order_by().values_list(
        "email__queue",
        "transport",
        "number",
        "failure_kind",
        "seconds",
        "email__status",
        "email__attempts",
    )
    for queue, transport, number, kind, seconds, status, attempts in attempted.iterator():
        yield (queue, transport, Event.ATTEMPT.value, kind, 0), seconds
        if number > 1:
            yield (queue, transport, Event.RETRIED.value, "", 0), None
        if kind in LOST:
            yield (queue, transport, Event.UNKNOWN.value, kind, 0), None
        elif kind in PASSING and (number < attempts or status != Status.FAILED):
            yield (queue, transport, Event.POSTPONED.value, kind, 0), None


_UNIQUE = ("hour", "queue", "transport", "event", "failure_kind", "failure_code")
"""The columns that identify a total: its hour, and those of a ``_Key``."""


def _key_of(row: EmailTotal) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _UNIQUE)


def _write(hour: datetime, tallies: Mapping[_Key, _Tally], using: str) -> None:
    """Add tallies to their hour's totals and to the all-time totals.

    Other sweeps cannot write at the same time: this transaction has locked the mark.
    """
    totals = EmailTotal.objects.using(using)
    rows = totals.filter(hour__in=[hour, ALL_TIME])
    wanted = {(at, *key): tally for key, tally in tallies.items() for at in (hour, ALL_TIME)}
    existing = {_key_of(row): row for row in rows}
    if new := wanted.keys() - existing.keys():
        blank = [EmailTotal(**dict(zip(_UNIQUE, key, strict=True))) for key in sorted(new)]
        totals.bulk_create(blank, ignore_conflicts=True)
        existing = {_key_of(row): row for row in rows.all()}
    changed: dict[int, EmailTotal] = {}
    by_pk = {row.pk: row for row in existing.values()}
    for key, tally in wanted.items():
        # A name that the database takes for another one is counted with that.
        row = existing.get(key) or by_pk[totals.get(**dict(zip(_UNIQUE, key, strict=True))).pk]
        row.count += tally.count
        row.seconds += tally.seconds
        row.buckets = sum_buckets(row.event, [row.buckets, tally.buckets])
        changed[row.pk] = row
    totals.bulk_update(changed.values(), ["count", "seconds", "buckets"], batch_size=100)
