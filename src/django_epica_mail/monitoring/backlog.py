"""What waits in each queue for each transport, found by hopping along the claim's index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import router
from django.db.models import Count, Max, Min
from django.utils import timezone

from django_epica_mail import clock, lifecycle
from django_epica_mail.delivery import claim, gates
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS

_LONGEST_LEASE = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits in one queue for one transport, and what is under way."""

    queue: str
    transport: str
    waiting: int
    """How many mails may be claimed, now or later."""
    due: int
    """How many of these may be claimed now."""
    oldest_due: datetime | None
    """Since when the oldest of them may be."""
    oldest_due_age: float | None
    """For how many seconds."""
    in_flight: int
    """How many mails workers hold."""


def backlogs(using: str, moment: datetime) -> list[Backlog]:
    """Return, by queue and transport, what waits and what is under way; ages are at ``moment``."""
    held = _in_flight(using)
    found = {
        key: _counted(*key, levels, held[key], moment, using)
        for key, levels in _by_queue_and_transport(using)
    }
    found |= {
        (queue, alias): _counted(queue, alias, [], number, moment, using)
        for (queue, alias), number in held.items()
        if (queue, alias) not in found
    }
    return [found[key] for key in sorted(found)]


def waiting(using: str) -> Iterator[tuple[str, str]]:
    """Yield each queue, and each transport that mail waits for in it."""
    for key, _ in _by_queue_and_transport(using):
        yield key


def due_ages(using: str, moment: datetime) -> dict[tuple[str, str], float]:
    """Return how many seconds the oldest due mail of each queue and transport has been due."""
    found = {
        (queue, alias): age(_oldest(_due(queue, alias, levels, using)), moment)
        for (queue, alias), levels in _by_queue_and_transport(using)
    }
    return {key: seconds for key, seconds in found.items() if seconds is not None}


def clock_and_first_mail(using: str) -> tuple[datetime, datetime | None]:
    """Return the database's time and that of the first mail.

    Without mail, whose age it is for, it is the time of this machine.
    """
    told = EmailLog.objects.using(using).order_by("pk").annotate(now=clock.now())  # by time, too
    return told.values_list("now", "created_at").first() or (timezone.now(), None)


def last_sweep(using: str) -> datetime | None:
    """Return when a sweep last came by, as far as there was mail for it."""
    at: datetime | None = DeliveryGate.objects.using(using).aggregate(at=Max("last_sweep_at"))["at"]
    return at


def age(at: datetime | None, moment: datetime) -> float | None:
    """Return how many seconds something has lasted, if it has begun."""
    return None if at is None else round(max(0.0, (moment - at).total_seconds()), 1)


def _counted(
    queue: str, alias: str, levels: list[int], in_flight: int, moment: datetime, using: str
) -> Backlog:
    rows = EmailLog.objects.using(using).filter(queue=queue, transport=alias)
    due = _due(queue, alias, levels, using)
    oldest = _oldest(due)
    return Backlog(
        queue=queue,
        transport=alias,
        waiting=rows.filter(pending__lt=LEVELS.stop).count() if levels else 0,
        due=sum(rows_of_level.count() for rows_of_level in due),
        oldest_due=oldest,
        oldest_due_age=age(oldest, moment),
        in_flight=in_flight,
    )


def _by_queue_and_transport(using: str) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Yield each queue and transport that mail waits for, with the priorities it waits at."""
    for queue in claim.queues(using):
        alias = ""
        while True:  # hops from one transport to the next
            rows = EmailLog.objects.using(using).filter(queue=queue, transport__gt=alias)
            following = rows.aggregate(name=Min("transport"))["name"]
            if following is None:
                break
            alias = following
            if levels := list(claim.due_levels(queue, alias, using)):
                yield (queue, alias), levels


def _due(queue: str, alias: str, levels: Iterable[int], using: str) -> list[EmailQuerySet]:
    return [claim.due(queue, alias, level, using) for level in levels]


def _oldest(levels: Iterable[EmailQuerySet]) -> datetime | None:
    """Return since when the oldest of mails, each level in claim order, has been due."""
    firsts = [rows.values_list("due_at", flat=True).first() for rows in levels]
    return min(filter(None, firsts), default=None)


def _in_flight(using: str) -> Counter[tuple[str, str]]:
    # A range, for SQLite looks for what "is not NULL" in all rows; and counted here, for to group
    # them it would too. Workers hold a bounded number.
    leased = EmailLog.objects.using(using).filter(
        lease_until__gt=clock.now(-_LONGEST_LEASE), status=Status.SENDING
    )
    return Counter(leased.values_list("queue", "transport"))


_Counts = Mapping[tuple[str, str], int]
"""How many mails there are of each queue and status."""

RECENT_HOURS = 24
"""For so long a mail that came to its end is counted: the rest is history, and a lot of it."""


def status() -> dict[str, Any]:
    """Return how each queue stands, and what holds mail back.

    Of a queue: how many mails are ``waiting``, how many of these are ``due``, since when
    (``oldest due``, and ``oldest due age`` in seconds), how many are ``in flight``; then counts by
    status. A status that is final counts what reached it in the last 24 hours.
    """
    using = router.db_for_read(EmailLog)
    now, _ = clock_and_first_mail(using)
    report = {queue: _empty_counts() for queue in claim.queues(using)}
    for found in backlogs(using, now):
        _add_backlog(found, report.setdefault(found.queue, _empty_counts()))
    for rows in (*_between_tries(using), *_count_ended(using)):
        for (queue, state), count in rows.items():
            counts = report[queue]
            counts[state] = counts.get(state, 0) + count
    for counts in report.values():
        _complete(counts, now)
    sweep = last_sweep(using)
    batches = EmailBatch.objects.using(using).filter(finished_at=None)
    return {
        "queues": report,
        "hours": RECENT_HOURS,
        "unfinished batches": batches.count(),
        "last sweep": sweep,
        "last sweep age": age(sweep, now),
        "held back": gates.Gates(using).reasons(),
    }


def _empty_counts() -> dict[str, Any]:
    return {"waiting": 0, "due": 0, "in flight": 0, "oldest due": None, "oldest due age": None}


def _add_backlog(found: Backlog, counts: dict[str, Any]) -> None:
    counts["waiting"] += found.waiting
    counts["due"] += found.due
    counts["in flight"] += found.in_flight
    both = filter(None, (counts["oldest due"], found.oldest_due))
    counts["oldest due"] = min(both, default=None)


def _between_tries(using: str) -> Iterator[_Counts]:
    """Count what was tried, and is neither at work nor at its end."""
    for kind in Kind:
        rows = EmailLog.objects.using(using).filter(
            failure_kind=kind,
            finished_at__isnull=True,
            status__in=[Status.RETRYING, Status.UNKNOWN],
        )
        yield _counts_by_status(rows)


def _count_ended(using: str) -> Iterator[_Counts]:
    start = clock.now(-timedelta(hours=RECENT_HOURS))
    for kind in ("", *Kind):  # the index begins with it
        rows = EmailLog.objects.using(using).filter(
            failure_kind=kind, finished_at__gt=start, status__in=lifecycle.FINAL
        )
        yield _counts_by_status(rows)


def _counts_by_status(rows: EmailQuerySet) -> _Counts:
    counted = rows.order_by().values_list("queue", "status").annotate(count=Count("pk"))
    return {(queue, state): count for queue, state, count in counted}


def _complete(counts: dict[str, Any], now: datetime) -> None:
    """Derive what need not be counted. The counts are of moments that follow one another."""
    counts["oldest due age"] = age(counts["oldest due"], now)
    if counts["in flight"]:
        counts[Status.SENDING.value] = counts["in flight"]
    queued = counts["waiting"] - counts.get(Status.RETRYING, 0)
    if queued > 0:
        counts[Status.QUEUED.value] = queued
