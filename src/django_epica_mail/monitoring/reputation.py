"""Bounce and complaint rates by category and sender's domain, and the pause that follows.

The sweep counts each mail on the day on which it was accepted, and each bounce and complaint to the
day of its mail, once for each mail: a rate is the share of the mail of those days. Everything that
shows or judges a rate calls ``rates``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache

from django.db.models import Exists, OuterRef, Q
from django.utils.timezone import now

from django_epica_mail import clock, conf, signals
from django_epica_mail.conf import Settings
from django_epica_mail.delivery import gates
from django_epica_mail.lifecycle import Status
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import DeliveryGate, EmailEvent, ReputationDay
from django_epica_mail.models.bounds import MOST_BIG, increased, total
from django_epica_mail.retry import Kind
from django_epica_mail.tracking import events

logger = logging.getLogger(__name__)

FEWEST_MAILS, FEWEST_REPORTS = 100, 3
"""With fewer mails, or fewer bounces or complaints among them, a rate is not judged."""

_COME_BACK = (
    events.Kind.DELIVERED,
    events.Kind.DEFERRED,
    events.Kind.BOUNCED,
    events.Kind.REJECTED,
    events.Kind.COMPLAINED,
)
"""The events by which a provider or a server shows that it reports on mail."""

LEVELS = ("well", "warning", "critical")

Key = tuple[date, str, str]
"""Day, category and sender's domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What became of the mail of one category and sender's domain in some days."""

    category: str
    domain: str
    mails: int
    """How many were accepted, or refused for good."""
    bounced: int
    """How many of them bounced for good."""
    complained: int
    """How many of them were reported as spam."""
    level: str
    """The worse of both rates: ``well``, ``warning`` or ``critical``."""

    @property
    def bounce_rate(self) -> float:
        """The share that bounced, from 0 to 1."""
        return min(1.0, self.bounced / self.mails) if self.mails else 0.0

    @property
    def complaint_rate(self) -> float:
        """The share that was reported as spam, from 0 to 1."""
        return min(1.0, self.complained / self.mails) if self.mails else 0.0

    @property
    def bounce_percent(self) -> float:
        """The bounce rate in percent."""
        return self.bounce_rate * 100

    @property
    def complaint_percent(self) -> float:
        """The complaint rate in percent."""
        return self.complaint_rate * 100

    @property
    def words(self) -> str:
        """The rates in English, as in ``news from example.com: 0.42 % complaints, ...``."""
        return (
            f"{self.category or 'no category'} from {self.domain}: {self.complaint_rate:.2%} "
            f"complaints and {self.bounce_rate:.2%} bounces among {self.mails} mails"
        )


def rates(using: str, *, after: date | None = None) -> list[Rate]:
    """Return the rates of the last ``REPUTATION_DAYS`` days, the worst and largest first.

    ``after`` leaves out mail of that day and before.
    """
    settings = conf.get()
    first = _today() - timedelta(days=settings.reputation_days - 1)
    if after is not None:
        first = max(first, after + timedelta(days=1))
    rows = ReputationDay._default_manager.using(using).filter(day__gte=first).order_by()
    summed = rows.values_list("category", "domain").annotate(
        of_mails=total("mails"), of_bounced=total("bounced"), of_complained=total("complained")
    )
    found = [
        Rate(
            category=category,
            domain=domain,
            mails=mails,
            bounced=bounced,
            complained=complained,
            level=level(mails, bounced, complained, settings),
        )
        for category, domain, mails, bounced, complained in summed
    ]
    return sorted(found, key=lambda it: (-LEVELS.index(it.level), -it.mails, it.category))


def level(mails: int, bounced: int, complained: int, settings: Settings) -> str:
    """Return the worse level of both rates, by the limits in the site's settings."""
    if mails < FEWEST_MAILS:
        return LEVELS[0]
    reached = 0
    for count, limits in (
        (bounced, settings.bounce_rates),
        (complained, settings.complaint_rates),
    ):
        if count >= FEWEST_REPORTS:
            reached = max(reached, sum(count / mails >= limit for limit in limits))
    return LEVELS[reached]


def hears_of_mail(using: str) -> bool:
    """Return whether anything that counts has come back in the last ``REPUTATION_DAYS`` days."""
    start = now() + clock.offset - timedelta(days=conf.get().reputation_days)
    found = EmailEvent.objects.using(using).filter(kind__in=_COME_BACK, at__gte=start)
    return found.exclude(reason=events.UNAUTHENTICATED).exists()


def guard(using: str) -> list[str]:
    """Pause bulk mail of categories whose rates are critical; return those paused now.

    Only by ``PAUSE_ON_REPUTATION``, and never ``TRANSACTIONAL`` mail or mail without a category. A
    person resumes it; afterwards only mail of later days can pause it again.
    """
    settings = conf.get()
    if not settings.pause_on_reputation:
        return []
    bad = {it.category for it in rates(using) if it.level == LEVELS[-1]}
    bad -= {"", *settings.transactional}
    rows = DeliveryGate.objects.using(using).filter(scope=DeliveryGate.Scope.CATEGORY)
    known = {gate.name: gate for gate in rows.filter(name__in=bad)}
    paused = []
    for category in sorted(bad):
        gate = known.get(category)
        if gate is not None and gate.paused:
            continue
        after = gate.resumed_at.date() if gate is not None and gate.resumed_at else None
        worst = next(
            (
                it
                for it in rates(using, after=after)
                if (it.category, it.level) == (category, LEVELS[-1])
            ),
            None,
        )
        if worst is not None:
            _pause(category, worst.words, using)
            paused.append(category)
    return paused


def _pause(category: str, words: str, using: str) -> None:
    gates.set_paused(True, category=category, using=using, note=words)
    logger.error(
        "Bulk mail of the category %s is paused until a person resumes it: %s.", category, words
    )
    signals.category_paused.send_robust(DeliveryGate, category=category, reason=words)


def key(finished: datetime, category: str, from_email: str) -> Key:
    """Return what a finished mail counts for."""
    return finished.astimezone(timezone.utc).date(), category, _domain(from_email)


def is_counted(status: str, failure_kind: str) -> bool:
    """Return whether a finished mail counts: a server accepted it, or refused it for good."""
    return status == Status.SENT or (status == Status.FAILED and failure_kind == Kind.PERMANENT)


def add(mails: Counter[Key], start: datetime, end: datetime, using: str) -> None:
    """Add mails, and the reports recorded in a window, to their days.

    Call it in the transaction that moves the counting mark, so that everything counts once.
    """
    rows = ReputationDay._default_manager.using(using)
    for (day, category, domain), number in mails.items():
        row = rows.filter(day=day, category=category, domain=domain)
        if not row.update(mails=increased("mails", number, MOST_BIG)):
            rows.create(day=day, category=category, domain=domain, mails=number)
    for (column, of), number in Counter(_reports(start, end, using)).items():
        # Mail of a day that was not counted, such as before an upgrade, has no row.
        row = rows.filter(day=of[0], category=of[1], domain=of[2])
        row.update(**{column: increased(column, number, MOST_BIG)})


def _reports(start: datetime, end: datetime, using: str) -> Iterator[tuple[str, Key]]:
    """Yield the column and the key of each bounce and complaint of a window.

    Only the first of its kind for each mail: of several recipients, or from several sources.
    """
    believed = (
        EmailEvent.objects.using(using)
        .filter(
            Q(kind=events.Kind.BOUNCED, reason=events.PERMANENT) | Q(kind=events.Kind.COMPLAINED)
        )
        .exclude(reason=events.UNAUTHENTICATED)
    )
    earlier = believed.filter(email=OuterRef("email"), kind=OuterRef("kind"), pk__lt=OuterRef("pk"))
    rows = believed.filter(
        ~Exists(earlier),
        pk__gte=clock.lowest_id_at(start),
        pk__lt=clock.lowest_id_at(end),
        email__finished_at__isnull=False,
    )
    found = rows.order_by().values_list(
        "kind", "email__finished_at", "email__category", "email__from_email"
    )
    for kind, finished, category, from_email in found.iterator():
        assert finished is not None  # noqa: S101 - by the query
        yield kind, key(finished, category or "", from_email or "")


def forget_days(kept: timedelta, using: str) -> None:
    """Delete the days that are older than ``kept``."""
    ReputationDay._default_manager.using(using).filter(day__lt=_today() - kept).delete()


def worst(found: Sequence[Rate]) -> str:
    """Return the worst level of several rates."""
    return max((it.level for it in found), key=LEVELS.index, default=LEVELS[0])


def _today() -> date:
    return (now() + clock.offset).astimezone(timezone.utc).date()


@lru_cache(maxsize=1024)
def _domain(from_email: str) -> str:
    return canonical(from_email).rpartition("@")[2][:255]
