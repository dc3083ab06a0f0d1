"""What holds mail back for every worker alike: pauses, and the breaker of each transport."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models, router

from django_epica_mail import clock, conf, lifecycle, signals
from django_epica_mail.models import DeliveryGate, EmailLog
from django_epica_mail.retry import Failure
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_TRANSPORT = DeliveryGate.Scope.TRANSPORT
_QUEUE = DeliveryGate.Scope.QUEUE


class Gates:
    """The state of all gates at one moment."""

    def __init__(self, using: str) -> None:
        """Read the gates in one query: those that never held anything back have no row."""
        closed = DeliveryGate.objects.using(using).filter(
            models.Q(paused=True) | models.Q(outages__gt=0)
        )
        self._closed = {
            (gate.scope, gate.name): gate
            for gate in closed.annotate(waiting=models.Q(open_until__gt=clock.now()))
        }

    def queue_is_open(self, queue: str) -> bool:
        """Tell whether mail may be claimed from a queue."""
        return (_QUEUE, queue) not in self._closed

    def open_transports(self, aliases: Iterable[str]) -> list[str]:
        """Return which of the transports may be given mail, if only a probe."""
        gates = {alias: self._closed.get((_TRANSPORT, alias)) for alias in aliases}
        return [
            alias
            for alias, gate in gates.items()
            if gate is None or not (gate.paused or getattr(gate, "waiting", False))
        ]

    def out_of_order(self) -> list[str]:
        """Return the transports whose breaker is open or half-open."""
        return [
            name
            for (scope, name), gate in self._closed.items()
            if scope == _TRANSPORT and gate.outages
        ]

    def reply(self, alias: str) -> str:
        """Return what a transport that is out of order answered last; else nothing."""
        gate = self._closed.get((_TRANSPORT, alias))
        return gate.reason if gate else ""

    def paused(self) -> list[str]:
        """Return what a person has stopped, as ``queue emails``."""
        return sorted(
            f"{scope} {name}" for (scope, name), gate in self._closed.items() if gate.paused
        )

    def reasons(self) -> dict[str, str]:
        """Return, for people, what is closed and why."""
        return {
            f"{scope} {name}": "paused" if gate.paused else f"out of order: {gate.reason}"
            for (scope, name), gate in self._closed.items()
        }

    def needs_probe(self, alias: str) -> bool:
        """Tell whether an open transport was out of order when last tried."""
        return (_TRANSPORT, alias) in self._closed


def take_probe(alias: str, using: str) -> bool:
    """Reserve the one probe of a transport for the caller; return whether it has it."""
    free = DeliveryGate.objects.using(using).filter(
        scope=_TRANSPORT, name=alias, outages__gt=0, open_until__lte=clock.now()
    )
    return free.update(open_until=_probe_time()) == 1


def return_probe(alias: str, using: str) -> bool:
    """Make a probe due now, as one that was not made, for its mail never got to the transport.

    Returns whether the transport is out of order at all.
    """
    gates = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, name=alias, outages__gt=0)
    return gates.update(open_until=clock.now()) == 1


def trip(alias: str, failure: Failure, using: str) -> None:
    """Open a transport's breaker: no mail is given to it until it is time for a probe."""
    gate, _ = DeliveryGate.objects.using(using).get_or_create(scope=_TRANSPORT, name=alias)
    DeliveryGate.objects.using(using).filter(pk=gate.pk).update(
        outages=models.F("outages") + 1, open_until=_probe_time(), reason=failure.reply
    )
    signals.transport_tripped.send_robust(DeliveryGate, transport=alias, failure=failure)


def reset(alias: str, using: str) -> None:
    """Close a transport's breaker: a probe got through."""
    gates = DeliveryGate.objects.using(using).filter(scope=_TRANSPORT, name=alias, outages__gt=0)
    if gates.update(outages=0, open_until=None, reason=""):
        signals.transport_recovered.send_robust(DeliveryGate, transport=alias)


def set_paused(
    paused: bool,
    *,
    queue: str | None = None,
    transport: str | None = None,
    using: str | None = None,
) -> None:
    """Pause or resume one queue or one transport; queued mail stays where it is."""
    if (queue is None) == (transport is None):
        raise ValueError("Name a queue or a transport, and only one of them.")
    using = using or router.db_for_write(DeliveryGate)
    scope, name = (_QUEUE, queue) if queue is not None else (_TRANSPORT, transport)
    DeliveryGate.objects.using(using).update_or_create(
        scope=scope, name=name, defaults={"paused": paused}
    )


def _probe_time() -> models.Expression:
    return clock.now(conf.get().breaker_seconds)


_CHUNK = 500


def reroute(alias: str, using: str) -> int:
    """Give waiting mail of a transport that is out of order to the next that is not.

    Returns how many mails. Mail whose route names no other transport waits on.
    """
    if not any(alias in rule.transports and rule.transports[1:] for rule in conf.get().routes):
        return 0
    usable = set(Gates(using).open_transports(transports.aliases())) - {alias}
    return sum(_reroute_level(alias, level, usable, using) for level in LEVELS) if usable else 0


def _reroute_level(alias: str, level: int, usable: set[str], using: str) -> int:
    rows = EmailLog.objects.using(using).filter(transport=alias, pending=level)
    waiting = rows.exclude(fallbacks=[]).order_by("give_up_at", "id").only("transport", "fallbacks")
    count = 0
    while moved := _move_to_fallback(list(waiting[:_CHUNK]), usable, using):
        count += moved
    return count


def _move_to_fallback(mails: list[EmailLog], usable: set[str], using: str) -> int:
    """Write the next usable transport of each mail, a statement for each route there is."""
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
            moved += rows.update(**group[0].failover(following))
    return moved
