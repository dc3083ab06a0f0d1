"""Gates that hold mail back for all workers: pauses, circuit breakers, and failover.

Failover moves only mail that the failed transport surely did not accept, in no attempt:
``EmailQuerySet.surely_not_accepted``.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from django.core.mail import EmailMessage
from django.db import connections, models, router
from django.db.models.functions import Cast

from django_epica_mail import clock, conf, lifecycle, signals
from django_epica_mail.delivery.limits.cached_reading import CachedReading
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import DeliveryGate, EmailLog, bounds, fields
from django_epica_mail.replies import without_addresses
from django_epica_mail.retry import Failure, Result, Scope
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_TRANSPORT = DeliveryGate.Scope.TRANSPORT
_QUEUE = DeliveryGate.Scope.QUEUE
_CATEGORY = DeliveryGate.Scope.CATEGORY
_CHUNK, _MOST_MOVED = 500, 5_000
"""How many e-mails are read together, and how many a sweep or a worker moves, in some seconds."""
_BY, _NOTE = 150, 200
"""The most characters of the columns `paused_by` and `note`."""

_INDEPENDENT = 3
_IN_A_ROW = 10
"""Fewer than ``conf.PERMITS``, for each of them may be unknown."""
_EVIDENCE_SECONDS = 600.0

_LONGEST_PAUSE = 3600.0
"""Seconds between two probes at most, however long a transport refuses."""
_MOST_STEPS = 100
"""After so many failures every growing pause is the longest; a power beyond would overflow."""


class Gates:
    """The state of all gates at one moment."""

    def __init__(self, using: str) -> None:
        """Read the closed gates in one query; a gate that never closed has no row."""
        self._database = connections[using]
        closed = DeliveryGate.objects.using(using).filter(
            models.Q(paused=True) | models.Q(outages__gt=0, scope=_TRANSPORT)
        )
        self._read_at = time.monotonic()
        self._closed = {
            (gate.scope, fields.alike(gate.name, self._database)): gate
            for gate in closed.annotate(waiting=_waits_for_probe(), now=clock.now())
        }

    def _gate(self, scope: str, name: str) -> DeliveryGate | None:
        return self._closed.get((scope, fields.alike(name, self._database)))

    @property
    def now(self) -> datetime | None:
        """The database's time now; ``None`` if no gate is closed."""
        passed = timedelta(seconds=time.monotonic() - self._read_at)
        return next((gate.now + passed for gate in self._closed.values()), None)

    def queue_is_open(self, queue: str) -> bool:
        """Return whether mail may be claimed from a queue."""
        return self._gate(_QUEUE, queue) is None

    def open_transports(self, aliases: Iterable[str]) -> list[str]:
        """Return the transports that may get mail, even if only one probe."""
        gates = {alias: self._gate(_TRANSPORT, alias) for alias in aliases}
        return [
            alias
            for alias, gate in gates.items()
            if gate is None or not (gate.paused or getattr(gate, "waiting", False))
        ]

    def held_categories(self) -> list[str]:
        """Return the categories whose bulk mail may not be claimed."""
        return sorted(it.name for it in self._closed.values() if it.scope == _CATEGORY)

    def out_of_order(self) -> list[str]:
        """Return the transports whose breaker is open or half-open."""
        gates = self._closed.values()
        return [gate.name for gate in gates if gate.scope == _TRANSPORT and gate.outages]

    def reply(self, alias: str) -> str:
        """Return the last reply of a transport that is out of order, otherwise an empty string."""
        gate = self._gate(_TRANSPORT, alias)
        return gate.reason if gate else ""

    def paused(self) -> list[str]:
        """Return what a person has paused, as in ``queue emails``."""
        return sorted(f"{it.scope} {it.name}" for it in self._closed.values() if it.paused)

    def reasons(self) -> dict[str, str]:
        """Return the closed gates with the reason, in words for people."""
        return {
            f"{it.scope} {it.name}": "paused" if it.paused else f"out of order: {it.reason}"
            for it in self._closed.values()
        }

    def needs_probe(self, alias: str) -> bool:
        """Return whether a transport was out of order at the last attempt, and needs a probe."""
        return self._gate(_TRANSPORT, alias) is not None


_reading = CachedReading(Gates)


def current(using: str) -> Gates:
    """Return the state of all gates, as ``CachedReading`` keeps it."""
    return _reading.current(using)


def forget() -> None:
    """Read the gates anew for the next claim."""
    _reading.forget()


class Evidence:
    """Weighs failures that may mean that a transport is out of order; one for each process.

    One mail proves nothing, for the fault may be its own. It takes ``_INDEPENDENT`` mails of
    different senders to different recipients, or ``_IN_A_ROW`` to different recipients, with no
    success between them; if the fault may be that of a domain, to different domains.
    """

    def __init__(self) -> None:
        self._failed: dict[str, list[tuple[float, str, frozenset[str]]]] = {}
        self._lock = threading.Lock()

    def weigh(self, alias: str, message: EmailMessage, result: Result, *, is_probe: bool) -> Result:
        """Return the result of a mail, its failure confirmed as an outage if there is evidence."""
        failure = result.failure
        with self._lock:
            if failure is None:
                self._failed.pop(alias, None)
            elif failure.may_be_outage and self._is_enough(
                alias, message, failure, is_probe=is_probe
            ):
                return replace(result, failure=failure.confirmed())
        return result

    def _is_enough(
        self, alias: str, message: EmailMessage, failure: Failure, *, is_probe: bool
    ) -> bool:
        is_of_domain = failure.scope is Scope.DOMAIN and conf.get().find_rates
        if is_probe and not is_of_domain:
            return True
        now = time.monotonic()
        fresh = [it for it in self._failed.get(alias, ()) if now - it[0] < _EVIDENCE_SECONDS]
        sender = canonical(message.from_email)
        to = frozenset(canonical(it) for it in message.recipients())
        if is_of_domain:
            to = frozenset(it.rpartition("@")[2] for it in to)
        self._failed[alias] = fresh = [*fresh, (now, sender, to)][-_IN_A_ROW:]
        in_a_row, independent = set[str](), set[str]()
        known: set[str] = set()
        count = 0
        for _, sender, to in fresh:
            if in_a_row.isdisjoint(to):
                count += 1
            in_a_row |= to
            if sender not in known and independent.isdisjoint(to):
                known.add(sender)
                independent |= to
        return len(known) >= _INDEPENDENT or count >= _IN_A_ROW


evidence = Evidence()


@_reading.forgotten_by
def take_probe(alias: str, using: str) -> bool:
    """Reserve the one probe of a transport; return whether the caller got it."""
    broken = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, name=alias, outages__gt=0)
    return broken.exclude(_waits_for_probe()).update(open_until=_probe_time()) == 1


def _waits_for_probe() -> models.Q:
    """Return the condition for a breaker to be open: its probe is not due, but will be.

    A time so far ahead that no worker has set it does not count.
    """
    longest = max(_LONGEST_PAUSE, conf.get().breaker_seconds) + clock.SET_BACK
    return models.Q(open_until__gt=clock.now(), open_until__lte=clock.now(longest))


@_reading.forgotten_by
def return_probe(alias: str, using: str) -> bool:
    """Make a probe due now, because the reserved one was not made or a person asks for it.

    Returns whether the transport is out of order.
    """
    gates = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, name=alias, outages__gt=0)
    return gates.update(open_until=clock.now()) == 1


@_reading.forgotten_by
def return_probes(using: str) -> None:
    """Make a probe of every transport out of order due now, because a worker has started."""
    gates = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, outages__gt=0)
    gates.update(open_until=clock.now())


@_reading.forgotten_by
def trip(alias: str, failure: Failure, using: str, *, is_probe: bool = False) -> None:
    """Open a transport's breaker: it gets no mail until the next probe is due.

    Only a failed probe makes an open breaker's pause longer: mails that were in flight together
    fail together.
    """
    gate, _ = DeliveryGate.objects.using(using).get_or_create(scope=_TRANSPORT, name=alias)
    gates = DeliveryGate.objects.using(using).filter(pk=gate.pk)
    pause = clock.now(_pause(failure, gate.outages if is_probe else 0))
    reason = without_addresses(failure.reply)  # who may see gates may see no mail
    if is_probe:
        gates.update(
            outages=bounds.increased("outages", 1, bounds.MOST),
            open_until=pause,
            reason=reason,
            probed_at=clock.now(),
        )
    elif not gates.filter(outages=0).update(
        outages=1,
        open_until=pause,
        reason=reason,
        tripped_at=clock.now(),
        probed_at=None,
    ):
        gates.update(reason=reason)
    signals.transport_tripped.send_robust(DeliveryGate, transport=alias, failure=failure)


def change_after(
    alias: str, result: Result | None, using: str, *, is_probe: bool
) -> Callable[[], object] | None:
    """Return what changes a transport's breaker after an attempt; ``None`` if nothing does.

    ``result`` is ``None`` if the transport was not asked.
    """
    if result is None:
        return partial(return_probe, alias, using) if is_probe else None
    if result.failure is not None and result.failure.stops_transport:
        return partial(trip, alias, result.failure, using, is_probe=is_probe)
    return partial(reset, alias, using) if is_probe else None


def _pause(failure: Failure, outages: int) -> float:
    """Return the seconds until the next probe, after so many failures in a row before this one."""
    usual = conf.get().breaker_seconds
    if failure.pause_growth == 1.0:
        return usual
    grown = usual * failure.pause_growth ** min(outages, _MOST_STEPS)
    asked = max(grown, failure.retry_after or 0.0)
    # Jitter, so that many sites behind one limit do not come back together.
    return max(usual, min(asked, _LONGEST_PAUSE) * random.uniform(0.9, 1.0))


@_reading.forgotten_by
def reset(alias: str, using: str) -> None:
    """Close a transport's breaker after a successful probe."""
    gates = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, name=alias, outages__gt=0)
    if gates.update(outages=0, open_until=None, reason="", probed_at=clock.now()):
        signals.transport_recovered.send_robust(DeliveryGate, transport=alias)


@_reading.forgotten_by
def set_paused(
    paused: bool,
    *,
    queue: str | None = None,
    transport: str | None = None,
    category: str | None = None,
    using: str | None = None,
    by: str = "",
    note: str = "",
) -> None:
    """Pause or resume a queue, a transport or bulk mail of a category; mail stays where it is.

    ``by`` and ``note`` say who pauses it and why; what exceeds their columns is cut off. Raises
    ``ValueError`` unless exactly one of them is named.
    """
    scope, name = _named(queue, transport, category)
    using = using or router.db_for_write(DeliveryGate)
    values: dict[str, object] = {"paused": paused}
    if paused:
        values.update(paused_at=clock.now(), paused_by=by[:_BY], note=note[:_NOTE])
    elif category is not None:
        values["resumed_at"] = clock.now()
    DeliveryGate.objects.using(using).update_or_create(scope=scope, name=name, defaults=values)
    if transport is not None and not paused:
        return_probe(transport, using)  # who resumes it expects an attempt at once


@_reading.forgotten_by
def restore_pause(scope: str, name: str, using: str) -> bool:
    """Undo the last resume: pause again, since when and by whom it was; return whether it did."""
    resumed = DeliveryGate.objects.using(using).filter(
        scope=scope, name=name, paused=False, paused_at__isnull=False
    )
    return resumed.update(paused=True) == 1


def _named(queue: str | None, transport: str | None, category: str | None) -> tuple[str, str]:
    """Return the scope and name of the one gate that is named; raise ``ValueError`` otherwise."""
    given = {_QUEUE: queue, _TRANSPORT: transport, _CATEGORY: category}
    named = [(scope.value, name) for scope, name in given.items() if name is not None]
    if len(named) != 1:
        raise ValueError("Name a queue, a transport or a category, and only one of them.")
    return named[0]


def is_held(
    *, queue: str | None = None, transport: str | None = None, category: str | None = None
) -> bool:
    """Return whether a queue, a transport or bulk mail of a category is paused."""
    scope, name = _named(queue, transport, category)
    held = DeliveryGate.objects.using(router.db_for_write(DeliveryGate)).filter(paused=True)
    return held.filter(scope=scope, name=name).exists()


def _probe_time() -> models.Expression:
    return clock.now(conf.get().breaker_seconds)


def reroute(alias: str, using: str) -> int:
    """Move waiting mail of a transport that is out of order to its next usable transport.

    Returns how many e-mails moved, the most urgent ones first; the sweep calls again for those
    beyond ``_MOST_MOVED``. Mail whose route names no other transport keeps waiting, and so does
    mail that this one may have accepted.
    """
    if not any(alias in rule.transports and rule.transports[1:] for rule in conf.get().routes):
        return 0
    state = Gates(using)
    usable = set(state.open_transports(transports.aliases())) - set(state.out_of_order()) - {alias}
    rows, moved = EmailLog.objects.using(using).surely_not_accepted(transport=alias), 0
    # Only those that one of them may take: a backlog without is not read at each sweep.
    rows = rows.annotate(names=Cast("fallbacks", models.TextField())).filter(_names_any_of(usable))
    for level in reversed(LEVELS) if usable else ():
        waiting = rows.filter(transport=alias, pending=level).order_by("give_up_at", "id")
        moved += waiting.only("transport", "fallbacks").change_in_chunks(
            _CHUNK, lambda mails: _move_to_fallback(mails, usable, using), _MOST_MOVED - moved
        )
    return moved


def _names_any_of(aliases: Iterable[str]) -> models.Q:
    """Return the condition for the JSON text ``names`` to name one of the transports, and perhaps
    for some other text.
    """
    forms = {json.dumps(it, ensure_ascii=plain) for it in aliases for plain in (True, False)}
    return models.Q(*(("names__contains", it) for it in forms), _connector=models.Q.OR)


def _move_to_fallback(mails: list[EmailLog], usable: set[str], using: str) -> int:
    """Set the next usable transport of each e-mail, with one statement per route."""
    routes: dict[tuple[str, ...], list[EmailLog]] = {}
    for mail in mails:
        routes.setdefault(tuple(mail.fallbacks), []).append(mail)
    moved = 0
    for fallbacks, group in routes.items():
        following = next((name for name in fallbacks if name in usable), None)
        if following is not None:
            rows = EmailLog.objects.using(using).filter(
                pk__in=[mail.pk for mail in group],
                status__in=lifecycle.CLAIMABLE,
                transport=group[0].transport,
            )
            # Another would deliver it twice: it does not know the key that a provider has kept.
            rows = rows.surely_not_accepted(transport=models.OuterRef("transport"))
            moved += rows.update(**group[0].failover(following))
    return moved
