"""Failover: while a transport is out of order, the next one of a mail's route takes over.

Only what that transport surely did not accept moves: mail that waits, and mail that it could not
even be asked to take.
"""

from __future__ import annotations

from django.db import transaction

from django_epica_mail import conf, gates, lifecycle
from django_epica_mail import transport as transports
from django_epica_mail.models import EmailLog

_CHUNK = 500
_LEVELS = range(10)


def reroute(alias: str, using: str) -> int:
    """Give waiting mail of a transport that is out of order to the next that is not.

    Returns how many mails. Mail whose route names no other transport waits on.
    """
    if not any(alias in rule.transports and rule.transports[1:] for rule in conf.get().routes):
        return 0
    usable = set(gates.Gates(using).open_transports(transports.aliases())) - {alias}
    return sum(_reroute_level(alias, level, usable, using) for level in _LEVELS) if usable else 0


def _reroute_level(alias: str, level: int, usable: set[str], using: str) -> int:
    rows = EmailLog.objects.using(using).filter(transport=alias, pending=level)
    count, after = 0, None
    while True:
        portion = rows.exclude(fallbacks=[]).order_by("give_up_at", "id")
        if after is not None:
            portion = portion.filter(give_up_at__gte=after)
        mails = list(portion.only("transport", "fallbacks", "give_up_at")[:_CHUNK])
        moved = _move(mails, usable, using)
        count += moved
        if len(mails) < _CHUNK or not moved:
            return count
        after = mails[-1].give_up_at


def _move(mails: list[EmailLog], usable: set[str], using: str) -> int:
    """Write the next usable transport of each mail, a statement for each way there is."""
    ways: dict[tuple[str, tuple[str, ...]], list[EmailLog]] = {}
    for mail in mails:
        names = [mail.transport, *mail.fallbacks]
        following = next((name for name in mail.fallbacks if name in usable), None)
        if following is not None:
            at = names.index(following)
            ways.setdefault((following, (*names[at + 1 :], *names[:at])), []).append(mail)
    with transaction.atomic(using=using):
        return sum(
            EmailLog.objects.using(using)
            .filter(
                pk__in=[mail.pk for mail in group],
                status__in=lifecycle.CLAIMABLE,
                transport=group[0].transport,
            )
            .update(transport=following, fallbacks=list(others))
            for (following, others), group in ways.items()
        )
