"""How the queue stands, in numbers that cost little however many rows there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import router
from django.db.models import Count, Max, Min
from django.utils import timezone

from django_epica_mail import claiming, clock, gates, lifecycle, maintenance
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS

_LONGEST_LEASE = timedelta(days=365)

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
    now = _now(using)
    report = {queue: _backlog(queue, using, now) for queue in maintenance.queues(using)}
    for rows in (_in_flight(using), *_between_tries(using), *_ended(using)):
        for (queue, state), count in rows.items():
            counts = report[queue]
            counts[state] = counts.get(state, 0) + count
    for counts in report.values():
        _complete(counts)
    sweep = DeliveryGate.objects.using(using).aggregate(at=Max("last_sweep_at"))["at"]
    batches = EmailBatch.objects.using(using).filter(finished_at=None)
    return {
        "queues": report,
        "hours": RECENT_HOURS,
        "unfinished batches": batches.count(),
        "last sweep": sweep,
        "last sweep age": _age(sweep, now),
        "held back": gates.Gates(using).reasons(),
    }


def waiting(using: str) -> Iterator[tuple[str, str]]:
    """Yield each queue, and each transport that mail waits for in it."""
    for queue in maintenance.queues(using):
        for alias, _ in _levels(queue, using):
            yield queue, alias


def _levels(queue: str, using: str) -> Iterator[tuple[str, list[int]]]:
    """Yield each transport that mail waits for, with the priorities it waits at.

    Hops along the claim's index from one transport to the next.
    """
    alias = ""
    while True:
        rows = EmailLog.objects.using(using).filter(queue=queue, transport__gt=alias)
        following = rows.aggregate(name=Min("transport"))["name"]
        if following is None:
            return
        alias = following
        if levels := list(claiming.due_levels(queue, alias, using)):
            yield alias, levels


def _backlog(queue: str, using: str, now: datetime) -> dict[str, Any]:
    found = dict.fromkeys(("waiting", "due", "in flight"), 0)
    oldest: datetime | None = None
    for alias, levels in _levels(queue, using):
        rows = EmailLog.objects.using(using).filter(queue=queue, transport=alias)
        found["waiting"] += rows.filter(pending__lt=LEVELS.stop).count()
        for level in levels:
            due = claiming.due(queue, alias, level, using)
            found["due"] += due.count()
            first = due.values_list("due_at", flat=True).first()
            oldest = min(filter(None, (oldest, first)), default=None)
    return {**found, "oldest due": oldest, "oldest due age": _age(oldest, now)}


def _in_flight(using: str) -> _Counts:
    # A range, for SQLite looks for what "is not NULL" in all rows; and counted here, for to group
    # them it would too. Workers hold a bounded number.
    leased = EmailLog.objects.using(using).filter(
        lease_until__gt=clock.now(-_LONGEST_LEASE), status=Status.SENDING
    )
    return Counter(leased.values_list("queue", "status"))


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


def _complete(counts: dict[str, Any]) -> None:
    """Derive what need not be counted. The counts are of moments that follow one another."""
    counts["in flight"] = counts.get(Status.SENDING, 0)
    queued = counts["waiting"] - counts.get(Status.RETRYING, 0)
    if queued > 0:
        counts[Status.QUEUED.value] = queued


def _now(using: str) -> datetime:
    """Return the database's time; without mail, whose age it is for, that of this machine."""
    told = EmailLog.objects.using(using).order_by("pk").annotate(now=clock.now())
    now: datetime | None = told.values_list("now", flat=True).first()
    return now or timezone.now()


def _age(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else round(max(0.0, (now - at).total_seconds()), 1)
