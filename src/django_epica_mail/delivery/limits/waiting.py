"""What waits in a queue: what a worker may claim now, and how long the rest has to wait."""

from __future__ import annotations

from django.db import router

from django_epica_mail import lifecycle
from django_epica_mail.broker import doorbell
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import rate_limits, slowed_domains
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.models import EmailLog, EmailQuerySet, EmailRecipient
from django_epica_mail.queueing.dequeue import HeldBack, due, due_levels, has_due
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_CHUNK = 500
_LATER = 0.01
"""Seconds by which the clocks of a worker and the database may differ in counting a pause."""
_LONGEST_RING = 60.0
"""Seconds that a ring may be ahead of its time; what is due later is left to the sweep."""


def has_claimable(queue: str, using: str) -> bool:
    """Return whether a worker would find mail to claim in a queue now."""
    state, slowed = gates.Gates(using), slowed_domains.current(using)
    held = held_back(state, slowed)
    if not state.queue_is_open(queue):
        return False
    return _pause_for_turn(queue, state, slowed, using) == 0 or any(
        has_due(queue, alias, level, using, held)
        for alias in state.open_transports(transports.aliases())
        for level in due_levels(queue, alias, using)
    )


def _pause_for_turn(
    queue: str, state: gates.Gates, slowed: SlowedDomains, using: str
) -> float | None:
    """Return the seconds until a slowed domain may get mail of a queue; ``None`` if none waits."""
    if not (slowed.found and state.queue_is_open(queue)):
        return None
    aliases = set(state.open_transports(transports.aliases())) - set(state.out_of_order())
    for it in sorted(slowed.found, key=lambda it: it.wait):
        alias, domain = it.key
        if alias in aliases and due_to(domain, queue, alias, using, state) is not None:
            return it.wait
    return None


def ring_for_turn(queue: str) -> None:
    """Ring for the moment when a slowed domain may get mail of a queue, if any waits."""
    using = router.db_for_write(EmailLog)
    pause = _pause_for_turn(queue, gates.Gates(using), slowed_domains.current(using), using)
    if pause is not None and pause <= _LONGEST_RING:
        doorbell.ring(queue, after=pause + _LATER)  # who comes too early rings no further


def due_to(
    domain: str, queue: str, alias: str, using: str, state: gates.Gates
) -> EmailQuerySet | None:
    """Return the most urgent due mail to a domain; ``None`` if there is none."""
    held = HeldBack(state.held_categories())
    for level in due_levels(queue, alias, using, domain):
        rows = due(queue, alias, level, using, held).filter(domain=domain)
        if rows.values_list("pk")[:1]:
            return rows
    return None


def held_back(state: gates.Gates, slowed: SlowedDomains) -> HeldBack:
    """Return what a claim leaves out. A probe may be a mail to a slowed domain."""
    aliases = {it.row.transport for it in slowed.found if not state.needs_probe(it.row.transport)}
    return HeldBack(state.held_categories(), slowed.pairs(aliases))


def pause_for_budget(queue: str) -> float | None:
    """Return the seconds until a rate limit allows due mail of a queue; ``None`` if none waits.

    0 if the limit allows it now: the budget has grown since the queue was last looked at.
    """
    if not rate_limits.is_limited():
        return None
    using = router.db_for_write(EmailLog)
    state = gates.Gates(using)
    if not state.queue_is_open(queue):
        return None
    pauses, held = [], held_back(state, slowed_domains.current(using))
    for alias in state.open_transports(transports.aliases()):
        levels = due_levels(queue, alias, using)
        costs = (head_cost(queue, alias, lv, using, held) for lv in levels)
        cost = next(filter(None, costs), 0)
        allowed = rate_limits.allowance(alias)
        if allowed is not None and cost:
            pauses.append(rate_limits.seconds_until(alias, cost) if allowed < cost else 0.0)
    return min(pauses, default=None)


def head_cost(queue: str, alias: str, level: int, using: str, held: HeldBack) -> int:
    """Return how many recipients the first due mail of a priority takes from the rate limits.

    0 if no mail of that priority is due.
    """
    head = due(queue, alias, level, using, held).values_list("pk", flat=True).first()
    if head is None:
        return 0
    left = EmailRecipient.objects.using(using).filter(email_id=head, outcome="").count()
    return rate_limits.bounded(alias, max(1, left))


def move_waiting(alias: str, to: str, using: str) -> tuple[int, set[str]]:
    """Give waiting mail of one transport to another, without failover.

    Returns how many e-mails moved, and their queues.
    """
    queues = set[str]()

    def move(mails: list[EmailLog]) -> int:
        still = EmailLog.objects.using(using).filter(
            pk__in=[mail.pk for mail in mails], status__in=lifecycle.CLAIMABLE, transport=alias
        )
        queues.update(mail.queue for mail in mails)
        return still.update(transport=to, fallbacks=[])

    if alias == to:
        return 0, queues
    count = 0
    for level in LEVELS:
        waiting = EmailLog.objects.using(using).filter(transport=alias, pending=level)
        ordered = waiting.order_by("give_up_at", "id").only("queue")
        count += ordered.change_in_chunks(_CHUNK, move)
    return count, queues
