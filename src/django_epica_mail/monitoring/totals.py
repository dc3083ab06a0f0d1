"""Totals of what happens to mail, by the hour and ever: for charts, metrics and the health check.

Nothing is counted where mail is queued or sent. The sweep counts afterwards, from the rows of mails
and attempts, and moves a mark that lags behind the clock by ``LAG``: what was written before the
mark is then committed, and each row is counted once. Of a transaction that stays open for longer
than that, or of a host whose clock is that late, some may be missed.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from django.db import router, transaction
from django.db.models import Count

from django_epica_mail import clock, conf, lifecycle
from django_epica_mail.clock import EPOCH, lowest_id_at
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import CountingMark, DeliveryAttempt, EmailLog, EmailTotal
from django_epica_mail.retry import PASSING, Kind

Event = EmailTotal.Event

EVER = EPOCH
"""The hour of the totals of all time."""


LAG = timedelta(seconds=60)
HOUR = timedelta(hours=1)
KEPT = timedelta(days=92)
"""How long the totals of single hours are kept; those of all time are kept on."""

BOUNDS: Mapping[str, Sequence[float]] = {
    # From queueing, or the time it was scheduled for, until a server accepted it.
    Event.SENT: (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 10_800, 86_400),
    # One dialogue with a server.
    Event.ATTEMPT: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
}
"""The upper bounds in seconds of the buckets of each event that takes time; the last is open.

Stored counts follow their order: they may be lengthened at the end and never changed otherwise.
"""

_BUSY_SECONDS = 5.0
"""After so long the rest is left to the next sweep."""
LOST = (Kind.UNKNOWN, Kind.WORKER_LOST)
"""Why it is not known whether a mail was accepted."""
_Key = tuple[str, str, str, str, int]
"""Queue, transport, event, kind and code of a failure."""


@dataclass
class _Tally:
    """What one key comes to."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=list)

    def add(self, event: str, seconds: float | None) -> None:
        """Count one, which took some time unless ``None``."""
        self.count += 1
        if seconds is not None:
            bounds = BOUNDS[event]
            self.buckets = self.buckets or [0] * (len(bounds) + 1)
            self.buckets[bisect_left(bounds, seconds)] += 1
            self.seconds += seconds


def count() -> int:
    """Count what has happened up to ``LAG`` ago, for a bounded time; return how many events."""
    using = router.db_for_write(EmailTotal)
    started, counted = time.monotonic(), 0
    while time.monotonic() - started < _BUSY_SECONDS:
        window = _next_window(using)
        if window is None:
            break
        counted += _count_window(*window, using)
        if window[1] < hour_of(window[0]) + HOUR:
            break  # the clock has been reached; it goes on meanwhile
    return counted


def forget_hours(using: str) -> None:
    """Delete the totals of single hours that are older than ``KEPT``."""
    old = EmailTotal.objects.using(using).filter(hour__gt=EVER, hour__lt=clock.now(-KEPT))
    old.delete()


def quantile(event: str, buckets: Sequence[int], share: float) -> float | None:
    """Estimate the seconds that ``share`` of the counted stayed below; ``None`` if none was.

    Within a bucket they are taken to be spread evenly, as Prometheus does. Of the last bucket,
    which is open, only the lower bound is known.
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


def added(rows: Iterable[Sequence[int]]) -> list[int]:
    """Return the sums of buckets, which may be empty."""
    total: list[int] = []
    for row in rows:
        total += [0] * (len(row) - len(total))
        for index, number in enumerate(row):
            total[index] += number
    return total


def _next_window(using: str) -> tuple[datetime, datetime] | None:
    """Return what to count next, within one hour; ``None`` if nothing is."""
    marks = CountingMark.objects.using(using).annotate(limit=clock.now(-LAG))
    mark = marks.filter(pk=1).values_list("counted_until", "limit").first()
    if mark is None:
        first = EmailLog.objects.using(using).order_by("pk").values_list("created_at", flat=True)
        if (oldest := first.first()) is not None:
            CountingMark.objects.using(using).get_or_create(
                pk=1, defaults={"counted_until": hour_of(oldest)}
            )
            return _next_window(using)
        return None
    start, limit = mark
    end = min(limit, hour_of(start) + HOUR)
    return (start, end) if end > start else None


def hour_of(moment: datetime) -> datetime:
    """Return the beginning of the hour, in UTC: so that no change of clocks repeats one."""
    return moment.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)


def _count_window(start: datetime, end: datetime, using: str) -> int:
    with transaction.atomic(using=using):
        mark = CountingMark.objects.using(using).filter(pk=1, counted_until=start)
        if not mark.update(counted_until=end):
            return 0  # another sweep has counted it; from here on others wait for this one
        tallies: dict[_Key, _Tally] = {}
        for key, seconds in (*_ends(start, end, using), *_tries(start, end, using)):
            tallies.setdefault(key, _Tally()).add(key[2], seconds)
        for queue, transport, number in _enqueued(start, end, using):
            tallies[queue, transport, Event.ENQUEUED.value, "", 0] = _Tally(number)
        if tallies:
            _write(hour_of(start), tallies, using)
    return sum(tally.count for tally in tallies.values())


def _enqueued(start: datetime, end: datetime, using: str) -> Iterable[tuple[str, str, int]]:
    rows = EmailLog.objects.using(using).filter(
        pk__gte=lowest_id_at(start), pk__lt=lowest_id_at(end)
    )
    grouped = rows.order_by().values_list("queue", "transport").annotate(number=Count("pk"))
    return list(grouped)


def _ends(start: datetime, end: datetime, using: str) -> Iterator[tuple[_Key, float | None]]:
    """Yield what each mail came to."""
    patience = timedelta(seconds=conf.get().give_up_after)
    rows = EmailLog.objects.using(using).filter(
        failure_kind__in=["", *Kind],  # the index begins with it
        finished_at__gte=start,
        finished_at__lt=end,
        status__in=lifecycle.FINAL,
    )
    told = rows.order_by().values_list(
        "queue",
        "transport",
        "status",
        "failure_kind",
        "failure_code",
        "created_at",
        "give_up_at",
        "finished_at",
    )
    for queue, transport, status, kind, code, created, give_up, finished in told.iterator():
        if status == Status.SENT and finished is not None:
            # Of scheduled mail, and of what was queued again, patience began at that time.
            began = max(created, give_up - patience)
            seconds = max(0.0, (finished - began).total_seconds())
            yield (queue, transport, status, "", 0), seconds
        elif status == Status.FAILED:
            yield (queue, transport, status, kind, code or 0), None
        else:
            yield (queue, transport, status, "", 0), None


def _tries(start: datetime, end: datetime, using: str) -> Iterator[tuple[_Key, float | None]]:
    """Yield each attempt, and what else it was."""
    rows = DeliveryAttempt.objects.using(using).filter(
        pk__gte=lowest_id_at(start), pk__lt=lowest_id_at(end)
    )
    told = rows.order_by().values_list(
        "email__queue",
        "transport",
        "number",
        "failure_kind",
        "seconds",
        "email__status",
        "email__attempts",
    )
    for queue, transport, number, kind, seconds, status, attempts in told.iterator():
        yield (queue, transport, Event.ATTEMPT.value, kind, 0), seconds
        if number > 1:
            yield (queue, transport, Event.RETRIED.value, "", 0), None
        if kind in LOST:
            yield (queue, transport, Event.UNKNOWN.value, kind, 0), None
        elif kind in PASSING and (number < attempts or status != Status.FAILED):
            yield (queue, transport, Event.POSTPONED.value, kind, 0), None


def _write(hour: datetime, tallies: Mapping[_Key, _Tally], using: str) -> None:
    """Add tallies to the totals of their hour, and to those of all time.

    Nobody else writes meanwhile: the mark of this transaction keeps them waiting.
    """
    totals = EmailTotal.objects.using(using)
    there = {
        (row.hour, row.queue, row.transport, row.event, row.failure_kind, row.failure_code): row
        for row in totals.filter(hour__in=[hour, EVER])
    }
    new, changed = [], []
    for key, tally in tallies.items():
        for at in (hour, EVER):
            row = there.get((at, *key))
            if row is None:
                queue, transport, event, kind, code = key
                row = EmailTotal(
                    hour=at,
                    queue=queue,
                    transport=transport,
                    event=event,
                    failure_kind=kind,
                    failure_code=code,
                )
                new.append(row)
            else:
                changed.append(row)
            row.count += tally.count
            row.seconds += tally.seconds
            row.buckets = added([row.buckets, tally.buckets])
    totals.bulk_create(new)
    totals.bulk_update(changed, ["count", "seconds", "buckets"], batch_size=100)
