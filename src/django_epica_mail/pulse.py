"""The signs of life of a queue, at a cost that does not grow with the number of mails."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import router
from django.db.models import Sum

from django_epica_mail import backlog, clock, gates, totals, transport
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailTotal


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
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


def pulse() -> Pulse:
    """Return the signs of life, at a cost that does not grow with the number of mails."""
    using = router.db_for_read(EmailLog)
    moment, first = backlog.clock_and_first_mail(using)
    ages = backlog.due_ages(using, moment)
    state = gates.Gates(using)
    works = set(state.open_transports(transport.aliases())) - set(state.out_of_order())
    attempts = DeliveryAttempt.objects.using(using).order_by("-pk")
    last_attempt = attempts.values_list("created_at", flat=True).first()
    leased = EmailLog.objects.using(using).filter(lease_until__gt=clock.now())
    ended = _ended_lately(using, moment)
    return Pulse(
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
