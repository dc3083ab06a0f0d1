"""The caretakers: dispatch what is due, rescue what a dead worker left, clean up what is old."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import product

from django.db import models, router, transaction

from django_epica_mail import clock, conf, lifecycle, retry
from django_epica_mail import models as models_module
from django_epica_mail._compat import batched
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.claim import has_claimable, queues
from django_epica_mail.delivery.outcome import Outcome, policy_of
from django_epica_mail.delivery.prepare import recipient_outcomes
from django_epica_mail.delivery.settle import announce, announce_moves, settle
from django_epica_mail.lifecycle import PERMITS, Status
from django_epica_mail.models import (
    _HOPEFUL,
    DeliveryGate,
    EmailBatch,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    PendingResult,
    forget,
)
from django_epica_mail.monitoring import totals
from django_epica_mail.retry import PASSING, Decision, Failure, Kind, Result
from django_epica_mail.rules import LEVELS

_CHUNK = 500
_CLAIMS_PER_SWEEP = 1000
_BATCHES_PER_SWEEP = 100
_PATIENCE_WITH_BATCHES = 20.0
"""Seconds for which a bulk call is left to the ring of its commit."""
_LOST = Failure(kind=Kind.WORKER_LOST, reply="The worker did not live to say what became of it.")
_OVERDUE = Failure(kind=Kind.OVERDUE, reply="The transport was out of order for too long.")


def dispatch() -> dict[str, int]:
    """Rescue, give up what is overdue, and ring once for each queue with something due.

    Returns how many mails were ``rescued``, ``overdue`` and ``rerouted`` to another transport, and
    how many times the bell was ``rung``.
    """
    using = router.db_for_write(EmailLog)
    done = {"rescued": rescue(), "overdue": give_up_overdue(), "rerouted": 0, "rung": 0}
    for transport in gates.Gates(using).out_of_order():
        done["rerouted"] += gates.reroute(transport, using)
    for batch in _unfinished_batches(using):
        done["rung"] += doorbell.ring_for_batch(str(batch))
    mirror_results()
    for queue in queues(using):
        if has_claimable(queue, using):
            done["rung"] += doorbell.ring(queue)
        DeliveryGate.objects.using(using).update_or_create(
            scope=DeliveryGate.Scope.QUEUE, name=queue, defaults={"last_sweep_at": clock.now()}
        )
    totals.count()  # last, for no mail waits for it
    return done


def _unfinished_batches(using: str) -> list[uuid.UUID]:
    """Return bulk calls that have waited for a worker, or for the rest of it, for some time."""
    stale = EmailBatch.objects.using(using).filter(
        finished_at=None, created_at__lt=clock.now(-_PATIENCE_WITH_BATCHES)
    )
    return list(stale.order_by("created_at").values_list("pk", flat=True)[:_BATCHES_PER_SWEEP])


def mirror_results() -> int:
    """Tell Celery's result backend what it missed; return of how many mails."""
    using = router.db_for_write(EmailLog)
    missed = PendingResult.objects.using(using).filter(
        due_at__lte=clock.now(), email__status__in=[*lifecycle.FINAL, Status.UNKNOWN]
    )
    return result_backend.mirror(
        missed.order_by("due_at").values_list("pk", flat=True)[:_CHUNK], using
    )


def rescue() -> int:
    """Take back the mails whose worker's lease is over; return how many."""
    using = router.db_for_write(EmailLog)
    expired = EmailLog.objects.using(using).filter(lease_until__lte=clock.now())
    tokens = expired.order_by().values_list("lease_token", flat=True).distinct()
    return sum(_rescue(token, using) for token in list(tokens[:_CLAIMS_PER_SWEEP]) if token)


def _rescue(token: uuid.UUID, using: str) -> int:
    """Decide about one claim: what may have been begun is unknown, the rest surely was not."""
    rows = (
        EmailLog.objects.using(using)
        .filter(lease_until__lte=clock.now(), lease_token=token, status=Status.SENDING)
        .annotate(too_old=models.Q(give_up_at__lte=clock.now()))
        .order_by("due_at", "id")
        .defer("envelope")
    )
    with transaction.atomic(using=using):
        mails = list(rows.skipping_locked())
        outcomes = recipient_outcomes(mails[:PERMITS], using)
        lost = [_lose(mail, outcomes.get(mail.pk, {})) for mail in mails[:PERMITS]]
        moved = settle(lost, token=token, using=using)
        released = EmailLog.objects.using(using).move(
            lifecycle.RELEASE, [mail.pk for mail in mails[PERMITS:]], token=token
        )
    announce(moved, using)
    return len(moved) + released


def _lose(mail: EmailLog, outcomes: dict[int, str]) -> Outcome:
    result = Result(failure=_LOST)
    policy = policy_of(mail, too_old=getattr(mail, "too_old", False))
    outstanding = [position for position, outcome in outcomes.items() if not outcome]
    accepted = EmailRecipient.Outcome.ACCEPTED in outcomes.values()
    return Outcome(mail, result, retry.conclude(result, policy, outstanding, accepted))


def give_up_overdue() -> int:
    """Give up what has waited too long for a transport that is out of order; return how many."""
    using = router.db_for_write(EmailLog)
    down = DeliveryGate.objects.using(using).filter(
        scope=DeliveryGate.Scope.TRANSPORT, outages__gt=0
    )
    decision = Decision(moves=(lifecycle.GIVE_UP,), failure=_OVERDUE)
    count = 0
    for transport, level in product(list(down.values_list("name", flat=True)), LEVELS):
        overdue = EmailLog.objects.using(using).filter(
            transport=transport, pending=level, give_up_at__lte=clock.now()
        )
        while mails := list(overdue.order_by("give_up_at").defer("envelope")[:_CHUNK]):
            # A token nobody else has tells the rows given up here from those another took.
            token = uuid.uuid4()
            with transaction.atomic(using=using):
                rows = EmailLog.objects.using(using)
                rows.move(
                    lifecycle.GIVE_UP,
                    [mail.pk for mail in mails],
                    failure_kind=_OVERDUE.kind,
                    reply=_OVERDUE.reply,
                    finished_at=clock.now(),
                    lease_token=token,
                )
                given_up = rows.filter(pk__in=[mail.pk for mail in mails], lease_token=token)
                moved = set(given_up.values_list("pk", flat=True))
                outcomes = [Outcome(mail, None, decision) for mail in mails if mail.pk in moved]
                models_module.forget([it.mail.pk for it in outcomes if it.ends_content], using)
            count += len(outcomes)
            announce(outcomes, using)
    return count


def retry_failed(*, advance: Callable[[int], None] = lambda count: None) -> int:
    """Give what failed for a passing reason one more try each; return how many mails.

    Goes in portions, and calls ``advance`` with the number so far. What was refused for good, and
    what may have been accepted, is never tried again by itself.
    """
    using = router.db_for_write(EmailLog)
    patience = timedelta(seconds=conf.get().give_up_after)
    failed = (
        EmailLog.objects.using(using)
        .filter(
            status=Status.FAILED,
            give_up_at__gt=clock.now(),
            finished_at__gt=clock.now(
                -patience
            ),  # follows from the line above, and the index has it
        )
        .exclude(envelope="")
    )
    count = 0
    for kind in PASSING:
        rows = failed.filter(failure_kind=kind).order_by("finished_at")
        newest = rows.values_list("finished_at", flat=True).last()
        if newest is None:
            continue
        # Not what fails again meanwhile. Not "up to the newest": SQLite compares times as text, and
        # of a full second the database writes the fraction and Django does not.
        rows = rows.filter(finished_at__lt=newest + timedelta(milliseconds=1))
        while ids := list(rows.values_list("pk", flat=True)[:_CHUNK]):
            count += EmailLog.objects.using(using).move(
                lifecycle.REQUEUE, ids, due_at=clock.now(), finished_at=None
            )
            result_backend.expect(ids, using)
            announce_moves(lifecycle.REQUEUE, ids)
            advance(count)
    return count


def cleanup(days: int | None = None, *, advance: Callable[[int], None] = lambda count: None) -> int:
    """Delete finished mail older than ``days`` (``KEEP_DAYS`` if not given); return how many.

    Deletes in portions, each its own transaction, and calls ``advance`` with the number so far.
    Attachments and bulk calls go with their last mail. What failed, and has been given up since,
    loses the content that was kept for another try.
    """
    using = router.db_for_write(EmailLog)
    age = timedelta(days=conf.get().keep_days if days is None else days)
    old = EmailLog.objects.using(using).filter(
        finished_at__lt=clock.now(-age), status__in=lifecycle.FINAL
    )
    count = 0
    for kind in ("", *Kind):
        rows = old.filter(failure_kind=kind).order_by("finished_at")
        while ids := list(rows.values_list("pk", flat=True)[:_CHUNK]):
            models_module.delete(ids, using)
            count += len(ids)
            advance(count)
    forget_given_up(using)
    _forget_contents(using)
    _delete_batches(age, using)
    _delete_events(age, using)
    totals.forget_hours(using)
    return count


def _delete_batches(age: timedelta, using: str) -> None:
    """Delete old bulk calls that have no mail any more."""
    batches = EmailBatch.objects.using(using)
    old = batches.filter(finished_at__lt=clock.now(-age)).values_list("pk", flat=True)
    for portion in batched(list(old), _CHUNK):
        used = EmailLog.objects.using(using).filter(batch__in=portion).order_by()
        kept = set(used.values_list("batch", flat=True).distinct())
        batches.filter(pk__in=set(portion) - kept).delete()


def _delete_events(age: timedelta, using: str) -> None:
    """Delete old events of mail that is not known; the others go with their mail."""
    events = EmailEvent.objects.using(using)
    old = events.filter(email=None, created_at__lt=clock.now(-age))
    while ids := list(old.values_list("pk", flat=True)[:_CHUNK]):
        events.filter(pk__in=ids).delete()


def _forget_contents(using: str) -> None:
    """Forget the content of finished mail that is older than ``KEEP_CONTENT_DAYS``."""
    days = conf.get().keep_content_days
    if days is None:
        return
    for kind in ("", *Kind):
        finished = EmailLog.objects.using(using).filter(
            failure_kind=kind,
            status__in=lifecycle.FINAL,
            finished_at__lt=clock.now(-timedelta(days=days)),
        )
        rows = finished.exclude(envelope="").order_by("finished_at")
        while portion := list(rows.values_list("pk", "finished_at")[:_CHUNK]):
            with transaction.atomic(using=using):
                models_module.forget([pk for pk, _ in portion], using)
            # Those before need not be looked at again. A second less, for SQLite compares times
            # as text, and the database's own have fewer digits than ours.
            latest = max(at for _, at in portion if at is not None)
            rows = rows.filter(finished_at__gte=latest - timedelta(seconds=1))


_CONTENT_CHUNK = 500


def forget_given_up(using: str) -> int:
    """Forget the content that was kept for another try, where none is to come; return how many.

    Looks through all mail that failed and is not deleted yet: for once a day, then.
    """
    count = 0
    for kind in _HOPEFUL:
        given_up = (
            EmailLog.objects.using(using)
            .filter(failure_kind=kind, status=lifecycle.Status.FAILED, give_up_at__lte=clock.now())
            .exclude(keep_content="always")
            .exclude(envelope="")
        )
        for ids in batched(list(given_up.values_list("pk", flat=True)), _CONTENT_CHUNK):
            with transaction.atomic(using=using):
                forget(ids, using)
            count += len(ids)
    return count
