"""Decides whether mail flows, from a few measurements that are cheap to take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import router
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from django_epica_mail import clock, conf
from django_epica_mail.conf import Settings
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailTotal
from django_epica_mail.models.bounds import total
from django_epica_mail.monitoring import backlog, reputation, totals
from django_epica_mail.monitoring.reputation import Rate
from django_epica_mail.transports import config as transports

MOST_SLOWED = 1_000
"""How far the mail that waits for slowed domains is counted."""

FEWEST_FAILED = 10
"""With fewer failed mails than this, the share of failures is ignored."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    """For machines: ``backlog``, ``worker``, ``beat``, ``breaker``, ``failures`` or
    ``reputation``."""
    is_well: bool
    text: str
    """What was found, for people."""
    value: float | None = None
    """The measured value, if it is a number."""
    limit: float | None = None
    """The highest value with which the check passes."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The results of all checks."""

    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """Whether mail flows: every check passes."""
        return all(check.is_well for check in self.checks)


def examine() -> HealthReport:
    """Return the health of the queue now; raises the database's errors."""
    return judge(measure(), conf.get())


def worker() -> Check:
    """Return whether workers are running, judged by what they did; raises the database's errors.

    For a site whose workers cannot be asked, because their remote control is off.
    """
    return _worker(measure(), conf.get())


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What the checks are based on, measured without counting mail."""

    due_ages: Mapping[tuple[str, str], float]
    """For how many seconds the oldest due mail has been due, by queue and transport; without mail
    that waits for the turn of a slowed domain."""
    claimable: Collection[tuple[str, str]]
    """The keys of ``due_ages`` from which a worker would claim now, ignoring rate limits."""
    paused: Sequence[str]
    """The paused queues and transports, as ``queue emails``."""
    out_of_order: Sequence[str]
    """The transports whose breaker is open or half-open."""
    first_mail_age: float | None
    """Seconds since the oldest mail was queued."""
    last_sweep_age: float | None
    """Seconds since the last sweep."""
    last_attempt_age: float | None
    """Seconds since a worker last recorded an attempt."""
    is_at_work: bool
    """Whether a worker holds mail under a lease that has not ended."""
    sent: int
    """Mails accepted in this hour and the previous one, as far as the totals are counted."""
    failed: int
    """Mails failed in the same two hours."""
    rates: Sequence[Rate]
    """Bounce and complaint rates by category and sender's domain, the worst first."""
    slowed_due: int = 0
    """How many due mails wait for the turn of a slowed domain; one more than ``MOST_SLOWED`` stands
    for any number above it."""
    slowed_due_age: float | None = None
    """For how many seconds the oldest of them has been due."""


def measure(slowed: SlowedDomains | None = None) -> Measurements:
    """Return the measurements, at a cost that does not grow with the number of mails.

    ``slowed`` are the slowed domains, if they are known already.
    """
    using = router.db_for_write(EmailLog)
    slowed = slowed or SlowedDomains(using)
    moment, first = backlog.clock_and_first_mail(using)
    ages = backlog.due_ages(using, moment, slowed)
    state = gates.Gates(using)
    working = set(state.open_transports(transports.aliases())) - set(state.out_of_order())
    latest = clock.now(clock.SET_BACK)  # what is further ahead is no sign of life
    attempts = DeliveryAttempt.objects.using(using).filter(created_at__lte=latest)
    last_attempt = attempts.order_by("-pk").values_list("created_at", flat=True).first()
    longest = conf.get().lease_seconds + clock.SET_BACK
    leased = EmailLog.objects.using(using).filter(
        lease_until__gt=clock.now(), lease_until__lte=clock.now(longest)
    )
    ended = _count_recently_ended(using, moment)
    slowed_due, slowed_due_age = backlog.slowed_due(using, moment, slowed, MOST_SLOWED)
    return Measurements(
        due_ages=ages,
        claimable={
            (queue, alias)
            for queue, alias in ages
            if state.queue_is_open(queue) and alias in working
        },
        paused=state.paused(),
        out_of_order=state.out_of_order(),
        first_mail_age=backlog.age(first, moment),
        last_sweep_age=backlog.age(backlog.last_sweep(using), moment),
        last_attempt_age=backlog.age(last_attempt, moment),
        is_at_work=leased.filter(status=Status.SENDING).exists(),
        sent=ended.get(Status.SENT, 0),
        failed=ended.get(Status.FAILED, 0),
        rates=reputation.rates(using),
        slowed_due=slowed_due,
        slowed_due_age=slowed_due_age,
    )


def _count_recently_ended(using: str, moment: datetime) -> dict[str, int]:
    rows = EmailTotal.objects.using(using).filter(
        hour__gte=totals.hour_of(moment) - totals.HOUR, event__in=[Status.SENT, Status.FAILED]
    )
    return dict(rows.order_by().values_list("event").annotate(number=total("count")))


def judge(measured: Measurements, settings: Settings) -> HealthReport:
    """Return the results of all checks, by the limits in the site's settings."""
    return HealthReport(
        (
            _backlog(measured, settings.health_oldest_due),
            _worker(measured, settings),
            _beat(measured, settings.health_last_sweep),
            _breaker(measured),
            _failures(measured, settings.health_failed_share),
            _reputation(measured, settings.complaint_rates[1]),
        )
    )


def _backlog(measured: Measurements, limit: float) -> Check:
    """Check for how long the oldest mail has been due.

    Ignores paused queues and transports, where mail waits on purpose, and transports out of order,
    which the breaker's check reports. Mail that waits for slowed domains is named beside it.
    """
    ages = {
        (queue, alias): age
        for (queue, alias), age in measured.due_ages.items()
        if not {f"queue {queue}", f"transport {alias}"} & set(measured.paused)
        and alias not in measured.out_of_order
    }
    if not ages:
        text = _("No mail is due, except mail that is held back.")
        text = text if measured.due_ages else _("No mail is waiting to be sent.")
        return Check("backlog", True, _slowed(measured) or text, 0, limit)
    (queue, alias), age = max(ages.items(), key=lambda item: item[1])
    text = _(
        "The oldest due mail (queue %(queue)s, transport %(transport)s) has waited for %(age)s."
    )
    about = {"queue": queue, "transport": alias, "age": spoken(age)}
    text = " ".join(filter(None, (text % about, _slowed(measured))))
    return Check("backlog", age <= limit, text, age, limit)


def _slowed(measured: Measurements) -> str:
    """Return how much mail waits for slowed domains, and for how long; empty if none does."""
    count = measured.slowed_due
    number = number_format(min(count, MOST_SLOWED), force_grouping=True)
    text = ngettext(
        "%(number)s mail waits for the turn of a slowed domain, for %(age)s.",
        "%(number)s mails wait for the turns of slowed domains, the oldest for %(age)s.",
        count,
    )
    about = {
        "number": f"{number}+" if count > MOST_SLOWED else number,
        "age": spoken(measured.slowed_due_age or 0.0),
    }
    return text % about if count else ""


def _worker(measured: Measurements, settings: Settings) -> Check:
    """Check whether workers are running: if they are, due mail is claimed.

    Ignores mail with a rate limit, which waits for its budget. Workers are not asked, because that
    takes seconds.
    """
    limit = settings.health_no_worker
    limited = settings.rates.keys()
    ages = [
        age
        for (queue, alias), age in measured.due_ages.items()
        if (queue, alias) in measured.claimable and not {alias, "*"} & limited
    ]
    waits = max(ages, default=0.0)
    idle = measured.last_attempt_age
    is_idle = not measured.is_at_work and (idle is None or idle > limit)
    if is_idle and waits > limit:
        text = _("No worker seems to be running: mail is due, but none was attempted for %(age)s.")
        return Check(
            "worker", False, text % {"age": spoken(min(idle or waits, waits))}, waits, limit
        )
    if measured.is_at_work:
        text = _("A worker is sending.")
    elif idle is None:
        text = _("No worker has had anything to do.")
    else:
        text = _("The last attempt was %(age)s ago.") % {"age": spoken(idle)}
    return Check("worker", True, text, 0.0 if measured.is_at_work else idle, limit)


def _beat(measured: Measurements, limit: float) -> Check:
    age = measured.last_sweep_age
    if age is None:
        is_well = measured.first_mail_age is None or measured.first_mail_age <= limit
        return Check("beat", is_well, _("There has been no sweep yet."), None, limit)
    text = _("The last sweep was %(age)s ago.") % {"age": spoken(age)}
    return Check("beat", age <= limit, text, age, limit)


def _breaker(measured: Measurements) -> Check:
    count = len(measured.out_of_order)
    if not count:
        return Check("breaker", True, _("No transport is out of order."), 0, 0)
    text = ngettext(
        "This transport is out of order: %(names)s.",
        "These transports are out of order: %(names)s.",
        count,
    )
    return Check("breaker", False, text % {"names": ", ".join(measured.out_of_order)}, count, 0)


def _failures(measured: Measurements, limit: float) -> Check:
    ended = measured.sent + measured.failed
    share = round(measured.failed / ended, 4) if ended else 0.0
    text = _("%(failed)d of the last %(ended)d mails failed.")
    is_well = measured.failed < FEWEST_FAILED or share <= limit
    about = {"ended": ended, "failed": measured.failed}
    return Check("failures", is_well, text % about, share, limit)


def _reputation(measured: Measurements, limit: float) -> Check:
    """Check the bounce and complaint rates; the value is the highest complaint rate that counts."""
    level = reputation.worst(measured.rates)
    bad = [it for it in measured.rates if it.level == level]
    highest = max((it.complaint_rate for it in bad), default=0.0)
    if level == reputation.LEVELS[0]:
        text = _("Bounce and complaint rates are low.")
        return Check("reputation", True, text, round(highest, 5), limit)
    text = _(
        "Mail of the category %(category)s from %(domain)s: %(complaints)s %% complaints and "
        "%(bounces)s %% bounces among %(mails)d mails."
    )
    about = {
        "category": bad[0].category or "—",
        "domain": bad[0].domain,
        "complaints": number_format(bad[0].complaint_percent, 2),
        "bounces": number_format(bad[0].bounce_percent, 2),
        "mails": bad[0].mails,
    }
    is_well = level != reputation.LEVELS[-1]
    return Check("reputation", is_well, text % about, round(highest, 5), limit)


def spoken(seconds: float) -> str:
    """Return a duration for people, in the unit that gives it one to three digits.

    Raises ``ValueError`` for NaN and infinity.
    """
    if seconds < 1:
        return _("%(number)d ms") % {"number": round(seconds * 1000)}
    for limit, size, unit in _units():
        if seconds < limit:
            number = seconds / size
            shown = f"{number:.1f}".rstrip("0").rstrip(".") if number < 10 else f"{number:.0f}"
            return f"{number_format(shown)} {unit}"
    raise ValueError(f"{seconds!r} is not a number of seconds.")


def _units() -> Iterator[tuple[float, int, str]]:
    yield 120, 1, pgettext("unit", "s")
    yield 7200, 60, pgettext("unit", "min")
    yield 2 * 86_400, 3600, pgettext("unit", "h")
    yield float("inf"), 86_400, pgettext("unit", "days")
