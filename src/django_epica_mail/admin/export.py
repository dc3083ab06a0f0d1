"""The CSV export of e-mails: their data and subjects, but no other content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import router
from django.http import StreamingHttpResponse
from django.utils import timezone

from django_epica_mail import spreadsheets
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
_CHUNK = 500
"""This many e-mails are read at a time."""


def cell(value: Any) -> str:
    """Return a value as the text of a cell; times are local, to the second."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return timezone.localtime(value).isoformat(timespec="seconds")
    return spreadsheets.escape(str(value).replace("\0", ""))


def export(ids: Sequence[UUID]) -> StreamingHttpResponse:
    """Return a CSV download of the e-mails with these ids, in this order."""
    response = StreamingHttpResponse(_lines(ids), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="e-mails.csv"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "no-store, private"
    return response


def _lines(ids: Sequence[UUID]) -> Iterator[str]:
    yield "\ufeff"  # tells Excel that the file is UTF-8
    yield _line([*COLUMNS, "recipients"])
    using = router.db_for_read(EmailLog)
    for chunk in batched(ids, _CHUNK):
        rows = EmailLog.objects.using(using).only(*COLUMNS).in_bulk(chunk)
        addresses = _addresses(chunk, using)
        for pk in chunk:
            if (mail := rows.get(pk)) is not None:
                values = [getattr(mail, name) for name in COLUMNS]
                yield _line(map(cell, [*values, " ".join(addresses.get(pk, []))]))


def _line(cells: Iterable[str]) -> str:
    return spreadsheets.line(cells, quotes_all=True)


def _addresses(ids: Sequence[UUID], using: str) -> dict[UUID, list[str]]:
    found: dict[UUID, list[str]] = {}
    recipients = EmailRecipient.objects.using(using).filter(email__in=ids)
    for email_id, address in recipients.order_by("position").values_list("email_id", "address"):
        found.setdefault(email_id, []).append(address)
    return found
