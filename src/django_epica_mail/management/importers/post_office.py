"""The tables of django-post_office: ``Email``, with its attachments, templates and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from typing import Any

from django.core.mail import EmailMessage
from django.db.models import QuerySet

from django_epica_mail.lifecycle import Status
from django_epica_mail.management.importers.base import CannotImport, Past, Source, aware
from django_epica_mail.models import EmailLog

APP = "post_office"

_SENT, _FAILED, _QUEUED, _REQUEUED = range(4)
"""The values of ``status``; a row without one is sent at once by the process that made it."""

_PRIORITIES = {0: "low", 1: "normal", 2: "high", 3: "urgent"}


class Tables(Source):
    """The ``Email`` table. A moved mail is marked as sent, and a log entry names its new row."""

    package = "django-post_office"
    app_label = "post_office"

    def queued(self) -> QuerySet[Any]:
        """Return mail that is queued or queued again."""
        return self._rows().filter(status__in=(_QUEUED, _REQUEUED))

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return mail that was sent or has failed."""
        return self._rows().filter(status__in=(_SENT, _FAILED), last_updated__gte=since)

    def _rows(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.rows("Email").all()
        return rows.prefetch_related("attachments", "template")

    def message(self, row: Any) -> EmailMessage:
        """Return the message as django-post_office builds it, from its template if it has one."""
        message: EmailMessage = row.prepare_email_message()
        return message

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return priority, times and the backend's alias, which may name one of our transports."""
        return {
            "priority": _PRIORITIES.get(row.priority),
            "send_at": row.scheduled_time and aware(row.scheduled_time),
            "expires_at": row.expires_at and aware(row.expires_at),
            "transport": row.backend_alias or None,
        }

    def past(self, row: Any) -> Past:
        """Return the status, time and last log message of a finished mail."""
        status = Status.SENT if row.status == _SENT else Status.FAILED
        last = row.logs.order_by("-pk").first()
        reply = last.message if last is not None else ""
        return Past(status=status, finished_at=row.last_updated, reply=reply)

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was queued."""
        created: datetime = row.created
        return created

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Mark the rows as sent, so that they are skipped, and log where the mail went."""
        emails, logs = self.rows("Email"), self.rows("Log")
        emails.filter(pk__in=[row.pk for row, _ in moved]).update(status=_SENT)
        logs.bulk_create(
            [
                logs.model(email=row, status=_SENT, message=f"Moved to django-epica-mail: {log.pk}")
                for row, log in moved
            ]
        )

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Hold the lock file that allows one sender at a time on this machine.

        django-post_office locks no rows and sends what it has read before, so no sender may run.
        """
        lockfile = import_module("post_office.lockfile")
        try:
            with lockfile.FileLock(lockfile.default_lockfile):
                yield
        except lockfile.FileLocked:
            raise CannotImport(
                "django-post_office is sending on this machine. Stop what runs it "
                "(send_queued_mail, or its Celery task) and try again."
            ) from None
