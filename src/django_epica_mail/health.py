"""The verdict whether mail flows: decided here alone, from signs of life that cost little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from django_epica_mail import conf
from django_epica_mail.conf import Settings
from django_epica_mail.pulse import Pulse, pulse

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
class Verdict:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """Whether mail flows."""
        return all(check.is_well for check in self.checks)


def examine() -> Verdict:
    """Read the signs of life and judge them; raises what the database raises."""
    return judge(pulse(), conf.get())


def judge(signs: Pulse, settings: Settings) -> Verdict:
    """Return the verdict on signs of life by the site's limits."""
    return Verdict(
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


def _backlog(signs: Pulse, limit: float) -> Check:
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


def _worker(signs: Pulse, settings: Settings) -> Check:
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


def _beat(signs: Pulse, limit: float) -> Check:
    age = signs.last_sweep_age
    if age is None:
        is_well = signs.first_mail_age is None or signs.first_mail_age <= limit
        return Check("beat", is_well, _("There was no sweep yet."), None, limit)
    text = _("The last sweep was %(age)s ago.") % {"age": spoken(age)}
    return Check("beat", age <= limit, text, age, limit)


def _breaker(signs: Pulse) -> Check:
    count = len(signs.out_of_order)
    if not count:
        return Check("breaker", True, _("Every transport is in order."), 0, 0)
    text = ngettext(
        "This transport is out of order: %(names)s.",
        "These transports are out of order: %(names)s.",
        count,
    )
    return Check("breaker", False, text % {"names": ", ".join(signs.out_of_order)}, count, 0)


def _failures(signs: Pulse, limit: float) -> Check:
    ended = signs.sent + signs.failed
    share = round(signs.failed / ended, 4) if ended else 0.0
    text = _("Of the last %(ended)d mails, %(failed)d failed.")
    is_well = signs.failed < FEWEST_FAILED or share <= limit
    about = {"ended": ended, "failed": signs.failed}
    return Check("failures", is_well, text % about, share, limit)
