"""The backlog: what waits in each queue for each transport, and the report of all queues.

Everything is read by look-ups in the claim's index, so the cost does not grow with the number of
finished e-mails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import router
from django.db.models import Count, Max, Min, QuerySet
from django.utils import timezone

from django_epica_mail import clock, lifecycle
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits.slowed_domains import Slowed, SlowedDomains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog, EmailQuerySet
from django_epica_mail.monitoring.reputation import Rate, rates
from django_epica_mail.queueing import dequeue
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS

RECENT_HOURS = 24
"""How far back the report counts finished e-mails."""

_LONGEST_LEASE = timedelta(days=365)
_WINDOW = 500
"""How many due e-mails are looked at for the first that waits for no slowed domain."""
_AGES = (86_400, 3_600, 600, 240)
"""The ages, in seconds, from which on it is looked for if the oldest e-mails all wait for one."""
_Counts = Mapping[tuple[str, str], int]
"""The number of e-mails by queue and status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits and what is in flight in one queue for one transport."""

    queue: str
    transport: str
    waiting: int
    """How many e-mails can be claimed, now or later."""
    due: int
    """How many of these can be claimed now."""
    oldest_due: datetime | None
    """When the oldest of these became due that waits for no slowed domain."""
    oldest_due_age: float | None
    """How many seconds ago that was."""
    in_flight: int
    """How many e-mails workers hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowedBacklog:
    """A slowed domain, and the due e-mails that wait for its turns."""

    slowed: Slowed
    due: int
    """How many e-mails wait."""
    oldest_due: datetime | None
    """When the oldest of these became due."""
    oldest_due_age: float | None
    """How many seconds ago that was."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        names = ("due", "oldest_due", "oldest_due_age")
        return {**self.slowed.as_dict(), **{name: getattr(self, name) for name in names}}


@dataclass(slots=True, kw_only=True)
class QueueStatus:
    """What waits, is in flight and recently finished in one queue."""

    waiting: int = 0
    """How many e-mails can be claimed, now or later."""
    due: int = 0
    """How many of these can be claimed now."""
    in_flight: int = 0
    """How many e-mails workers hold."""
    oldest_due: datetime | None = None
    """When the oldest due e-mail became due that waits for no slowed domain."""
    oldest_due_age: float | None = None
    """How many seconds ago that was."""
    by_status: dict[str, int] = field(default_factory=dict)
    """Counts by status; a final status counts the last ``RECENT_HOURS`` hours."""

    def as_dict(self) -> dict[str, Any]:
        """Return the status as JSON has it: the counts by status next to the other fields."""
        values = asdict(self)
        counts = values.pop("by_status")
        return {**values, **counts}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """The status of every queue, and what holds mail back."""

    queues: dict[str, QueueStatus]
    hours: int
    """How far back finished e-mails are counted."""
    unfinished_batches: int
    """Bulk calls that no worker has fully expanded yet."""
    set_apart: int
    """E-mails that ended their worker twice in a row, and wait for a decision."""
    last_sweep: datetime | None
    last_sweep_age: float | None
    """Seconds since the last sweep."""
    held_back: dict[str, str]
    """The closed gates, as in ``queue emails``, with the reason."""
    slowed_domains: list[dict[str, Any]]
    """The recipients' domains that get mail more slowly, as ``SlowedBacklog`` says."""
    reputation: list[Rate]
    """Bounce and complaint rates by category and sender's domain, the worst first."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "queues"}
        values["reputation"] = [asdict(rate) for rate in self.reputation]
        return {"queues": {name: it.as_dict() for name, it in self.queues.items()}, **values}


def status() -> StatusReport:
    """Return the status of every queue, and what holds mail back."""
    using = router.db_for_write(EmailLog)
    now, _ = clock_and_first_mail(using)
    slowed = SlowedDomains(using)
    report = {queue: QueueStatus() for queue in dequeue.queues(using)}
    for found in backlogs(using, now, slowed):
        _add_backlog(found, report.setdefault(found.queue, QueueStatus()))
    for rows in (*_count_between_attempts(using), *_count_ended(using)):
        for (queue, state), count in rows.items():
            counts = report.setdefault(queue, QueueStatus()).by_status
            counts[state] = counts.get(state, 0) + count
    for it in report.values():
        _complete(it, now)
    sweep = last_sweep(using)
    return StatusReport(
        queues=report,
        hours=RECENT_HOURS,
        unfinished_batches=EmailBatch.objects.using(using).filter(finished_at=None).count(),
        set_apart=EmailLog.objects.using(using)
        .filter(failure_kind=Kind.POISON, finished_at=None, status=Status.UNKNOWN)
        .count(),
        last_sweep=sweep,
        last_sweep_age=age(sweep, now),
        held_back=gates.Gates(using).reasons(),
        slowed_domains=[it.as_dict() for it in slowed_backlogs(using, now, slowed)],
        reputation=rates(using),
    )


def backlogs(using: str, moment: datetime, slowed: SlowedDomains) -> list[Backlog]:
    """Return the backlog of each queue and transport; ages are relative to ``moment``."""
    held = _in_flight(using)
    found = {
        key: _count_backlog(*key, levels, held[key], moment, using, slowed.of(key[1]))
        for key, levels in _by_queue_and_transport(using)
    }
    found |= {
        (queue, alias): _count_backlog(queue, alias, [], number, moment, using)
        for (queue, alias), number in held.items()
        if (queue, alias) not in found
    }
    return [found[key] for key in sorted(found)]


def slowed_backlogs(using: str, moment: datetime, slowed: SlowedDomains) -> list[SlowedBacklog]:
    """Return the slowed domains and what waits for each; ages are relative to ``moment``."""
    if not (found := slowed.found):
        return []
    domains, aliases = ({it.row.domain for it in found}, {it.row.transport for it in found})
    rows = EmailLog.objects.using(using).due_to(domains, aliases)
    counted = rows.order_by().values_list("transport", "domain")
    waits = {
        (alias, domain): (number, oldest)
        for alias, domain, number, oldest in counted.annotate(n=Count("pk"), oldest=Min("due_at"))
    }
    report = []
    for it in found:
        number, oldest = waits.get(it.key, (0, None))
        report.append(
            SlowedBacklog(
                slowed=it, due=number, oldest_due=oldest, oldest_due_age=age(oldest, moment)
            )
        )
    return report


def waiting(using: str) -> Iterator[tuple[str, str]]:
    """Yield each queue and transport for which mail waits."""
    for key, _ in _by_queue_and_transport(using):
        yield key


def due_ages(using: str, moment: datetime, slowed: SlowedDomains) -> dict[tuple[str, str], float]:
    """Return for how many seconds the oldest due mail of each queue and transport has been due.

    Ignores mail of paused categories, and mail that waits for the turn of a slowed domain. Behind
    hundreds of the latter, the age may be that of a younger e-mail.
    """
    held = dequeue.HeldBack(gates.Gates(using).held_categories())
    found = {}
    for (queue, alias), levels in _by_queue_and_transport(using):
        due = _due(queue, alias, levels, using, held)
        found[queue, alias] = age(_oldest(due, slowed.of(alias), moment), moment)
    return {key: seconds for key, seconds in found.items() if seconds is not None}


def slowed_due(
    using: str, moment: datetime, slowed: SlowedDomains, most: int
) -> tuple[int, float | None]:
    """Return how many due e-mails wait for the turn of a slowed domain, and the oldest's age.

    Counts no further than one more than ``most``; the age is in seconds, ``None`` if none waits.
    """
    count, ages = 0, []
    for (queue, alias), levels in _by_queue_and_transport(using) if slowed.found else ():
        domains = slowed.of(alias)
        for rows in _due(queue, alias, levels if domains else [], using):
            kept = rows.filter(domain__in=domains)
            count += len(kept.order_by().values_list("pk")[: most + 1 - count])
            heads = rows.values_list("due_at", "domain")[:_WINDOW]
            ages += [age(at, moment) for at, domain in heads if domain in domains][:1]
    return count, max(filter(None, ages), default=0.0 if count else None)


def clock_and_first_mail(using: str) -> tuple[datetime, datetime | None]:
    """Return the database's time, and when the first e-mail was queued.

    Without any e-mail the time is that of this host.
    """
    rows = EmailLog.objects.using(using).order_by("pk").annotate(now=clock.now())  # also by time
    return rows.values_list("now", "created_at").first() or (timezone.now(), None)


def last_sweep(using: str) -> datetime | None:
    """Return when the last sweep ran while there was mail; ``None`` if none has."""
    at: datetime | None = swept(using).aggregate(at=Max("last_sweep_at"))["at"]
    return at


def swept(using: str) -> QuerySet[DeliveryGate]:
    """Return the queues that were swept; not those whose time is one of the future."""
    return DeliveryGate.objects.using(using).filter(last_sweep_at__lte=clock.now(clock.SET_BACK))


def age(at: datetime | None, moment: datetime) -> float | None:
    """Return the seconds from ``at`` to ``moment``, at least 0; ``None`` if ``at`` is ``None``."""
    return None if at is None else round(max(0.0, (moment - at).total_seconds()), 1)


def _count_backlog(
    queue: str,
    alias: str,
    levels: list[int],
    in_flight: int,
    moment: datetime,
    using: str,
    slowed: frozenset[str] = frozenset(),
) -> Backlog:
    rows = EmailLog.objects.using(using).filter(queue=queue, transport=alias)
    due = _due(queue, alias, levels, using)
    oldest = _oldest(due, slowed, moment)
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
    """Yield each queue and transport for which mail waits, with the priorities it has."""
    for queue in dequeue.queues(using):
        for alias in EmailLog.objects.using(using).names("transport", queue=queue):
            if levels := list(dequeue.due_levels(queue, alias, using)):
                yield (queue, alias), levels


def _due(
    queue: str,
    alias: str,
    levels: Iterable[int],
    using: str,
    held: dequeue.HeldBack = dequeue.NOTHING,
) -> list[EmailQuerySet]:
    return [dequeue.due(queue, alias, level, using, held) for level in levels]


def _oldest(
    levels: Iterable[EmailQuerySet], slowed: frozenset[str], moment: datetime
) -> datetime | None:
    """Return when the oldest e-mail became due that waits for none of the ``slowed`` domains.

    Each of ``levels`` is in claim order.
    """
    firsts = [_first(rows, slowed, moment) for rows in levels]
    return min(filter(None, firsts), default=None)


def _first(rows: EmailQuerySet, slowed: frozenset[str], moment: datetime) -> datetime | None:
    if not slowed:
        return rows.values_list("due_at", flat=True).first()
    for since in (None, *(moment - timedelta(seconds=it) for it in _AGES)):
        part = rows if since is None else rows.filter(due_at__gte=since)
        heads = list(part.values_list("due_at", "domain")[:_WINDOW])
        for at, domain in heads:
            if domain not in slowed:
                return at
        if len(heads) < _WINDOW:
            break
    return None


def _in_flight(using: str) -> Counter[tuple[str, str]]:
    # A range, because SQLite scans the table for "IS NOT NULL". Counted here, because SQLite would
    # also scan the table to group them; workers hold a bounded number.
    leased = EmailLog.objects.using(using).filter(
        lease_until__gt=clock.now(-_LONGEST_LEASE), status=Status.SENDING
    )
    return Counter(leased.values_list("queue", "transport"))


def _add_backlog(found: Backlog, total: QueueStatus) -> None:
    total.waiting += found.waiting
    total.due += found.due
    total.in_flight += found.in_flight
    total.oldest_due = min(filter(None, (total.oldest_due, found.oldest_due)), default=None)


def _count_between_attempts(using: str) -> Iterator[_Counts]:
    """Count the e-mails that were tried, are not finished, and are not being sent."""
    for kind in Kind:
        rows = EmailLog.objects.using(using).filter(
            failure_kind=kind,
            finished_at__isnull=True,
            status__in=[Status.RETRYING, Status.UNKNOWN],
        )
        yield _counts_by_status(rows)


def _count_ended(using: str) -> Iterator[_Counts]:
    start = clock.now(-timedelta(hours=RECENT_HOURS))
    for kind in ("", *Kind):  # the first column of the index
        rows = EmailLog.objects.using(using).filter(
            failure_kind=kind, finished_at__gt=start, status__in=lifecycle.FINAL
        )
        yield _counts_by_status(rows)


def _counts_by_status(rows: EmailQuerySet) -> _Counts:
    counted = rows.order_by().values_list("queue", "status").annotate(count=Count("pk"))
    return {(queue, state): count for queue, state, count in counted}


def _complete(total: QueueStatus, now: datetime) -> None:
    """Derive what needs no query. The counts were taken one after another, not at one moment."""
    total.oldest_due_age = age(total.oldest_due, now)
    if total.in_flight:
        total.by_status[Status.SENDING.value] = total.in_flight
    queued = total.waiting - total.by_status.get(Status.RETRYING, 0)
    if queued > 0:
        total.by_status[Status.QUEUED.value] = queued
