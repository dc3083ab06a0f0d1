"""Reports what happened to mail in a period, from the totals: as fast for a million mails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from datetime import timezone as dt_timezone

from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from django_epica_mail import clock
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.models.bounds import total
from django_epica_mail.monitoring import totals

Event = EmailTotal.Event

CHARTED = (Event.SENT, Event.FAILED, Event.RETRIED)
"""The events that are counted for each slot."""
MOST_REASONS = 10
"""How many reasons for failure are reported."""
_RATE_SECONDS = 60
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Period:
    """A time span divided into slots: hours, of which the last is this one, or whole days."""

    label: str | Promise
    slots: int
    is_by_day: bool


PERIODS: Mapping[str, Period] = {
    "24h": Period(_("24 hours"), 24, is_by_day=False),
    "7d": Period(_("7 whole days"), 7, is_by_day=True),
    "30d": Period(_("30 whole days"), 30, is_by_day=True),
    "90d": Period(_("90 whole days"), 90, is_by_day=True),
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
    earlier: WeekBefore | None = None
    """The same hour or weekday a week before; ``None`` if totals do not reach back so far."""


@dataclass(slots=True)
class WeekBefore:
    """What happened in the same hour or weekday a week before a slot."""

    counts: Counter[str] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which mail failed, and the number of mails."""

    kind: str
    code: int
    count: int


@dataclass(frozen=True, slots=True)
class History:
    """What happened in a period."""

    start: datetime
    end: datetime
    """When the first slot begins, and the last one ends."""
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
    slots, end = _slots(period)
    start = slots[0].start
    flow = {name: value for name, value in (("queue", queue), ("transport", transport)) if value}
    rows = EmailTotal.objects.using(using).filter(**flow, hour__lt=end).order_by()
    within = rows.filter(hour__gte=start)
    # Leaves out the totals of all time.
    known = rows.filter(hour__gte=start - _WEEK - timedelta(days=1))
    places = _places(slots, _first_hour(using))
    charted = known.filter(event__in=CHARTED).values_list("hour", "event")
    for hour, event, number in charted.annotate(number=total("count")):
        for place in places.get(_start_of(hour, period), ()):
            place.counts[event] += number
    times: dict[tuple[str, str], list[int]] = {}
    sent = known.filter(event=Event.SENT).values_list("hour", "queue", "transport", "buckets")
    for hour, name, alias, buckets in sent:
        if hour >= start:
            so_far = times.get((name, alias), [])
            times[name, alias] = totals.sum_buckets(Event.SENT, [so_far, buckets])
        for place in places.get(_start_of(hour, period), ()):
            place.buckets = totals.sum_buckets(Event.SENT, [place.buckets, buckets])
    failed = within.filter(event=Event.FAILED).values_list("failure_kind", "failure_code")
    reasons = failed.annotate(number=total("count")).order_by("-number")[:MOST_REASONS]
    return History(start, end, slots, [Reason(*reason) for reason in reasons], times)


def _places(
    slots: Sequence[Slot], first: datetime | None
) -> dict[datetime, list[Slot | WeekBefore]]:
    """Return where the totals of an hour or day belong, by its start in UTC.

    In a long period a day belongs to its own slot, and is the week before of another. In UTC,
    because Python holds a time that a change of clocks repeats equal to none of another zone.
    """
    places: dict[datetime, list[Slot | WeekBefore]] = {_utc(slot.start): [slot] for slot in slots}
    for slot in slots:
        naive = slot.start.replace(tzinfo=None) - _WEEK  # the same time of day, by the clock
        before = timezone.make_aware(naive)
        if first is not None and first <= before:
            slot.earlier = WeekBefore()
            places.setdefault(_utc(before), []).append(slot.earlier)
    return places


def _first_hour(using: str) -> datetime | None:
    """Return the first hour of which there are totals."""
    hours = EmailTotal.objects.using(using).filter(hour__gt=totals.ALL_TIME).order_by("hour")
    return hours.values_list("hour", flat=True).first()


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


def _slots(period: Period) -> tuple[list[Slot], datetime]:
    """Return the empty slots of a period, and when the last one ends.

    The last hour is this one, the last day is yesterday: part of a day beside whole ones would
    look like a fall.
    """
    now = timezone.now() + clock.offset
    if not period.is_by_day:
        last = totals.hour_of(now)
        starts = [last - index * totals.HOUR for index in reversed(range(period.slots))]
        return [Slot(timezone.localtime(start)) for start in starts], last + totals.HOUR
    today = timezone.localtime(now).date()
    days = [today - timedelta(days=index) for index in range(period.slots, -1, -1)]
    midnights = [timezone.make_aware(datetime.combine(day, time.min)) for day in days]
    return [Slot(midnight) for midnight in midnights[:-1]], midnights[-1]


def _start_of(hour: datetime, period: Period) -> datetime:
    """Return the start, in UTC, of the slot that contains an hour."""
    if not period.is_by_day:
        return _utc(hour)
    day = timezone.localtime(hour).date()
    return _utc(timezone.make_aware(datetime.combine(day, time.min)))


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(dt_timezone.utc)
