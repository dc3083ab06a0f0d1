"""What users call: queue a message as rows in the caller's own transaction."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import router, transaction
from django.db.models import Expression

from django_epica_mail import clock, conf, lifecycle, models, routing
from django_epica_mail._compat import batched
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import announce, announce_moves
from django_epica_mail.exceptions import MissingKey, UnreadableEnvelope
from django_epica_mail.lifecycle import Move, Status
from django_epica_mail.models import EmailBatch, EmailLog, EmailRecipient
from django_epica_mail.queueing import draft as queueing_draft
from django_epica_mail.queueing import enqueue as enqueueing
from django_epica_mail.queueing.draft import Draft
from django_epica_mail.queueing.enqueue import enqueue_one, enqueue_pairs
from django_epica_mail.retry import Decision
from django_epica_mail.routing import Options

logger = logging.getLogger(__name__)


_PORTION = 20
"""How many mails, with their attachments, are read to be sent again at a time."""


def enqueue(message: EmailMessage, **options: Any) -> EmailLog:
    """Queue one message, and return its row.

    The row is written in the caller's transaction and sent after its commit; without a
    transaction, at once. ``options`` are the fields of ``routing.Options``. Of a mail whose
    ``idempotency_key`` was used before, the row of that time is returned.

    Raises ``ValueError`` or ``TypeError`` for a message or option that cannot be sent, and
    ``UnstorableMessage`` for one that cannot be kept whole; then nothing has been written.
    """
    return enqueue_one(message, routing.parse_options(options))


def enqueue_many(messages: Iterable[EmailMessage], **options: Any) -> EmailBatch:
    """Queue many messages as bulk mail, and return their batch.

    ``messages`` may be a generator of any length: it is read and inserted in bounded portions,
    all in one transaction, so that either every message is queued or none.
    """
    parsed = routing.parse_options(options)
    return enqueue_pairs((message, parsed) for message in messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of a request to call mails back."""

    cancelled: list[UUID]
    """The mails that will not be sent."""
    too_late: list[UUID]
    """The mails that a worker had claimed or finished with, and ids of which there is no mail."""


def cancel(ids: Iterable[UUID | str]) -> Cancelled:
    """Call back mails that no worker has claimed yet, and say which were too late.

    Works in the caller's transaction, and is undone if that is rolled back.
    """
    wanted = _uuids(ids)
    using = router.db_for_write(EmailLog)
    # A token nobody else has tells the rows that this call cancelled from those found cancelled.
    token = uuid.uuid4()
    with transaction.atomic(using=using):
        EmailLog.objects.using(using).move(
            lifecycle.CANCEL, wanted, lease_token=token, finished_at=clock.now()
        )
        rows = EmailLog.objects.using(using).filter(pk__in=wanted, lease_token=token)
        keeping = dict(rows.values_list("pk", "keep_content"))
        cancelled = set(keeping)
        end = lifecycle.CANCEL.target
        if over := [pk for pk, keep in keeping.items() if models.ends_with(end, keep)]:
            models.forget(over, using)
        if cancelled:
            told = partial(
                announce_moves, lifecycle.CANCEL, [pk for pk in wanted if pk in cancelled]
            )
            transaction.on_commit(told, using=using)
    return Cancelled(
        cancelled=[pk for pk in wanted if pk in cancelled],
        too_late=[pk for pk in wanted if pk not in cancelled],
    )


def requeue(ids: Iterable[UUID | str]) -> int:
    """Queue failed, unknown, cancelled or expired mails again, with all their tries.

    Returns how many were. Recipients that accepted the mail before are not sent to again; the
    caller decides about an ``unknown`` mail, which may arrive a second time.
    """
    wanted = _uuids(ids)
    using = router.db_for_write(EmailLog)
    patience = timedelta(seconds=conf.get().give_up_after)
    # A token nobody else has tells the rows that this call moved from those that waited already.
    token = uuid.uuid4()
    with transaction.atomic(using=using):
        count = EmailLog.objects.using(using).move(
            lifecycle.REQUEUE,
            wanted,
            lease_token=token,
            due_at=clock.now(),
            expires_at=None,
            give_up_at=clock.now(patience),
            finished_at=None,
            tries=0,
        )
        queued = EmailLog.objects.using(using).filter(pk__in=wanted, lease_token=token)
        EmailRecipient.objects.using(using).filter(
            email__in=queued,
            outcome__in=[EmailRecipient.Outcome.REFUSED, EmailRecipient.Outcome.SUPPRESSED],
        ).update(outcome="", code=None, reply="")
        result_backend.expect(wanted, using)
        for queue in queued.order_by().values_list("queue", flat=True).distinct():
            doorbell.ring_on_commit(queue, using=using)
        moved = list(queued.values_list("pk", flat=True))
        transaction.on_commit(partial(announce_moves, lifecycle.REQUEUE, moved), using=using)
    return count


def send_now(ids: Iterable[UUID | str]) -> int:
    """Make queued mails due that wait for their time or their next try; return how many.

    A pause, a breaker or a rate holds them still.
    """
    return _send_now(_uuids(ids))


def decide(ids: Iterable[UUID | str], verdict: str) -> int:
    """Decide about mails of which it is unknown whether they arrived; return about how many.

    ``verdict`` is ``"arrived"`` (they are sent), ``"resend"`` (they are tried once more, and may
    arrive twice) or ``"write off"`` (they failed). Raises ``ValueError`` for any other.
    """
    return _decide(_uuids(ids), verdict)


def send_again(ids: Iterable[UUID | str]) -> list[EmailLog]:
    """Queue the messages of mails that have come to an end as new mails; return these.

    A new mail goes to all of the recipients, by the route of the old one, under a Message-ID of its
    own. Passed over are mails still to be sent, and those whose content is forgotten or unreadable.
    """
    using = router.db_for_write(EmailLog)
    ended = EmailLog.objects.using(using).filter(status__in=lifecycle.FINAL).exclude(envelope="")
    made: list[EmailLog] = []
    with transaction.atomic(using=using):
        for portion in batched(_uuids(ids), _PORTION):
            rows = ended.filter(pk__in=portion).order_by("pk").prefetch_related("attachments")
            drafts = [draft for mail in rows if (draft := _draft_again(mail)) is not None]
            made += enqueueing.insert_drafts(drafts)
    return made


def _draft_again(mail: EmailLog) -> Draft | None:
    try:
        message = models.message_of(mail)
    except (UnreadableEnvelope, MissingKey):
        logger.warning("E-mail %s cannot be read, and was not sent again.", mail.pk)
        return None
    # Servers take a second mail of the same Message-ID for the first one, and drop it.
    message.extra_headers = {
        name: value for name, value in message.extra_headers.items() if name.lower() != "message-id"
    }
    options = Options(
        transport=mail.transport,
        queue=mail.queue,
        priority=mail.priority,
        category=mail.category or None,
        on_unknown=mail.on_unknown,
        keep_content=mail.keep_content,
    )
    again = queueing_draft.draft(message, options, of_celery={})
    again.log.fallbacks = mail.fallbacks
    again.log.additions = mail.additions
    again.log.max_retries, again.log.retry_delay = mail.max_retries, mail.retry_delay
    return again


def _uuids(ids: Iterable[UUID | str]) -> list[UUID]:
    """Return ids as the rows have them; raise ``TypeError`` or ``ValueError`` for what is none."""
    if isinstance(ids, (str, UUID)):
        raise TypeError(f"Give a list of ids; it is {ids!r}.")
    return [pk if isinstance(pk, UUID) else UUID(pk) for pk in ids]


def pause(*, queue: str | None = None, transport: str | None = None) -> None:
    """Stop claiming mail of one queue, or for one transport; it waits, and nothing is lost."""
    gates.set_paused(True, queue=queue, transport=transport)


def resume(*, queue: str | None = None, transport: str | None = None) -> None:
    """Claim mail of a paused queue, or for a paused transport, again.

    Workers begin with the next ring, at the latest that of the sweep.
    """
    gates.set_paused(False, queue=queue, transport=transport)


def probe(transport: str) -> bool:
    """Let a transport that is out of order be tried now; return whether there is one.

    One mail finds out whether it works again, at the next ring or sweep.
    """
    return gates.return_probe(transport, router.db_for_write(EmailLog))


aenqueue = coroutine_of(enqueue)
aenqueue_many = coroutine_of(enqueue_many)
acancel = coroutine_of(cancel)
arequeue = coroutine_of(requeue)
apause = coroutine_of(pause)
aresume = coroutine_of(resume)


VERDICTS = {
    "arrived": lifecycle.SUCCEED,
    "resend": lifecycle.RESEND,
    "write off": lifecycle.WRITE_OFF,
}
"""What may be decided about an unknown mail, with the move that follows."""


def _send_now(ids: Sequence[UUID]) -> int:
    """Make mails due that wait for their time; return how many."""
    using = router.db_for_write(EmailLog)
    waiting = EmailLog.objects.using(using).filter(
        pk__in=ids, status__in=lifecycle.CLAIMABLE, due_at__gt=clock.now()
    )
    with transaction.atomic(using=using):
        queues = set(waiting.order_by().values_list("queue", flat=True))
        count = waiting.update(due_at=clock.now())
        for queue in queues:
            doorbell.ring_on_commit(queue, using=using)
    return count


def _decide(ids: Sequence[UUID], verdict: str) -> int:
    """Decide about unknown mails; return about how many.

    Raises ``ValueError`` for a verdict that is none of ``VERDICTS``.
    """
    if verdict not in VERDICTS:
        raise ValueError(
            f"A verdict is one of {', '.join(map(repr, VERDICTS))}; it is {verdict!r}."
        )
    move = VERDICTS[verdict]
    using = router.db_for_write(EmailLog)
    # A token nobody else has tells the mails that this call moved from those it found moved.
    token = uuid.uuid4()
    with transaction.atomic(using=using):
        unknown = EmailLog.objects.using(using).filter(status=Status.UNKNOWN)
        count: int = unknown.move(move, ids, lease_token=token, **_verdict_values(move))
        rows = EmailLog.objects.using(using).filter(pk__in=ids, lease_token=token)
        moved = list(rows.only("pk", "keep_content", "queue"))
        outcomes = [Outcome(mail, None, Decision(moves=(move,))) for mail in moved]
        if over := [it.mail.pk for it in outcomes if it.ends_content]:
            models.forget(over, using)
        result_backend.expect([mail.pk for mail in moved], using)
        if move is lifecycle.RESEND:
            for queue in {mail.queue for mail in moved}:
                doorbell.ring_on_commit(queue, using=using)
        transaction.on_commit(partial(announce, outcomes, using), using=using)
    return count


def _verdict_values(move: Move) -> dict[str, Any]:
    """Return what a row keeps, beside its status, of a decision."""
    now: Expression = clock.now()
    if move is lifecycle.RESEND:
        patience = timedelta(seconds=conf.get().give_up_after)
        return {"due_at": now, "expires_at": None, "give_up_at": clock.now(patience)}
    values: dict[str, Any] = {"finished_at": now}
    if move is lifecycle.SUCCEED:
        values.update(failure_kind="", failure_code=None, reply="")
    return values
