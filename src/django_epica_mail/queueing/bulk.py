"""Bulk calls: stored whole in the caller's transaction, expanded into mails by a worker.

Each portion of entries becomes rows in one transaction, which also moves the batch's position; so
whoever goes on after an interruption, the sweep for one, neither loses an entry nor doubles it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db import router, transaction

from django_epica_mail import clock
from django_epica_mail.broker import celery_config, doorbell
from django_epica_mail.messages import UnencodableValue, decode, encode, encryption
from django_epica_mail.models import EmailBatch
from django_epica_mail.queueing import compose, draft, enqueue
from django_epica_mail.retry import reply_text


def submit(emails: object) -> EmailBatch:
    """Store a bulk call in the caller's transaction; ``expand`` makes its mails.

    ``emails`` is a list of dicts: the arguments of ``send_email_async`` by name, with
    ``template_name`` and ``context`` in place of the bodies if wanted. An entry that is no mail is
    found out by ``expand``, except for one that holds what cannot be stored: that is refused here,
    with ``TypeError``.
    """
    if isinstance(emails, (str, bytes)) or not isinstance(emails, Sequence):
        raise TypeError(f"emails must be a list of dicts; it is {type(emails).__name__}.")
    try:
        payload = encryption.seal(json.dumps(encode(list(emails))))
    except UnencodableValue as error:
        raise TypeError(
            f"An entry of emails holds a value of the type {error}, which cannot be stored until "
            "a worker reads it: give text, numbers, bytes, dates, lists or dicts."
        ) from None
    using = router.db_for_write(EmailBatch)
    return EmailBatch.objects.using(using).create(total=len(emails), payload=payload)


def ring_on_commit(batch: EmailBatch) -> None:
    """Wake a worker that expands a batch, once the caller's transaction has committed."""
    doorbell.ring_for_batch_on_commit(str(batch.pk), using=router.db_for_write(EmailBatch))


def expand(batch_id: UUID | str) -> EmailBatch:
    """Make the mails of a bulk call, or go on where it was interrupted; return the batch.

    Does nothing with a batch that is finished.
    """
    using = router.db_for_write(EmailBatch)
    batches = EmailBatch.objects.using(using)
    batch = batches.get(pk=batch_id)
    entries = decode(json.loads(encryption.unseal(batch.payload) or "[]"))
    while not batch.is_finished:
        start = batch.position
        portion = entries[start : start + enqueue.CHUNK]
        with transaction.atomic(using=using):
            # The guard that makes two workers at the same batch take turns: the second finds the
            # position moved on. A finished batch is at its end, and never matches.
            mine = batches.filter(pk=batch.pk, position=start, finished_at=None).update(
                position=start + len(portion)
            )
            if mine:
                _insert(batch, portion, start, using)
        batch.refresh_from_db(fields=["position", "accepted", "refused", "finished_at"])
    return batch


def _insert(batch: EmailBatch, portion: Sequence[Any], start: int, using: str) -> None:
    """Insert the mails of a portion of entries, and note what became of it in the batch."""
    of_celery = celery_config.site_route(bulk=True)
    drafts, refused = [], list(batch.refused)
    for index, entry in enumerate(portion, start):
        try:
            message, options = compose.compose(_named(entry))
            drafts.append(
                draft.draft(message, options, of_celery=of_celery, bulk=True, batch=batch)
            )
        except Exception as error:  # noqa: BLE001 - a bad entry, or template, never stops others
            reason = reply_text(f"{type(error).__name__}: {error}")
            refused.append({"index": index, "reason": reason})
    logs = enqueue.insert_drafts(drafts)
    done = start + len(portion) >= batch.total
    EmailBatch.objects.using(using).filter(pk=batch.pk).update(
        accepted=batch.accepted + len(logs),
        refused=refused,
        **({"finished_at": clock.now(), "payload": ""} if done else {}),
    )


def _named(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise TypeError(f"An entry must be a dict of named values; it is {entry!r}.")
    return entry
