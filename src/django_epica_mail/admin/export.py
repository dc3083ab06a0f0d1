"""Mails as CSV: what is known of them, and nothing of what they say beyond their subject."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import router
from django.http import StreamingHttpResponse
from django.utils import timezone

from django_epica_mail._compat import batched
from django_epica_mail.models import EmailLog, EmailRecipient

COLUMNS = (
    "id",
    "status",
    "queue",
    "transport",
    "category",
    "priority",
    "created_at",
    "due_at",
    "finished_at",
    "from_email",
    "subject",
    "message_id",
    "attempts",
    "tries",
    "failure_kind",
    "failure_code",
    "reply",
    "worker",
    "batch_id",
)
_PORTION = 500
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class _Line:
    """Takes what ``csv`` writes, and gives it back."""

    def write(self, value: str) -> str:
        return value


def cell(value: Any) -> str:
    """Return a value as text that no spreadsheet takes for a formula.

    The rule is OWASP's (CSV Injection): what begins like one is put behind an apostrophe.
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat(timespec="seconds")
    text = str(value).replace("\0", "")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def export(ids: Sequence[UUID]) -> StreamingHttpResponse:
    """Return a download of the mails with these ids, in this order."""
    response = StreamingHttpResponse(_lines(ids), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="e-mails.csv"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "no-store, private"
    return response


def _lines(ids: Sequence[UUID]) -> Iterator[str]:
    writer: Any = csv.writer(_Line(), quoting=csv.QUOTE_ALL)
    yield "\ufeff"  # by which Excel knows UTF-8
    yield writer.writerow([*COLUMNS, "recipients"])
    using = router.db_for_read(EmailLog)
    for portion in batched(ids, _PORTION):
        rows = EmailLog.objects.using(using).only(*COLUMNS).in_bulk(portion)
        addresses = _addresses(portion, using)
        for pk in portion:
            if (mail := rows.get(pk)) is not None:
                values = [getattr(mail, name) for name in COLUMNS]
                yield writer.writerow(map(cell, [*values, " ".join(addresses.get(pk, []))]))


def _addresses(ids: Sequence[UUID], using: str) -> dict[UUID, list[str]]:
    found: dict[UUID, list[str]] = {}
    recipients = EmailRecipient.objects.using(using).filter(email__in=ids)
    for email_id, address in recipients.order_by("position").values_list("email_id", "address"):
        found.setdefault(email_id, []).append(address)
    return found
