"""The verdict whether mail flows: decided here alone, from signs of life that cost little."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import router
from django.db.models import Sum
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from django_epica_mail import clock, conf
from django_epica_mail.conf import Settings
from django_epica_mail.delivery import gates
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailTotal
from django_epica_mail.monitoring import backlog, totals
from django_epica_mail.transports import config as transports


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The signs of life of a queue, read without counting any mail."""

    due_ages: Mapping[tuple[str, str], float]
    """For how many seconds the oldest due mail of a queue and transport has been due."""
    claimable: Collection[tuple[str, str]]
    """Of these, the ones from which a worker would claim now, whatever the rates."""
    paused: Sequence[str]
    """The queues and transports that a person has stopped, as ``queue emails``."""
    out_of_order: Sequence[str]
    """The transports whose breaker is open or half-open."""
    first_mail_age: float | None
    """For how many seconds there has been mail."""
    last_sweep_age: float | None
    """Seconds since the last sweep."""
    last_attempt_age: float | None
    """Seconds since a worker last wrote down a try."""
    is_at_work: bool
    """Whether a worker holds mail, by a lease that is not over."""
    sent: int
    """Mails accepted in this hour and the one before, as far as they are counted."""
    failed: int
    """Mails failed in the same time."""


def measure() -> Measurements:
    """Return the signs of life, at a cost that does not grow with the number of mails."""
    using = router.db_for_read(EmailLog)
    moment, first = backlog.clock_and_first_mail(using)
    ages = backlog.due_ages(using, moment)
    state = gates.Gates(using)
    works = set(state.open_transports(transports.aliases())) - set(state.out_of_order())
    attempts = DeliveryAttempt.objects.using(using).order_by("-pk")
    last_attempt = attempts.values_list("created_at", flat=True).first()
    leased = EmailLog.objects.using(using).filter(lease_until__gt=clock.now())
    ended = _ended_lately(using, moment)
    return Measurements(
        due_ages=ages,
        claimable={
            (queue, alias) for queue, alias in ages if state.queue_is_open(queue) and alias in works
        },
        paused=state.paused(),
        out_of_order=state.out_of_order(),
        first_mail_age=backlog.age(first, moment),
        last_sweep_age=backlog.age(backlog.last_sweep(using), moment),
        last_attempt_age=backlog.age(last_attempt, moment),
        is_at_work=leased.filter(status=Status.SENDING).exists(),
        sent=ended.get(Status.SENT, 0),
        failed=ended.get(Status.FAILED, 0),
    )


def _ended_lately(using: str, moment: datetime) -> dict[str, int]:
    rows = EmailTotal.objects.using(using).filter(
        hour__gte=totals.hour_of(moment) - totals.HOUR, event__in=[Status.SENT, Status.FAILED]
    )
    return dict(rows.order_by().values_list("event").annotate(number=Sum("count")))


FEWEST_FAILED = 10
"""Of fewer failed mails than these nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What it is called, for machines: ``backlog``, ``worker``, ``beat``, ``breaker``, ..."""
    is_well: bool
    text: str
    """What was found, for people."""
    value: float | None = None
    """What was measured, if it is a number."""
    limit: float | None = None
    """What it may be at most."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """Whether mail flows."""
        return all(check.is_well for check in self.checks)


def examine() -> HealthReport:
    """Read the signs of life and judge them; raises what the database raises."""
    return judge(measure(), conf.get())


def judge(signs: Measurements, settings: Settings) -> HealthReport:
    """Return the verdict on signs of life by the site's limits."""
    return HealthReport(
        (
            _backlog(signs, settings.health_oldest_due),
            _worker(signs, settings),
            _beat(signs, settings.health_last_sweep),
            _breaker(signs),
            _failures(signs, settings.health_failed_share),
        )
    )


def spoken(seconds: float) -> str:
    """Return a time as people say it, in the unit that gives it one to three digits."""
    if seconds < 1:
        return _("%(number)d ms") % {"number": round(seconds * 1000)}
    for limit, size, unit in _units():
        if seconds < limit:
            number = seconds / size
            shown = f"{number:.1f}".rstrip("0").rstrip(".") if number < 10 else f"{number:.0f}"
            return f"{number_format(shown)} {unit}"
    raise ValueError(f"{seconds!r} is no number of seconds.")


def _units() -> Iterator[tuple[float, int, str]]:
    yield 120, 1, pgettext("unit", "s")
    yield 7200, 60, pgettext("unit", "min")
    yield 2 * 86_400, 3600, pgettext("unit", "h")
    yield float("inf"), 86_400, pgettext("unit", "days")


def _backlog(signs: Measurements, limit: float) -> Check:
    """Judge for how long the oldest mail has been due.

    What a person has stopped waits by intent, and what is out of order is the breaker's.
    """
    ages = {
        (queue, alias): age
        for (queue, alias), age in signs.due_ages.items()
        if not {f"queue {queue}", f"transport {alias}"} & set(signs.paused)
        and alias not in signs.out_of_order
    }
    if not ages:
        text = _("No due mail waits, but for what is held back.")
        text = text if signs.due_ages else _("No mail waits to be sent.")
        return Check("backlog", True, text, 0, limit)
    (queue, alias), age = max(ages.items(), key=lambda item: item[1])
    text = _("The oldest due mail, in the queue %(queue)s for %(transport)s, waits for %(age)s.")
    about = {"queue": queue, "transport": alias, "age": spoken(age)}
    return Check("backlog", age <= limit, text % about, age, limit)


def _worker(signs: Measurements, settings: Settings) -> Check:
    """Judge whether workers do anything: due mail that nobody takes says no.

    Not where a rate is: there mail waits for its budget. And not by asking the workers, which
    takes seconds.
    """
    limit = settings.health_no_worker
    limited = settings.rates.keys()
    ages = [
        age
        for (queue, alias), age in signs.due_ages.items()
        if (queue, alias) in signs.claimable and not {alias, "*"} & limited
    ]
    waits = max(ages, default=0.0)
    idle = signs.last_attempt_age
    is_idle = not signs.is_at_work and (idle is None or idle > limit)
    if is_idle and waits > limit:
        text = _("No worker seems to run: mail is due, and none was tried for %(age)s.")
        return Check(
            "worker", False, text % {"age": spoken(min(idle or waits, waits))}, waits, limit
        )
    if signs.is_at_work:
        text = _("A worker is sending.")
    elif idle is None:
        text = _("No worker has had anything to do.")
    else:
        text = _("The last try was %(age)s ago.") % {"age": spoken(idle)}
    return Check("worker", True, text, 0.0 if signs.is_at_work else idle, limit)


def _beat(signs: Measurements, limit: float) -> Check:
    age = signs.last_sweep_age
    if age is None:
        is_well = signs.first_mail_age is None or signs.first_mail_age <= limit
        return Check("beat", is_well, _("There was no sweep yet."), None, limit)
    text = _("The last sweep was %(age)s ago.") % {"age": spoken(age)}
    return Check("beat", age <= limit, text, age, limit)


def _breaker(signs: Measurements) -> Check:
    count = len(signs.out_of_order)
    if not count:
        return Check("breaker", True, _("Every transport is in order."), 0, 0)
    text = ngettext(
        "This transport is out of order: %(names)s.",
        "These transports are out of order: %(names)s.",
        count,
    )
    return Check("breaker", False, text % {"names": ", ".join(signs.out_of_order)}, count, 0)


def _failures(signs: Measurements, limit: float) -> Check:
    ended = signs.sent + signs.failed
    share = round(signs.failed / ended, 4) if ended else 0.0
    text = _("Of the last %(ended)d mails, %(failed)d failed.")
    is_well = signs.failed < FEWEST_FAILED or share <= limit
    about = {"ended": ended, "failed": signs.failed}
    return Check("failures", is_well, text % about, share, limit)
