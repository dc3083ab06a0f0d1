"""How the queue stands, in numbers that cost little however many rows there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import router
from django.db.models import Count

from django_epica_mail import backlog, clock, gates, lifecycle, maintenance
from django_epica_mail.backlog import Backlog
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind

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
    now, _ = backlog.clock_and_first_mail(using)
    report = {queue: _empty() for queue in maintenance.queues(using)}
    for found in backlog.backlogs(using, now):
        _add(found, report.setdefault(found.queue, _empty()))
    for rows in (*_between_tries(using), *_ended(using)):
        for (queue, state), count in rows.items():
            counts = report[queue]
            counts[state] = counts.get(state, 0) + count
    for counts in report.values():
        _complete(counts, now)
    sweep = backlog.last_sweep(using)
    batches = EmailBatch.objects.using(using).filter(finished_at=None)
    return {
        "queues": report,
        "hours": RECENT_HOURS,
        "unfinished batches": batches.count(),
        "last sweep": sweep,
        "last sweep age": backlog.age(sweep, now),
        "held back": gates.Gates(using).reasons(),
    }


def _empty() -> dict[str, Any]:
    return {"waiting": 0, "due": 0, "in flight": 0, "oldest due": None, "oldest due age": None}


def _add(found: Backlog, counts: dict[str, Any]) -> None:
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
        yield _counted(rows)


def _ended(using: str) -> Iterator[_Counts]:
    start = clock.now(-timedelta(hours=RECENT_HOURS))
    for kind in ("", *Kind):  # the index begins with it
        rows = EmailLog.objects.using(using).filter(
            failure_kind=kind, finished_at__gt=start, status__in=lifecycle.FINAL
        )
        yield _counted(rows)


def _counted(rows: EmailQuerySet) -> _Counts:
    counted = rows.order_by().values_list("queue", "status").annotate(count=Count("pk"))
    return {(queue, state): count for queue, state, count in counted}


def _complete(counts: dict[str, Any], now: datetime) -> None:
    """Derive what need not be counted. The counts are of moments that follow one another."""
    counts["oldest due age"] = backlog.age(counts["oldest due"], now)
    if counts["in flight"]:
        counts[Status.SENDING.value] = counts["in flight"]
    queued = counts["waiting"] - counts.get(Status.RETRYING, 0)
    if queued > 0:
        counts[Status.QUEUED.value] = queued
