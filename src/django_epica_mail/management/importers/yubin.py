"""The table of django-yubin: ``Message``, which stores mail as built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.mail import EmailMessage
from django.db.models import Q, QuerySet
from django.db.models.functions import Coalesce

from django_epica_mail.lifecycle import Status
from django_epica_mail.management.importers.base import Past, Source
from django_epica_mail.messages import RawMessage
from django_epica_mail.models import EmailLog

APP = "django_yubin"

_LINE_END = re.compile(r"\r\n|\r|\n")

_CREATED, _QUEUED, _IN_PROCESS, _SENT, _FAILED, _BLACKLISTED, _DISCARDED = range(7)
_ENDS = {
    _SENT: Status.SENT,
    _FAILED: Status.FAILED,
    _BLACKLISTED: Status.SUPPRESSED,
    _DISCARDED: Status.CANCELLED,
}


class Tables(Source):
    """The ``Message`` table. A moved mail is marked as sent, and a log entry names its new row.

    django-yubin's task locks the row it is about to send, and skips rows marked as sent.
    """

    package = "django-yubin"
    app_label = "django_yubin"

    def queued(self) -> QuerySet[Any]:
        """Return mail that is created or queued, but none that a worker is sending."""
        return self._rows().filter(status__in=(_CREATED, _QUEUED))

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return mail that was sent, has failed, or was blacklisted or discarded."""
        recent = Q(date_sent__gte=since) | Q(date_sent=None, date_created__gte=since)
        return self._rows().filter(recent, status__in=_ENDS)

    def _rows(self) -> QuerySet[Any]:
        ended_at = Coalesce("date_sent", "date_enqueued", "date_created")
        rows: QuerySet[Any] = self.rows("Message").annotate(ended_at=ended_at)
        return rows

    def message(self, row: Any) -> EmailMessage:
        """Return the mail as it was built, without parsing and rebuilding it.

        It is stored as text. Django writes non-ASCII text in 8bit only as UTF-8, so that is the
        encoding of the bytes.
        """
        text = _LINE_END.sub("\r\n", row.message_data)
        message = RawMessage(text.encode("utf-8", "surrogateescape"), row.recipients())
        message.subject, message.from_email = row.subject, row.from_address
        message.to, message.cc, message.bcc = row.to(), row.cc(), row.bcc()
        return message

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return nothing: rows have neither a priority nor times."""
        return {}

    def past(self, row: Any) -> Past:
        """Return the status, time and last log message of a finished mail."""
        last = row.log_set.order_by("-pk").first()
        reply = last.log_message if last is not None else ""
        return Past(status=_ENDS[row.status], finished_at=row.ended_at, reply=reply)

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was queued."""
        created: datetime = row.date_created
        return created

    def listed(self) -> Iterable[str]:
        """Return the addresses of its blacklist."""
        entries = self.rows("Blacklist").order_by("pk")
        addresses: Iterable[str] = entries.values_list("email", flat=True).iterator()
        return addresses

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Mark the rows as sent, so that the task skips them, and log where the mail went."""
        messages, logs = self.rows("Message"), self.rows("Log")
        messages.filter(pk__in=[row.pk for row, _ in moved]).update(status=_SENT)
        logs.bulk_create(
            [
                logs.model(
                    message=row, action=_SENT, log_message=f"Moved to django-epica-mail: {log.pk}"
                )
                for row, log in moved
            ]
        )
