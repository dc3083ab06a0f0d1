"""Maintenance: the sweep, the retry of failed mail, and the clean-up."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any

from django.db import router, transaction
from django.db.models import CharField, Q
from django.db.models.functions import Cast, Coalesce
from django.utils import timezone

from django_epica_mail import clock, conf, lifecycle, retry
from django_epica_mail._compat import batched
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.db_retry import Errors
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.delivery.limits.overdue import give_up_overdue
from django_epica_mail.delivery.limits.waiting import has_claimable
from django_epica_mail.delivery.outcome import Outcome, policy_of, recipient_outcomes
from django_epica_mail.delivery.settle import announce, announce_moves, settle
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import (
    RECOVERABLE,
    DeliveryGate,
    EmailAttachment,
    EmailBatch,
    EmailEvent,
    EmailLog,
    EmailQuerySet,
    EmailRecipient,
    PendingResult,
)
from django_epica_mail.monitoring import reputation, totals
from django_epica_mail.queueing.dequeue import queues
from django_epica_mail.retry import ENDED_WORKER, PASSING, Failure, Kind, Result
from django_epica_mail.tracking import evidence

_CHUNK = 500
_CLAIMS_PER_SWEEP = 1000
_BATCHES_PER_SWEEP = 100
_BATCH_PATIENCE = 20.0
"""Seconds after which the sweep rings again for a bulk call that no worker has finished."""

_EVENT_PATIENCE = timedelta(hours=1)
"""How long the mail of an event may be unknown before the event loses its link."""
_LOST = Failure(kind=Kind.WORKER_LOST, reply="The worker died before it recorded the outcome.")
_POISON = Failure(
    kind=Kind.POISON,
    reply="This e-mail, sent alone, ended its worker for the second time in a row.",
)


NOTHING_DONE = {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 0}
"""The numbers of a sweep that had nothing to do."""


def dispatch() -> dict[str, int]:
    """Run the sweep: rescue, give up overdue mail, reroute, and ring for each queue with due mail.

    Returns how many e-mails were ``rescued``, ``overdue`` and ``rerouted`` to another transport,
    and how many times it has ``rung``. A part that fails keeps none of the others from running; the
    first error is raised at the end.
    """
    using = router.db_for_write(EmailLog)
    errors = Errors(using)
    done = dict(NOTHING_DONE)
    with errors:
        done["rescued"] = rescue()
    with errors:
        done["overdue"] = give_up_overdue()
    with errors:
        for transport in gates.Gates(using).out_of_order():
            with errors:
                done["rerouted"] += gates.reroute(transport, using)
    with errors:
        for batch_id, queue in _unfinished_batches(using):
            done["rung"] += doorbell.ring_for_batch(str(batch_id), queue=queue or None)
    with errors:
        mirror_results()
    with errors:
        for queue in queues(using):
            with errors:
                done["rung"] += _look_at(queue, using)
    with errors:
        evidence.resolve()  # after the rings: a site's function may take its time
    with errors:
        totals.count()  # last, because no e-mail waits for it
    with errors:
        reputation.guard(using)
    errors.raise_first()
    return done


def rescue() -> int:
    """Take back e-mails whose worker's lease has expired; return how many.

    Neither a claim nor an e-mail that cannot be decided about keeps any of the others; its error is
    raised at the end.
    """
    using = router.db_for_write(EmailLog)
    expired = EmailLog.objects.using(using).filter(
        lease_until__lte=clock.now(), status=Status.SENDING
    )
    # As text, for one that is no UUID would fail the reading of all.
    tokens = expired.order_by().values_list(Cast("lease_token", CharField()), flat=True).distinct()
    errors, count = Errors(using), 0
    for token in list(tokens[:_CLAIMS_PER_SWEEP]):
        if token is not None:
            with errors:
                count += _rescue(uuid.UUID(token), using, errors)
    errors.raise_first()
    return count


def mirror_results() -> int:
    """Store results that Celery's result backend missed; return of how many e-mails."""
    using = router.db_for_write(EmailLog)
    missed = PendingResult.objects.using(using).filter(
        due_at__lte=clock.now(), email__status__in=[*lifecycle.FINAL, Status.UNKNOWN]
    )
    ids = missed.order_by("due_at").values_list("pk", flat=True)[:_CHUNK]
    return result_backend.mirror(ids, using)


def retry_failed(
    *, rest: timedelta = timedelta(0), advance: Callable[[int], None] = lambda count: None
) -> int:
    """Queue mail that failed for a passing reason for one more attempt; return how many e-mails.

    Leaves out what failed less than ``rest`` ago. Works in portions, and calls ``advance`` with the
    number so far after each. Mail that was refused for good is never queued again automatically,
    and mail that some attempt may have delivered only if its own policy is to ``resend`` it.
    """
    using = router.db_for_write(EmailLog)
    patience = timedelta(seconds=conf.get().give_up_after)
    failed = (
        EmailLog.objects.using(using)
        .filter(
            status=Status.FAILED,
            give_up_at__gt=clock.now(),
            # Follows from the line above; the index needs it.
            finished_at__gt=clock.now(-patience),
        )
        .exclude(envelope="")
    )
    count = 0

    def requeue(mails: list[EmailLog]) -> int:
        nonlocal count
        # Only what still is failed: a person may have requeued and cancelled it meanwhile.
        still_failed = EmailLog.objects.using(using).filter(status=Status.FAILED)
        with transaction.atomic(using=using):
            ids = still_failed.move_returning_ids(
                lifecycle.REQUEUE,
                [mail.pk for mail in mails],
                due_at=clock.now(),
                finished_at=None,
            )
            result_backend.expect(ids, using)
        announce_moves(lifecycle.REQUEUE, ids)
        count += len(ids)
        advance(count)
        return len(ids)

    may_arrive_twice = Q(on_unknown=EmailLog.IfUnknown.RESEND)
    parts = failed.filter(may_arrive_twice), failed.exclude(may_arrive_twice).surely_not_accepted()
    for among, kind in product(parts, PASSING):
        rows = among.filter(failure_kind=kind).order_by("finished_at")
        if rest:
            rows = rows.filter(finished_at__lte=clock.now(-rest))
        newest = rows.values_list("finished_at", flat=True).last()
        if newest is None:
            continue
        # Skip what fails again meanwhile. Not "up to the newest": SQLite compares times as text,
        # and for a full second the database writes the fraction and Django does not.
        rows = rows.filter(finished_at__lt=newest + timedelta(milliseconds=1))
        rows.only("pk").change_in_chunks(_CHUNK, requeue)
    return count


def cleanup(days: int | None = None, *, advance: Callable[[int], None] = lambda count: None) -> int:
    """Delete finished mail older than ``days`` (default: ``KEEP_DAYS``); return how many e-mails.

    Deletes in portions, each its own transaction, and calls ``advance`` with the number so far.
    Attachments and bulk calls are deleted with their last e-mail. Failed mail that has been given
    up since loses the content that was kept for another attempt.
    """
    using = router.db_for_write(EmailLog)
    age = timedelta(days=conf.get().keep_days if days is None else days)
    old = EmailLog.objects.using(using).filter(
        finished_at__lt=clock.now(-age), status__in=lifecycle.FINAL
    )
    count = 0
    for kind in ("", *Kind):
        rows = old.filter(failure_kind=kind).order_by("finished_at")
        while True:
            with transaction.atomic(using=using):
                ids = rows.lock_ids(_CHUNK)  # no row may be requeued before it is deleted
                deleted = EmailLog.objects.using(using).delete_with_content(ids)
            if not deleted:
                break
            count += deleted
            advance(count)
    forget_given_up(using)
    _forget_old_content(using)
    _delete_orphaned_attachments(using)
    _delete_batches(age, using)
    _delete_events(age, using)
    totals.forget_hours(using)
    slowed_domains.clean(using)
    return count


def forget_given_up(using: str) -> int:
    """Delete content that was kept for another attempt and needs none any more; return how many.

    Reads all failed mail that still exists, so run it once a day.
    """
    count = 0
    for kind in RECOVERABLE:
        given_up = (
            EmailLog.objects.using(using)
            .filter(failure_kind=kind, status=Status.FAILED, give_up_at__lte=clock.now())
            .exclude(keep_content="always")
            .exclude(envelope="")
        )
        for ids in batched(list(given_up.values_list("pk", flat=True)), _CHUNK):
            with transaction.atomic(using=using):
                locked = given_up.filter(pk__in=ids).lock_ids(_CHUNK)
                EmailLog.objects.using(using).forget_content(locked)
            count += len(locked)
    return count


def _look_at(queue: str, using: str) -> bool:
    """Ring for a queue if it has mail to claim, and note that it was swept; return whether a ring
    was accepted.
    """
    has_rung = has_claimable(queue, using) and doorbell.ring(queue)
    DeliveryGate.objects.using(using).update_or_create(
        scope=DeliveryGate.Scope.QUEUE, name=queue, defaults={"last_sweep_at": clock.now()}
    )
    return has_rung


def _unfinished_batches(using: str) -> list[tuple[uuid.UUID, str]]:
    """Return the bulk calls that have waited some time for a worker to expand them, and the queue
    of each.

    Each is noted as rung for, so that those that cannot be read keep no other waiting.
    """
    batches = EmailBatch.objects.using(using)
    waiting = batches.filter(finished_at=None).annotate(seen=Coalesce("active_at", "created_at"))
    stale = waiting.filter(seen__lt=clock.now(-_BATCH_PATIENCE)).order_by("seen")
    found = list(stale.values_list("pk", "queue")[:_BATCHES_PER_SWEEP])
    if found:
        batches.filter(pk__in=[pk for pk, _ in found]).update(active_at=clock.now())
    return found


def _rescue(token: uuid.UUID, using: str, errors: Errors) -> int:
    """Decide about one claim; if that fails, about each of its e-mails on its own."""
    held = EmailLog.objects.using(using).filter(
        lease_until__lte=clock.now(), lease_token=token, status=Status.SENDING
    )
    ids, count = list(held.values_list("pk", flat=True)), 0
    try:
        return _rescue_together(held, using)
    except Exception as error:
        if len(ids) < 2 or not errors.is_of_one(error):
            raise
    for pk in ids:
        with errors:
            count += _rescue_together(held.filter(pk=pk), using)
    return count


def _rescue_together(held: EmailQuerySet, using: str) -> int:
    """Decide about e-mails of one claim: each may have been begun, so none is known."""
    rows = held.order_by("due_at", "id").defer("envelope")
    with transaction.atomic(using=using):
        mails: list[Any] = list(
            rows.skipping_locked().annotate(too_old=Q(give_up_at__lte=clock.now()))
        )
        outcomes = recipient_outcomes(mails, using)
        lost = [_lose(mail, outcomes.get(mail.pk, {}), mail.too_old) for mail in mails]
        moved = settle(lost, using=using)
    announce(moved, using)
    return len(moved)


def _lose(mail: EmailLog, outcomes: dict[int, str], too_old: bool) -> Outcome:
    # Once may be chance: the worker died with up to nine other e-mails, or was redeployed. After
    # that it was claimed alone.
    result = Result(failure=_POISON if mail.failure_kind in ENDED_WORKER else _LOST)
    policy = policy_of(mail, too_old=too_old)
    outstanding = [position for position, outcome in outcomes.items() if not outcome]
    accepted = EmailRecipient.Outcome.ACCEPTED in outcomes.values()
    decision = retry.conclude(result, policy, outstanding, accepted)
    return Outcome(mail, result, decision, too_old=too_old)


def _delete_batches(age: timedelta, using: str) -> None:
    """Delete old bulk calls that have no e-mail left."""
    batches = EmailBatch.objects.using(using)
    old = batches.filter(finished_at__lt=clock.now(-age)).values_list("pk", flat=True)
    for portion in batched(list(old), _CHUNK):
        used = EmailLog.objects.using(using).filter(batch__in=portion).order_by()
        kept = set(used.values_list("batch", flat=True).distinct())
        batches.filter(pk__in=set(portion) - kept).delete()


def _delete_events(age: timedelta, using: str) -> None:
    """Delete old events of unknown mail, and the links of those whose mail should be known by now.

    Other events are deleted with their e-mail.
    """
    events = EmailEvent.objects.using(using)
    unknown = events.filter(email=None, created_at__lt=clock.now(-_EVENT_PATIENCE))
    unknown.exclude(url="").update(url="")  # it may be a secret of a mail whose content is not kept
    old = events.filter(email=None, created_at__lt=clock.now(-age))
    while ids := list(old.values_list("pk", flat=True)[:_CHUNK]):
        if not events.filter(pk__in=ids).delete()[0]:
            break


def _delete_orphaned_attachments(using: str) -> None:
    """Delete attachments that no e-mail uses; not those of calls that may still be open."""
    yesterday = clock.lowest_id_at(timezone.now() - timedelta(days=1))
    old = EmailAttachment.objects.using(using).filter(pk__lt=yesterday, emails__isnull=True)
    for ids in batched(list(old.values_list("pk", flat=True)), _CHUNK):
        EmailAttachment.objects.using(using).filter(pk__in=ids, emails__isnull=True).delete()


def _forget_old_content(using: str) -> None:
    """Delete the content of finished mail that is older than ``KEEP_CONTENT_DAYS``."""
    days = conf.get().keep_content_days
    if days is None:
        return
    _forget_old_reasons(timedelta(days=days), using)
    for kind in ("", *Kind):
        finished = EmailLog.objects.using(using).filter(
            failure_kind=kind,
            status__in=lifecycle.FINAL,
            finished_at__lt=clock.now(-timedelta(days=days)),
        )
        rows = unforgotten = finished.exclude(envelope="").order_by("finished_at")
        while portion := list(rows.values_list("pk", "finished_at")[:_CHUNK]):
            with transaction.atomic(using=using):
                locked = finished.filter(pk__in=[pk for pk, _ in portion]).lock_ids(_CHUNK)
                EmailLog.objects.using(using).forget_content(locked)
            if not locked:
                break  # another transaction holds them: the next clean-up goes on
            # Skip those before from now on. A second less, because SQLite compares times as text
            # and its own have fewer digits than Django's.
            latest = max(at for _, at in portion if at is not None)
            rows = unforgotten.filter(finished_at__gte=latest - timedelta(seconds=1))


def _forget_old_reasons(age: timedelta, using: str) -> None:
    """Delete the reasons why old bulk calls refused entries, which quote these."""
    old = EmailBatch.objects.using(using).filter(finished_at__lt=clock.now(-age))
    for batch in old.exclude(refused=[]).only("pk", "refused").iterator():
        if any(it["reason"] for it in batch.refused):
            forgotten = [{**it, "reason": ""} for it in batch.refused]
            old.filter(pk=batch.pk).update(refused=forgotten)
