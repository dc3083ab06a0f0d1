"""The age limit of waiting mail: gives up what has waited too long, and spares what is paused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import product

from django.db import router, transaction
from django.db.models import Q, QuerySet

from django_epica_mail import clock, conf, lifecycle
from django_epica_mail.delivery.outcome import Outcome, recipient_outcomes
from django_epica_mail.delivery.settle import announce
from django_epica_mail.models import DeliveryGate, EmailLog, EmailRecipient
from django_epica_mail.retry import Decision, Failure, Kind
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_CHUNK = 500
_MOST = 5_000
"""How many e-mails a sweep spares, and of each transport and priority gives up, which takes it some
seconds: it has queues to ring for. The next ones go on."""
_MOST_PAUSES = 50
"""For how many pauses, and transports that are configured no more, the sweep spares mail: each
costs queries for each of the others."""
_OVERDUE = Failure(kind=Kind.OVERDUE, reply="The transport was out of order for too long.")
_ACCEPTED = EmailRecipient.Outcome.ACCEPTED
_HELD_BY: dict[str, Callable[[str], Q]] = {
    DeliveryGate.Scope.QUEUE: lambda name: Q(queue=name),
    DeliveryGate.Scope.TRANSPORT: lambda _: Q(),
    DeliveryGate.Scope.CATEGORY: lambda name: Q(category=name, batch__isnull=False),
}
"""Which mail of a transport a pause holds back, by its scope."""


def give_up_overdue() -> int:
    """End mail that has waited too long for a transport out of order; return how many e-mails.

    It fails, or is ``sent`` if some of its recipients have got it; the others count as refused.
    Mail that a person has paused gets more time instead, because nothing tries it meanwhile.
    """
    using = router.db_for_write(EmailLog)
    if not _spare_paused(using):
        return 0  # the next sweep goes on; what is paused must not be given up before it is spared
    gates = DeliveryGate.objects.using(using).filter(scope=DeliveryGate.Scope.TRANSPORT)
    down = set(gates.filter(outages__gt=0).values_list("name", flat=True))
    rows, count = EmailLog.objects.using(using).exclude(_is_not_spared(using)), 0
    # Only those with mail: a gate of what holds none costs ten queries as well.
    down = down.intersection(rows.names("transport")) if down else down
    for transport, level in product(down, LEVELS):
        overdue = rows.filter(transport=transport, pending=level, give_up_at__lte=clock.now())
        ordered = overdue.order_by("give_up_at", "id").defer("envelope")
        count += ordered.change_in_chunks(_CHUNK, lambda mails: _give_up(mails, using), _MOST)
    return count


def _give_up(mails: list[EmailLog], using: str) -> int:
    """End those of these e-mails that still wait; return how many."""
    with transaction.atomic(using=using):
        known = recipient_outcomes(mails, using)
        moves = {
            mail.pk: lifecycle.CONFIRM
            if _ACCEPTED in known[mail.pk].values()
            else lifecycle.GIVE_UP
            for mail in mails
        }
        ended = [
            outcome
            for move in (lifecycle.CONFIRM, lifecycle.GIVE_UP)
            for outcome in _end(move, [mail for mail in mails if moves[mail.pk] is move], using)
        ]
        sent = [it.mail.pk for it in ended if it.target is lifecycle.Status.SENT]
        left = EmailRecipient.objects.using(using).filter(email__in=sent, outcome="")
        left.update(outcome=EmailRecipient.Outcome.REFUSED, code=None, reply=_OVERDUE.reply)
        EmailLog.objects.using(using).forget_content(it.mail.pk for it in ended if it.ends_content)
    announce(ended, using)
    return len(ended)


def _end(move: lifecycle.Move, mails: list[EmailLog], using: str) -> list[Outcome]:
    # Never from a worker's hands.
    waiting = EmailLog.objects.using(using).filter(status__in=lifecycle.CLAIMABLE)
    moved = set(
        waiting.move_returning_ids(
            move,
            [mail.pk for mail in mails],
            failure_kind=_OVERDUE.kind,
            failure_code=None,
            reply=_OVERDUE.reply,
            finished_at=clock.now(),
        )
    )
    decision = Decision(moves=(move,), failure=_OVERDUE)
    return [Outcome(mail, None, decision) for mail in mails if mail.pk in moved]


def _is_not_spared(using: str) -> Q:
    """Return the condition for mail to be held by a pause beyond the ``_MOST_PAUSES``.

    Only by those: PostgreSQL expects few rows of a long condition, and reads and sorts them all.
    """
    names: dict[str, list[str]] = {scope: [] for scope in _HELD_BY}
    for gate in _paused(using)[_MOST_PAUSES:]:
        names[gate.scope].append(gate.name)
    of_category = Q(category__in=names[DeliveryGate.Scope.CATEGORY], batch__isnull=False)
    of_queue = Q(queue__in=names[DeliveryGate.Scope.QUEUE])
    is_held = of_category | of_queue | Q(transport__in=names[DeliveryGate.Scope.TRANSPORT])
    return is_held if any(names.values()) else Q()


def _paused(using: str) -> QuerySet[DeliveryGate]:
    gates = DeliveryGate.objects.using(using).filter(paused=True, scope__in=_HELD_BY)
    return gates.only("scope", "name").order_by("pk")


def _spare_paused(using: str) -> bool:
    """Give mail held by a pause ``GIVE_UP_AFTER`` from now, once half of its own has passed.

    Returns whether all of it has that; otherwise the next sweep goes on. So whenever the pause
    ends, at least the other half is left, for a transport to recover and for retries. Not at each
    sweep, which would write each row that waits each time.
    """
    gates, by_transport = DeliveryGate.objects.using(using), DeliveryGate.Scope.TRANSPORT
    paused = list(_paused(using)[:_MOST_PAUSES])
    if not paused:
        return True
    known = gates.filter(scope=by_transport, outages__gt=0).values_list("name", flat=True)
    aliases = {*transports.aliases(), *known[:_MOST_PAUSES]}
    patience = timedelta(seconds=conf.get().give_up_after)
    rows, left = EmailLog.objects.using(using), _MOST
    # One condition at a time: with OR, PostgreSQL would read all that waits, and sort it.
    for gate in paused:
        within = [gate.name] if gate.scope == by_transport else aliases
        for transport, level in product(within, LEVELS):
            waiting = rows.filter(_HELD_BY[gate.scope](gate.name), transport=transport)
            old = waiting.filter(pending=level, give_up_at__lte=clock.now(patience / 2))
            ordered = old.order_by("give_up_at", "id").only("pk")
            left -= ordered.change_in_chunks(
                _CHUNK, lambda mails: _spare(mails, patience, using), left
            )
            if not left:
                return False
    return True


def _spare(mails: list[EmailLog], patience: timedelta, using: str) -> int:
    waiting = EmailLog.objects.using(using).filter(status__in=lifecycle.CLAIMABLE)
    return waiting.filter(pk__in=[it.pk for it in mails]).update(give_up_at=clock.now(patience))
