"""Finding what is recent by its id alone: ids are UUIDv7, and sort by the time they were made."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django_epica_mail.models import EmailLog, EmailQuerySet

WINDOW = 50_000
"""Among how many of the newest mails is looked for what no index has."""


def first_id(moment: datetime) -> UUID:
    """Return the smallest id that a mail made at an aware moment, or later, may have."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def recent(rows: EmailQuerySet) -> EmailQuerySet:
    """Return those of ``rows`` that are among the newest ``WINDOW`` mails of all."""
    newest = EmailLog.objects.using(rows.db).order_by("-pk").values_list("pk", flat=True)
    oldest = newest[WINDOW - 1 : WINDOW].first()
    return rows if oldest is None else rows.filter(pk__gte=oldest)
