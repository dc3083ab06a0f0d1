"""Rotates keys: encrypts stored content again with the first of the site's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import models, router

from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import encryption
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailBatchPart, EmailLog
from django_epica_mail.privacy.reasons import change_reasons
from django_epica_mail.queueing.rows import wrong_ids

_CHUNK = 100


@dataclass(slots=True)
class Renewed:
    """How many stored values were re-encrypted, current or unreadable."""

    renewed: int = 0
    """Encrypted again, or for the first time."""
    current: int = 0
    """Already encrypted with the first key."""
    unreadable: int = 0
    """Left unchanged, because none of the keys decrypts them, or somebody has replaced them."""


def reencrypt(*, advance: Callable[[int, int], None] = lambda done, total: None) -> dict[str, int]:
    """Encrypt all stored content with the first key; return the counts of ``Renewed``.

    Works row by row: it can be interrupted and started again, and mail is sent meanwhile. Calls
    ``advance`` with the number of values done and the total. Raises ``ImproperlyConfigured`` if the
    site has no key.
    """
    if not encryption.is_on():
        raise ImproperlyConfigured(
            "EPICA_MAIL['ENCRYPTION_KEYS'] is empty, so there is nothing to encrypt with."
        )
    using = router.db_for_write(EmailLog)
    texts = [
        (EmailLog.objects.using(using).exclude(envelope=""), "envelope", encryption.envelope_of),
        (EmailBatch.objects.using(using).exclude(payload=""), "payload", encryption.payload_of),
        (EmailBatchPart.objects.using(using).all(), "payload", encryption.part_of),
    ]
    attachments = EmailAttachment.objects.using(using)
    total = sum(rows.count() for rows, *_ in texts) + attachments.count()
    count, done = Renewed(), 0
    for rows, name, place_of in texts:
        for pk, stored in _values(rows, name):
            renew_text = partial(encryption.renew, stored, place_of(pk))
            _renew(rows, pk, name, stored, renew_text, count)
            done += 1
            advance(done, total)
    for pk, _ in _values(attachments, "size"):
        # One at a time, because each may be large.
        row = attachments.filter(pk=pk).first()
        if row is not None:
            old = bytes(row.content)
            renew = partial(_renewed_attachment, row, old)
            _renew(attachments, pk, "content", old, renew, count)
        done += 1
        advance(done, total)
    for reasons in change_reasons(encryption.renew, using):
        count.renewed += reasons.changed
        count.current += reasons.unchanged
        count.unreadable += reasons.unreadable
    return asdict(count)


def _renewed_attachment(row: EmailAttachment, old: bytes) -> bytes:
    row.data  # noqa: B018 - compares the digest, lest what somebody has replaced become ours
    return encryption.renew_bytes(old, row.size, encryption.attachment_of(row.digest))


def _values(rows: models.QuerySet[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the primary key and one column of each row, ordered by primary key."""
    for chunk in wrong_ids.walk(rows.values_list("pk", name), _CHUNK, itemgetter(0)):
        yield from chunk


def _renew(
    rows: models.QuerySet[Any],
    pk: Any,
    name: str,
    old: object,
    renew: Callable[[], object],
    count: Renewed,
) -> None:
    """Write one value re-encrypted, unless its row has changed since."""
    try:
        new = renew()
    except UnreadableEnvelope:
        count.unreadable += 1
        return
    if new == old:
        count.current += 1
    else:
        # Content that was deleted since must not come back.
        unchanged = {} if name == "content" else {name: old}
        count.renewed += rows.filter(pk=pk, **unchanged).update(**{name: new})
