"""Slows a recipients' domain down when its server complains, to a rate that is found by itself.

Each complaint lowers the rate, and time alone raises it again, along the curve of TCP's CUBIC
(RFC 9438): it soon nears the rate of the last complaint, stays there for long, and then rises ever
faster. So the rate is a function of what the last complaint wrote, and rising costs no write. A
domain that nobody complains about for half an hour is free.

Workers share the rate by reserving turns: an update that only one of them wins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import models

from django_epica_mail import clock, conf, rules
from django_epica_mail.delivery.limits.cached_reading import CachedReading
from django_epica_mail.models import EmailLog, SlowedDomain
from django_epica_mail.replies import without_addresses
from django_epica_mail.retry import Failure, Result

FIRST_RATE = 10.0
"""E-mails per second that are taken for the rate at a domain's first complaint."""
SLOWEST_RATE, FASTEST_RATE = 1 / 60, 1e6
"""E-mails per second to a slowed domain, however often its server complains, and at most at a
complaint. What is stored is taken for a rate between them."""
KEPT_SHARE = 0.8
"""The share of the rate that remains after a complaint. It is 0.7 in RFC 9438, section 4.6, whose
queues must drain; a mail that was refused only waits."""
RECOVERY_SECONDS = 60.0
"""Seconds from a complaint until the rate is what it was then."""
FORGOTTEN_SECONDS = 1800.0
"""Seconds after the last complaint until a domain is free."""
MOST_DOMAINS = 200
"""How many domains are slowed at a time; mail to others waits one by one, as it is throttled."""

_BURST_SECONDS = 0.2
"""Seconds whose turns are reserved together; a turn is kept for at most half of them."""
_SETTLING_SECONDS = 2.0
"""Seconds after a complaint in which another says nothing of the lower rate: servers count over
some time."""
_LONGEST_WAIT = 3600.0
"""Seconds that a server may ask to wait."""
_LONGEST_TURNS = 1 / (KEPT_SHARE * SLOWEST_RATE)
"""Seconds between the turns of the slowest domain, of which one is reserved at a time."""
_TRIES = 3
"""How often a turn is tried for while other workers are faster."""
_MOST_TURNS = 2**31
"""Complaints and turns are counted up to this, and then from 0: each only differs from the next."""


def rate(ceiling: float, seconds: float) -> float:
    """Return the e-mails per second allowed so many seconds after a complaint.

    ``ceiling`` is the rate at the complaint. The curve is that of RFC 9438, section 4.2, with its
    time in ``RECOVERY_SECONDS`` instead of round trips.
    """
    seconds = min(max(seconds, 0.0), FORGOTTEN_SECONDS)
    ceiling = min(max(ceiling, SLOWEST_RATE), FASTEST_RATE)
    curve: float = ((seconds - RECOVERY_SECONDS) / RECOVERY_SECONDS) ** 3
    return ceiling * (1.0 + (1.0 - KEPT_SHARE) * curve)


def ceiling_after(ceiling: float, seconds: float) -> float:
    """Return the new ceiling at a complaint, so many seconds after that at ``ceiling``.

    It is the present rate, but at most twice the old one or ``FIRST_RATE``: while there is little
    mail, the rate allowed says nothing of what the server takes.
    """
    most = max(2.0 * ceiling, FIRST_RATE)
    return max(SLOWEST_RATE, min(rate(ceiling, seconds), most))


@dataclass(frozen=True, slots=True)
class Slowed:
    """A slowed domain as it was read, and what follows from that for a later moment."""

    row: SlowedDomain
    moment: datetime
    """The database's time at the reading."""
    read_at: float
    """The time of the reading, in monotonic seconds of this process."""

    @property
    def key(self) -> tuple[str, str]:
        """The transport and the domain."""
        return self.row.transport, self.row.domain

    @property
    def now(self) -> datetime:
        """The database's time now."""
        return self.moment + timedelta(seconds=time.monotonic() - self.read_at)

    @property
    def per_second(self) -> float:
        """The e-mails per second allowed now."""
        passed: timedelta = self.now - self.row.changed_at
        return rate(self.row.ceiling, passed.total_seconds())

    @property
    def wait(self) -> float:
        """Seconds until the next turn; 0 if it is now."""
        return max(0.0, (self.next_at - self.now).total_seconds())

    @property
    def next_at(self) -> datetime:
        """When the next turn is; now, if the row names a time that no worker has set."""
        next_at: datetime = self.row.next_at
        latest = self.now + timedelta(seconds=_LONGEST_WAIT + _LONGEST_TURNS + clock.SET_BACK)
        return next_at if next_at <= latest else self.now

    @property
    def per_minute(self) -> float:
        """The e-mails per minute allowed now, for people."""
        return float(f"{60.0 * self.per_second:.3g}")

    @property
    def reply(self) -> str:
        """The last complaint, without recipients, whoever has written it."""
        return without_addresses(self.row.reply)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, with the rate allowed now."""
        return {
            "transport": self.row.transport,
            "domain": self.row.domain,
            "per_minute": self.per_minute,
            "since": self.row.since,
            "reply": self.reply,
        }


class SlowedDomains:
    """The slowed domains at one moment."""

    def __init__(self, using: str) -> None:
        """Read them in one query."""
        self._using = using
        self._without_mail: set[tuple[str, tuple[str, str]]] = set()
        self.found: list[Slowed] = []
        if conf.get().find_rates:
            rows = _fresh(using).order_by("transport", "domain").annotate(now=clock.now())
            read_at = time.monotonic()
            self.found = [Slowed(row, row.now, read_at) for row in rows[:MOST_DOMAINS]]

    def pairs(self, transports: Iterable[str]) -> list[tuple[str, str]]:
        """Return the slowed domains of some transports, as ``HeldBack`` names them."""
        return [it.key for it in self.found if it.row.transport in transports]

    def of(self, transport: str) -> frozenset[str]:
        """Return the slowed domains of a transport."""
        return frozenset(it.row.domain for it in self.found if it.row.transport == transport)

    def with_turn(self, queue: str, transports: Sequence[str]) -> list[Slowed]:
        """Return the domains that may get mail of a queue now, those that wait longest first.

        Without those for which this reading has found no mail there.
        """
        free = [
            it
            for it in self.found
            if it.row.transport in transports
            and (queue, it.key) not in self._without_mail
            and not it.wait
        ]
        return sorted(free, key=lambda it: it.next_at)

    def note_empty(self, queue: str, slowed: Slowed) -> None:
        """Remember that a queue has no due mail for a domain, until the table is read again."""
        self._without_mail.add((queue, slowed.key))


_reading = CachedReading(SlowedDomains)
_complaints: dict[tuple[str, str, str], float] = {}
"""When this process last heard a complaint, in monotonic seconds, by database and domain."""


def current(using: str) -> SlowedDomains:
    """Return the slowed domains, as ``CachedReading`` keeps them."""
    return _reading.current(using)


def forget() -> None:
    """Read the table anew for the next claim, because a test has gone back or moved the clock."""
    _reading.forget()
    _complaints.clear()


@_reading.forgotten_by
def reserve(slowed: Slowed, most: int, using: str) -> int:
    """Reserve turns of a domain; return how many e-mails may be claimed for it, up to ``most``.

    0 if its turn has not come. Where other workers had turns since it was read, it is read again.
    """
    for _ in range(_TRIES):
        if slowed.wait:
            return 0
        if number := _take_turns(slowed, most, using):
            return number
        rows = _fresh(using).filter(pk=slowed.row.pk).annotate(now=clock.now())
        if (row := rows.first()) is None:
            return 0
        slowed = Slowed(row, row.now, time.monotonic())
    return 0


def _take_turns(slowed: Slowed, most: int, using: str) -> int:
    interval = 1.0 / slowed.per_second
    number = min(most, max(1, int(_BURST_SECONDS / interval)))
    # A turn that is taken late does not delay the next ones; several that were missed are lost.
    missed = slowed.now - timedelta(seconds=min(interval, _BURST_SECONDS) / 2)
    following = max(slowed.next_at, missed) + timedelta(seconds=number * interval)
    turns = slowed.row.turns
    rows = SlowedDomain.objects.using(using).filter(pk=slowed.row.pk, turns=turns)
    return number if rows.update(next_at=following, turns=(turns + 1) % _MOST_TURNS) else 0


def complain(transport: str, domain: str, failure: Failure, claimed_at: float, using: str) -> None:
    """Slow a domain down, because its server refused an e-mail that was claimed at ``claimed_at``.

    That is in monotonic seconds of this process. What was claimed before the last complaint, or
    just after it, tells nothing new: however many e-mails of a claim are refused, the rate falls
    once.
    """
    if not conf.get().find_rates or is_slowed_since(transport, domain, claimed_at, using):
        return
    if len(_complaints) >= 10 * MOST_DOMAINS:
        _complaints.clear()
    _complaints[using, transport, domain] = time.monotonic()
    _lower_rate(transport, domain, failure, claimed_at, using)


@_reading.forgotten_by
def _lower_rate(
    transport: str, domain: str, failure: Failure, claimed_at: float, using: str
) -> None:
    rows = SlowedDomain.objects.using(using).filter(transport=transport, domain=domain)
    row = rows.annotate(now=clock.now()).first()
    if row is None:
        _slow_down(transport, domain, failure, using)
        return
    passed = (row.now - row.changed_at).total_seconds()
    is_fresh = -clock.SET_BACK <= passed < FORGOTTEN_SECONDS
    if not is_fresh:
        values = {**_values(failure, FIRST_RATE), "since": clock.now()}
    else:
        values = _values(failure, ceiling_after(row.ceiling, passed))
    rows = rows.filter(complaints=row.complaints)
    if is_fresh:
        before = clock.now(claimed_at - time.monotonic() - _SETTLING_SECONDS)
        rows = rows.filter(changed_at__lte=before)
    rows.update(complaints=(row.complaints + 1) % _MOST_TURNS, **values)


def change_after(
    mail: EmailLog, result: Result | None, claimed_at: float, using: str
) -> Callable[[], object] | None:
    """Return what slows a mail's domain down after an attempt; ``None`` if nobody complained.

    ``result`` is ``None`` if the transport was not asked; the rest is as in ``complain``.
    """
    failures = [] if result is None else [result.failure, *result.refused.values()]
    complaint = next((it for it in failures if it is not None and it.slows_domain), None)
    if complaint is None or not mail.domain:
        return None
    return partial(complain, mail.transport, mail.domain, complaint, claimed_at, using)


def is_slowed_since(transport: str, domain: str, claimed_at: float, using: str) -> bool:
    """Return whether this process has heard a complaint since an e-mail was claimed."""
    return _complaints.get((using, transport, domain), claimed_at) > claimed_at


@_reading.forgotten_by
def set_free(domain: str, using: str) -> int:
    """Forget that a domain is slowed, for every transport; return for how many it was.

    ``domain`` may be written as people do, or as it is stored, whatever that is.
    """
    names = {domain, rules.ascii_domain(domain.strip().lower())}
    return SlowedDomain.objects.using(using).filter(domain__in=names).delete()[0]


def clean(using: str) -> None:
    """Delete the rows of domains that are free by now."""
    SlowedDomain.objects.using(using).filter(~_is_fresh()).delete()


def _fresh(using: str) -> models.QuerySet[SlowedDomain]:
    return SlowedDomain.objects.using(using).filter(_is_fresh())


def _is_fresh() -> models.Q:
    """Return the condition for a domain to be slowed: the last complaint is not long ago.

    A time in the future is none of a complaint.
    """
    first, last = clock.now(-FORGOTTEN_SECONDS), clock.now(clock.SET_BACK)
    return models.Q(changed_at__gt=first, changed_at__lte=last)


def _slow_down(transport: str, domain: str, failure: Failure, using: str) -> None:
    """Add the row of a domain, unless there are too many, or another worker adds it."""
    clean(using)
    if SlowedDomain.objects.using(using).count() < MOST_DOMAINS:
        values = {**_values(failure, FIRST_RATE), "since": clock.now()}
        SlowedDomain.objects.using(using).get_or_create(
            transport=transport, domain=domain, defaults=values
        )


def _values(failure: Failure, ceiling: float) -> dict[str, object]:
    pause = 1.0 / rate(ceiling, 0.0)
    if failure.retry_after is not None:
        pause = max(pause, min(failure.retry_after, _LONGEST_WAIT))
    return {
        "ceiling": ceiling,
        "changed_at": clock.now(),
        "next_at": clock.now(pause),
        "reply": without_addresses(failure.reply),
    }
