"""What users call: queue a message as rows in the caller's own transaction."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parseaddr
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.core.mail.utils import DNS_NAME
from django.db import router, transaction
from django.utils import timezone

from django_epica_mail import (
    clock,
    conf,
    doorbell,
    gates,
    lifecycle,
    routing,
    serialization,
)
from django_epica_mail import transport as transports
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog, EmailRecipient
from django_epica_mail.routing import Options
from django_epica_mail.serialization import Blob, StoredMessage

CHUNK = 500
"""How many mails of a bulk call are checked and inserted at a time."""


def enqueue(message: EmailMessage, **options: Any) -> EmailLog:
    """Queue one message, and return its row.

    The row is written in the caller's transaction and sent after its commit; without a
    transaction, at once. ``options`` are the fields of ``routing.Options``.

    Raises ``ValueError`` or ``TypeError`` for a message or option that cannot be sent, and
    ``UnstorableMessage`` for one that cannot be kept whole; then nothing has been written.
    """
    parsed = routing.parse_options(options)
    (log,) = _store([message], parsed, bulk=False)
    return log


def enqueue_all(messages: Iterable[EmailMessage], options: Options) -> int:
    """Queue all of the messages or none of them, as single mail; return how many.

    Messages without recipients are passed over, as by Django's own backends.
    """
    addressed = [message for message in messages if message.recipients()]
    if addressed:
        _store(addressed, options, bulk=False)
    return len(addressed)


def enqueue_many(messages: Iterable[EmailMessage], **options: Any) -> EmailBatch:
    """Queue many messages as bulk mail, and return their batch.

    ``messages`` may be a generator of any length: it is read and inserted in bounded portions,
    all in one transaction, so that either every message is queued or none.
    """
    parsed = routing.parse_options(options)
    using = router.db_for_write(EmailBatch)
    # With a savepoint: a bad message may turn up after others are inserted, and the caller who
    # catches the error must be left with a transaction as usable as before.
    with transaction.atomic(using=using):
        batch = EmailBatch.objects.using(using).create()
        for portion in _portions(messages, CHUNK):
            batch.total += len(_store(portion, parsed, bulk=True, batch=batch))
        batch.save(update_fields=["total"])
    return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of a request to call mails back."""

    cancelled: list[UUID]
    """The mails that will not be sent."""
    too_late: list[UUID]
    """The mails that a worker had claimed or finished with, and ids of which there is no mail."""


def cancel(ids: Iterable[UUID]) -> Cancelled:
    """Call back mails that no worker has claimed yet, and say which were too late.

    Works in the caller's transaction, and is undone if that is rolled back.
    """
    wanted = list(ids)
    using = router.db_for_write(EmailLog)
    # A token nobody else has tells the rows that this call cancelled from those found cancelled.
    token = uuid.uuid4()
    EmailLog.objects.using(using).move(
        lifecycle.CANCEL, wanted, lease_token=token, finished_at=clock.now()
    )
    rows = EmailLog.objects.using(using).filter(pk__in=wanted, lease_token=token)
    cancelled = set(rows.values_list("pk", flat=True))
    return Cancelled(
        cancelled=[pk for pk in wanted if pk in cancelled],
        too_late=[pk for pk in wanted if pk not in cancelled],
    )


def requeue(ids: Iterable[UUID]) -> int:
    """Queue failed, unknown, cancelled or expired mails again, with all their tries.

    Returns how many were. Recipients that accepted the mail before are not sent to again; the
    caller decides about an ``unknown`` mail, which may arrive a second time.
    """
    wanted = list(ids)
    using = router.db_for_write(EmailLog)
    patience = timedelta(seconds=conf.get().give_up_after)
    with transaction.atomic(using=using):
        count = EmailLog.objects.using(using).move(
            lifecycle.REQUEUE,
            wanted,
            due_at=clock.now(),
            expires_at=None,
            give_up_at=clock.now(patience),
            finished_at=None,
            tries=0,
        )
        queued = EmailLog.objects.using(using).filter(pk__in=wanted, status=lifecycle.Status.QUEUED)
        EmailRecipient.objects.using(using).filter(
            email__in=queued, outcome=EmailRecipient.Outcome.REFUSED
        ).update(outcome="", code=None, reply="")
        for queue in queued.order_by().values_list("queue", flat=True).distinct():
            doorbell.ring_on_commit(queue, using=using)
    return count


def pause(*, queue: str | None = None, transport: str | None = None) -> None:
    """Stop claiming mail of one queue, or for one transport; it waits, and nothing is lost."""
    gates.set_paused(True, queue=queue, transport=transport)


def resume(*, queue: str | None = None, transport: str | None = None) -> None:
    """Claim mail of a paused queue, or for a paused transport, again.

    Workers begin with the next ring, at the latest that of the sweep.
    """
    gates.set_paused(False, queue=queue, transport=transport)


def _portions(messages: Iterable[EmailMessage], size: int) -> Iterator[list[EmailMessage]]:
    iterator = iter(messages)
    while portion := list(itertools.islice(iterator, size)):
        yield portion


@dataclass(frozen=True, slots=True)
class _Draft:
    """A checked message with the rows it becomes."""

    log: EmailLog
    recipients: list[EmailRecipient]
    blobs: tuple[Blob, ...]


def _store(
    messages: Sequence[EmailMessage],
    options: Options,
    *,
    bulk: bool,
    batch: EmailBatch | None = None,
) -> list[EmailLog]:
    """Check every message, then insert all in the caller's transaction and ring on its commit."""
    drafts = [_draft(message, options, bulk=bulk, batch=batch) for message in messages]
    logs = [draft.log for draft in drafts]
    using = router.db_for_write(EmailLog)
    # Inside the caller's transaction a savepoint of our own would cost two more round trips.
    with transaction.atomic(using=using, savepoint=False):
        EmailLog.objects.using(using).bulk_create(logs)
        EmailRecipient.objects.using(using).bulk_create(
            recipient for draft in drafts for recipient in draft.recipients
        )
        _store_blobs(drafts, using)
        if options.send_at is None or options.send_at <= timezone.now():
            doorbell.ring_on_commit(logs[0].queue, using=using)
    for log in logs:
        for name in ("created_at", "due_at", "give_up_at"):
            log.__dict__.pop(name, None)  # an expression until the database has said its time
    return logs


def _draft(
    message: EmailMessage, options: Options, *, bulk: bool, batch: EmailBatch | None
) -> _Draft:
    if not message.recipients():
        raise ValueError("The message has no recipient: give it at least one in to, cc or bcc.")
    serialization.check(message)
    stored = serialization.dump(message)
    log = _row(message, stored, options, bulk=bulk)
    log.batch = batch
    return _Draft(log, _recipients(message, log), stored.blobs)


def _row(message: EmailMessage, stored: StoredMessage, options: Options, *, bulk: bool) -> EmailLog:
    settings = conf.get()
    patience = timedelta(seconds=settings.give_up_after)
    queue, priority = routing.default_queue(bulk=bulk)
    if options.priority is not None:
        priority = routing.priority_number(options.priority)
    log = EmailLog(
        queue=options.queue or queue,
        transport=options.transport or transports.default_alias(),
        category=options.category or "",
        priority=priority,
        pending=priority,
        created_at=clock.now(),
        due_at=options.send_at or clock.now(),
        expires_at=options.expires_at,
        give_up_at=options.send_at + patience if options.send_at else clock.now(patience),
        subject=_storable(message.subject),
        from_email=_storable(message.from_email),
        envelope=stored.envelope,
        on_unknown=options.on_unknown or settings.on_unknown,
        max_retries=settings.max_retries,
        retry_delay=settings.retry_delay,
    )
    log.message_id = _message_id(message) or f"<{log.id}@{DNS_NAME}>"
    return log


def _message_id(message: EmailMessage) -> str:
    for name, value in message.extra_headers.items():
        if name.lower() == "message-id":
            return _storable(value)[:255]
    return ""


def _recipients(message: EmailMessage, log: EmailLog) -> list[EmailRecipient]:
    kinds = (
        [EmailRecipient.Kind.TO] * sum(map(bool, message.to))
        + [EmailRecipient.Kind.CC] * sum(map(bool, message.cc))
        + [EmailRecipient.Kind.BCC] * sum(map(bool, message.bcc))
    )
    return [
        EmailRecipient(email=log, position=position, kind=kind, address=_address(recipient))
        for position, (recipient, kind) in enumerate(
            itertools.zip_longest(message.recipients(), kinds, fillvalue=EmailRecipient.Kind.BCC)
        )
    ]


def _address(recipient: str) -> str:
    """Return the address to search by: without its display name, in lower case."""
    text = _storable(recipient)
    return (parseaddr(text)[1] or text).lower()[:320]


def _storable(text: object) -> str:
    """Return text as any database takes it; the envelope keeps the original."""
    return str(text).replace("\0", "").encode("utf-8", "replace").decode()


def _store_blobs(drafts: Sequence[_Draft], using: str) -> None:
    """Store each distinct content of this call once, and link it to the mails that carry it."""
    rows: dict[str, EmailAttachment] = {}
    links = []
    for draft in drafts:
        for blob in draft.blobs:
            row = rows.setdefault(blob.digest, _attachment(blob))
            links.append((draft.log, row))
    if not rows:
        return
    EmailAttachment.objects.using(using).bulk_create(rows.values())
    link = EmailLog.attachments.through
    link._default_manager.using(using).bulk_create(
        [link(emaillog_id=log.pk, emailattachment_id=row.pk) for log, row in links]
    )


def _attachment(blob: Blob) -> EmailAttachment:
    return EmailAttachment(
        digest=blob.digest,
        filename=_storable(blob.filename),
        mimetype=_storable(blob.mimetype)[:255],
        size=len(blob.content),
        content=blob.content,
    )
