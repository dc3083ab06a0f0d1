"""Failover: while a transport is out of order, the next one of a mail's route takes over.

Only what that transport surely did not accept moves: mail that waits, and mail that it could not
even be asked to take.
"""

from __future__ import annotations

from django_epica_mail import conf, gates, lifecycle
from django_epica_mail import transport as transports
from django_epica_mail.models import EmailLog
from django_epica_mail.rules import LEVELS

_CHUNK = 500


def reroute(alias: str, using: str) -> int:
    """Give waiting mail of a transport that is out of order to the next that is not.

    Returns how many mails. Mail whose route names no other transport waits on.
    """
    if not any(alias in rule.transports and rule.transports[1:] for rule in conf.get().routes):
        return 0
    usable = set(gates.Gates(using).open_transports(transports.aliases())) - {alias}
    return sum(_reroute_level(alias, level, usable, using) for level in LEVELS) if usable else 0


def _reroute_level(alias: str, level: int, usable: set[str], using: str) -> int:
    rows = EmailLog.objects.using(using).filter(transport=alias, pending=level)
    waiting = rows.exclude(fallbacks=[]).order_by("give_up_at", "id").only("transport", "fallbacks")
    count = 0
    while moved := _move(list(waiting[:_CHUNK]), usable, using):
        count += moved
    return count


def _move(mails: list[EmailLog], usable: set[str], using: str) -> int:
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
