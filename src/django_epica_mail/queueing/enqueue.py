"""Queues messages: inserts their rows in the caller's transaction and rings on its commit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import router, transaction
from django.db.models import Expression

from django_epica_mail import clock, rules
from django_epica_mail._compat import batched
from django_epica_mail.broker import celery_config, doorbell
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import codec
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog, PendingResult
from django_epica_mail.queueing import draft as queueing_draft
from django_epica_mail.queueing.draft import Draft
from django_epica_mail.queueing.rows import sql
from django_epica_mail.routing import Options

logger = logging.getLogger(__name__)

CHUNK = 500
"""How many mails of a bulk call are checked and inserted at a time, here and in ``bulk``."""


def enqueue_one(message: EmailMessage, options: Options) -> EmailLog:
    """Queue one message as ``outbox.enqueue`` does, with options already checked."""
    of_celery = celery_config.site_route(bulk=False)
    return insert_drafts([queueing_draft.draft(message, options, of_celery=of_celery)])[0]


def enqueue_all(messages: Iterable[EmailMessage], options: Options) -> int:
    """Queue all messages or none, as single mail; return how many were queued.

    Messages without recipients are skipped, as Django's own backends do.
    """
    chunks = batched((message for message in messages if message.recipients()), CHUNK)
    first, second = next(chunks, ()), next(chunks, None)
    if not first:
        return 0
    if second is None:
        _enqueue_chunk(first, options)
        return len(first)
    # With a savepoint, for the same reason as in enqueue_pairs.
    with transaction.atomic(using=router.db_for_write(EmailLog)):
        count = 0
        for chunk in itertools.chain((first, second), chunks):
            _enqueue_chunk(chunk, options)
            count += len(chunk)
    return count


def _enqueue_chunk(messages: Sequence[EmailMessage], options: Options) -> None:
    of_celery = celery_config.site_route(bulk=False)
    drafts = [queueing_draft.draft(message, options, of_celery=of_celery) for message in messages]
    insert_drafts(drafts)


def enqueue_pairs(pairs: Iterable[tuple[EmailMessage, Options]]) -> EmailBatch:
    """Queue bulk mail as ``outbox.enqueue_many`` does, each message with its own options."""
    using = router.db_for_write(EmailBatch)
    # With a savepoint: if a later message is invalid, a caller that catches the error must be left
    # with a usable transaction, without the rows inserted so far.
    with transaction.atomic(using=using):
        batch = EmailBatch.objects.using(using).create()
        of_celery = celery_config.site_route(bulk=True)
        for chunk in batched(pairs, CHUNK):
            drafts = [
                queueing_draft.draft(message, options, of_celery=of_celery, bulk=True, batch=batch)
                for message, options in chunk
            ]
            batch.accepted += count_new(drafts, insert_drafts(drafts))
            batch.total += len(chunk)
        batch.position = batch.total
        batch.finished_at = clock.now()
        batch.save(update_fields=["total", "accepted", "position", "finished_at"])
    batch.__dict__.pop("finished_at", None)  # an expression: read the value from the database
    return batch


def insert_drafts(drafts: Sequence[Draft]) -> list[EmailLog]:
    """Insert drafts in the caller's transaction and ring on its commit; return their rows.

    If the idempotency key of a draft was used before, the existing row is returned instead. Raises
    ``ValueError`` if the database takes the key for another one, as the collations that MySQL and
    MariaDB use by default do; the draft is not inserted then, but others may be.
    """
    using = router.db_for_write(EmailLog)
    with _transaction(drafts, using):
        earlier = _claim_keys(drafts, using)
        new = [draft for draft in drafts if draft.log.pk not in earlier]
        sql.insert_together(
            [
                [draft.log for draft in new if draft.log.idempotency_key is None],
                [recipient for draft in new for recipient in draft.recipients],
                [_pending_result(draft.log) for draft in new if draft.log.store_result],
            ],
            using,
        )
        _insert_blobs(new, using)
        for queue in {draft.log.queue for draft in new if draft.is_due}:
            doorbell.ring_on_commit(queue, using=using)
    for draft in new:
        for name in ("created_at", "due_at", "give_up_at", "expires_at"):
            if isinstance(draft.log.__dict__.get(name), Expression):
                delattr(draft.log, name)  # an expression: read the value from the database
    # After the transaction, which may be the caller's: one mail that is refused leaves it usable.
    for draft in drafts:
        if found := earlier.get(draft.log.pk):
            _check_key(draft.log.idempotency_key, found)
    return [earlier.get(draft.log.pk, draft.log) for draft in drafts]


def count_new(drafts: Sequence[Draft], logs: Sequence[EmailLog]) -> int:
    """Return how many rows of ``insert_drafts`` are new: the others had their key used before."""
    return sum(log.pk == draft.log.pk for draft, log in zip(drafts, logs, strict=True))


def _transaction(drafts: Sequence[Draft], using: str) -> AbstractContextManager[None]:
    """Return a context in the caller's transaction, or in a new one if several writes need it."""
    is_one_write = not any(draft.blobs or draft.log.idempotency_key for draft in drafts)
    if is_one_write and transaction.get_autocommit(using):
        return nullcontext()
    # Within the caller's transaction, a savepoint would cost two more round trips.
    return transaction.atomic(using=using, savepoint=False)


def _pending_result(log: EmailLog) -> PendingResult:
    return PendingResult.of(email_id=log.pk, due_at=log.due_at)


def _claim_keys(drafts: Sequence[Draft], using: str) -> dict[UUID, EmailLog]:
    """Insert the rows with idempotency keys; return the existing rows of used keys, by draft id.

    These have the same key, or one that the database takes for the same. Waits for another
    transaction that inserts the key. No ``IntegrityError`` reaches the caller's transaction.
    """
    keyed: dict[str, EmailLog] = {}
    for draft in drafts:
        if draft.log.idempotency_key:
            keyed.setdefault(draft.log.idempotency_key, draft.log)  # the first of them counts
    if not keyed:
        return {}
    rows = EmailLog.objects.using(using)
    known = rows.in_bulk(keyed, field_name="idempotency_key")
    if unseen := keyed.keys() - known.keys():
        # In one order: of two calls with the same keys, one waits for the other.
        sql.insert_rows([keyed[key] for key in sorted(unseen)], using, ignore_conflicts=True)
        known = rows.in_bulk(keyed, field_name="idempotency_key")
        if unseen := keyed.keys() - known.keys():
            # Committed since this transaction began. Under REPEATABLE READ, the default of MySQL's
            # server, only a locking read finds them.
            locked = rows.select_for_update()
            known.update(locked.in_bulk(unseen, field_name="idempotency_key"))
            # One by one, for only the database knows which key it takes for which.
            known.update({key: locked.get(idempotency_key=key) for key in unseen - known.keys()})
    earlier = {}
    for draft in drafts:
        key = draft.log.idempotency_key
        if key is not None and known[key].pk != draft.log.pk:
            earlier[draft.log.pk] = known[key]
            is_same_key = known[key].idempotency_key == key
            if is_same_key and _differs(known[key].envelope, draft.log.envelope):
                logger.warning(
                    "The idempotency key of e-mail %s was used again for a different message, "
                    "which was not queued.",
                    known[key].pk,
                )
    return earlier


def _check_key(key: str | None, found: EmailLog) -> None:
    """Raise ``ValueError`` if the row found for an idempotency key has another one."""
    if key != found.idempotency_key:
        raise ValueError(
            f"idempotency_key {rules.shown(key)} is not distinct from "
            f"{rules.shown(found.idempotency_key)}, the key of e-mail {found.pk}: the database "
            "compares keys without regard to case, accents or spaces at the end. Give keys that "
            "differ in more, such as lower-case hexadecimal digits, or give the column a binary "
            "collation."
        )


def _differs(known: str, envelope: str) -> bool:
    """Return whether a stored message certainly differs from a new one."""
    if not known:
        return False  # its content was deleted
    try:
        return not codec.is_same(known, envelope)
    except UnreadableEnvelope:
        return False


def _insert_blobs(drafts: Sequence[Draft], using: str) -> None:
    """Insert each distinct attachment of this call once, and link it to its mails."""
    rows: dict[str, EmailAttachment] = {}
    links = []
    for draft in drafts:
        for blob in draft.blobs:
            row = rows.setdefault(blob.digest, queueing_draft.attachment(blob))
            links.append((draft.log, row))
    if not rows:
        return
    EmailAttachment.objects.using(using).bulk_create(rows.values())
    link = EmailLog.attachments.through
    link._default_manager.using(using).bulk_create(
        [link(emaillog_id=log.pk, emailattachment_id=row.pk) for log, row in links]
    )
