"""Reports what happened to mail in a period, from the totals: as fast for a million mails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta

from django.db.models import Q, Sum
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from django_epica_mail import clock
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.monitoring import totals

Event = EmailTotal.Event

CHARTED = (Event.SENT, Event.FAILED, Event.RETRIED)
"""The events that are counted for each slot."""
MOST_REASONS = 10
"""How many reasons for failure are reported."""
_RATE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Period:
    """A time span that ends now, divided into slots of an hour or a day."""

    label: str | Promise
    slots: int
    is_by_day: bool


PERIODS: Mapping[str, Period] = {
    "24h": Period(_("24 hours"), 24, is_by_day=False),
    "7d": Period(_("7 days"), 7, is_by_day=True),
    "30d": Period(_("30 days"), 30, is_by_day=True),
    "90d": Period(_("90 days"), 90, is_by_day=True),
}
"""The periods that can be shown; totals are kept a little longer than the longest."""


@dataclass(slots=True)
class Slot:
    """One hour or day of a period."""

    start: datetime
    """Its start, in the current time zone."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each event happened in it."""
    buckets: list[int] = field(default_factory=list)
    """Delivery times, in the buckets of ``totals.BOUNDS``."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which mail failed, and the number of mails."""

    kind: str
    code: int
    count: int


@dataclass(frozen=True, slots=True)
class History:
    """What happened in a period."""

    slots: Sequence[Slot]
    reasons: Sequence[Reason]
    """Most frequent first."""
    times: Mapping[tuple[str, str], list[int]]
    """Delivery times by queue and transport, in the buckets of ``totals.BOUNDS``."""

    @property
    def counts(self) -> Counter[str]:
        """How often each event happened in the whole period."""
        return sum((slot.counts for slot in self.slots), Counter())


def read(period: Period, using: str, *, queue: str = "", transport: str = "") -> History:
    """Return what happened in a period, in one queue or transport or in all."""
    slots = _slots(period)
    where = Q(hour__gte=slots[0].start)  # leaves out the totals of all time
    if queue:
        where &= Q(queue=queue)
    if transport:
        where &= Q(transport=transport)
    rows = EmailTotal.objects.using(using).filter(where).order_by()
    by_start = {slot.start: slot for slot in slots}
    charted = rows.filter(event__in=CHARTED).values_list("hour", "event")
    for hour, event, number in charted.annotate(number=Sum("count")):
        if (slot := by_start.get(_start_of(hour, period))) is not None:
            slot.counts[event] += number
    times: dict[tuple[str, str], list[int]] = {}
    sent = rows.filter(event=Event.SENT).values_list("hour", "queue", "transport", "buckets")
    for hour, name, alias, buckets in sent:
        times[name, alias] = totals.sum_buckets([times.get((name, alias), []), buckets])
        if (slot := by_start.get(_start_of(hour, period))) is not None:
            slot.buckets = totals.sum_buckets([slot.buckets, buckets])
    failed = rows.filter(event=Event.FAILED).values_list("failure_kind", "failure_code")
    reasons = failed.annotate(number=Sum("count")).order_by("-number")[:MOST_REASONS]
    return History(slots, [Reason(*reason) for reason in reasons], times)


def queues_and_transports(using: str) -> set[tuple[str, str]]:
    """Return every queue and transport for which mail has been counted."""
    rows = EmailTotal.objects.using(using).filter(hour=totals.ALL_TIME)
    return set(rows.order_by().values_list("queue", "transport").distinct())


def sent_in_a_minute(using: str) -> Counter[tuple[str, str]]:
    """Return how many mails were sent in the last minute, by queue and transport."""
    rows = EmailLog.objects.using(using).filter(
        failure_kind="", finished_at__gt=clock.now(-_RATE_SECONDS), status=Status.SENT
    )
    # Counted in Python, because SQLite would scan the whole table to group rows.
    return Counter(rows.order_by().values_list("queue", "transport").iterator())


def _slots(period: Period) -> list[Slot]:
    """Return the empty slots of a period; the last one contains the current time."""
    now = timezone.now() + clock.offset
    if not period.is_by_day:
        last = totals.hour_of(now)
        starts = [last - index * totals.HOUR for index in reversed(range(period.slots))]
        return [Slot(timezone.localtime(start)) for start in starts]
    today = timezone.localtime(now).date()
    days = [today - timedelta(days=index) for index in reversed(range(period.slots))]
    return [Slot(timezone.make_aware(datetime.combine(day, time.min))) for day in days]


def _start_of(hour: datetime, period: Period) -> datetime:
    """Return the start of the slot that contains an hour."""
    if not period.is_by_day:
        return hour
    day = timezone.localtime(hour).date()
    return timezone.make_aware(datetime.combine(day, time.min))
