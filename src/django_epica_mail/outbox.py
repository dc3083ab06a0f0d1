"""What users call: queue a message as rows in the caller's own transaction."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import router, transaction

from django_epica_mail import (
    clock,
    conf,
    contents,
    doorbell,
    drafting,
    gates,
    interventions,
    lifecycle,
    reading,
    results,
    routing,
    storing,
)
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.drafting import Draft
from django_epica_mail.exceptions import MissingKey, UnreadableEnvelope
from django_epica_mail.models import EmailBatch, EmailLog, EmailRecipient
from django_epica_mail.portions import portions
from django_epica_mail.routing import Options
from django_epica_mail.settling import tell

logger = logging.getLogger(__name__)

CHUNK = 500
"""How many mails of a bulk call are checked and inserted at a time."""

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


def enqueue_one(message: EmailMessage, options: Options) -> EmailLog:
    """Queue one message as ``enqueue`` does, with options that are checked already."""
    of_celery = doorbell.site_route(bulk=False)
    return storing.insert([drafting.draft(message, options, of_celery=of_celery)])[0]


def enqueue_all(messages: Iterable[EmailMessage], options: Options) -> int:
    """Queue all of the messages or none of them, as single mail; return how many.

    Messages without recipients are passed over, as by Django's own backends.
    """
    addressed = [message for message in messages if message.recipients()]
    if addressed:
        of_celery = doorbell.site_route(bulk=False)
        storing.insert(
            [drafting.draft(message, options, of_celery=of_celery) for message in addressed]
        )
    return len(addressed)


def enqueue_many(messages: Iterable[EmailMessage], **options: Any) -> EmailBatch:
    """Queue many messages as bulk mail, and return their batch.

    ``messages`` may be a generator of any length: it is read and inserted in bounded portions,
    all in one transaction, so that either every message is queued or none.
    """
    parsed = routing.parse_options(options)
    return enqueue_pairs((message, parsed) for message in messages)


def enqueue_pairs(pairs: Iterable[tuple[EmailMessage, Options]]) -> EmailBatch:
    """Queue bulk mail as ``enqueue_many`` does, each message with options of its own."""
    using = router.db_for_write(EmailBatch)
    # With a savepoint: a bad message may turn up after others are inserted, and the caller who
    # catches the error must be left with a transaction as usable as before.
    with transaction.atomic(using=using):
        batch = EmailBatch.objects.using(using).create()
        of_celery = doorbell.site_route(bulk=True)
        for portion in portions(pairs, CHUNK):
            storing.insert(
                [
                    drafting.draft(message, options, of_celery=of_celery, bulk=True, batch=batch)
                    for message, options in portion
                ]
            )
            batch.total += len(portion)
        batch.accepted = batch.position = batch.total
        batch.finished_at = clock.now()
        batch.save(update_fields=["total", "accepted", "position", "finished_at"])
    batch.__dict__.pop("finished_at", None)  # an expression until the database has said its time
    return batch


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
        if over := [pk for pk, keep in keeping.items() if contents.ends_with(end, keep)]:
            contents.forget(over, using)
        if cancelled:
            told = partial(tell, lifecycle.CANCEL, [pk for pk in wanted if pk in cancelled])
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
        results.expect(wanted, using)
        for queue in queued.order_by().values_list("queue", flat=True).distinct():
            doorbell.ring_on_commit(queue, using=using)
        moved = list(queued.values_list("pk", flat=True))
        transaction.on_commit(partial(tell, lifecycle.REQUEUE, moved), using=using)
    return count


def send_now(ids: Iterable[UUID | str]) -> int:
    """Make queued mails due that wait for their time or their next try; return how many.

    A pause, a breaker or a rate holds them still.
    """
    return interventions.send_now(_uuids(ids))


def decide(ids: Iterable[UUID | str], verdict: str) -> int:
    """Decide about mails of which it is unknown whether they arrived; return about how many.

    ``verdict`` is ``"arrived"`` (they are sent), ``"resend"`` (they are tried once more, and may
    arrive twice) or ``"write off"`` (they failed). Raises ``ValueError`` for any other.
    """
    return interventions.decide(_uuids(ids), verdict)


def send_again(ids: Iterable[UUID | str]) -> list[EmailLog]:
    """Queue the messages of mails that have come to an end as new mails; return these.

    A new mail goes to all of the recipients, by the route of the old one, under a Message-ID of its
    own. Passed over are mails still to be sent, and those whose content is forgotten or unreadable.
    """
    using = router.db_for_write(EmailLog)
    ended = EmailLog.objects.using(using).filter(status__in=lifecycle.FINAL).exclude(envelope="")
    made: list[EmailLog] = []
    with transaction.atomic(using=using):
        for portion in portions(_uuids(ids), _PORTION):
            rows = ended.filter(pk__in=portion).order_by("pk").prefetch_related("attachments")
            drafts = [draft for mail in rows if (draft := _draft_again(mail)) is not None]
            made += storing.insert(drafts)
    return made


def _draft_again(mail: EmailLog) -> Draft | None:
    try:
        message = reading.message_of(mail)
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
    again = drafting.draft(message, options, of_celery={})
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
