"""A small package that queues mail in a table of its own, and its description as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.core.mail import EmailMessage
from django.db import models
from django.utils import timezone

from django_epica_mail.lifecycle import Status
from django_epica_mail.management.importers.base import Past, Source
from django_epica_mail.models import EmailLog


class OutsideMail(models.Model):
    """A mail of the package, waiting or finished."""

    recipient = models.CharField(max_length=200, default="to@example.com")
    subject = models.CharField(max_length=200, default="Subject")
    state = models.CharField(max_length=20, default="waiting")
    alias = models.CharField(max_length=20, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        app_label = "outside"

    def __str__(self) -> str:
        return self.subject


class Outside(Source):
    """The package's table. A moved mail is marked as ``moved``."""

    package = "django-outside"
    app_label = "outside"

    def __init__(self, *, suppressed: Iterable[str] = ()) -> None:
        self.suppressed = suppressed
        self.is_held_back = False
        self.was_held_back: list[bool] = []

    def queued(self) -> models.QuerySet[Any]:
        return OutsideMail.objects.filter(state="waiting")

    def finished(self, since: datetime) -> models.QuerySet[Any]:
        return OutsideMail.objects.filter(finished_at__gte=since)

    def message(self, row: Any) -> EmailMessage:
        self.was_held_back.append(self.is_held_back)
        if row.subject == "unreadable":
            raise LookupError("its template is gone")
        return EmailMessage(row.subject, "Body", "shop@example.com", [row.recipient])

    def options(self, row: Any) -> Mapping[str, Any]:
        return {"priority": "low", "transport": row.alias or None}

    def past(self, row: Any) -> Past:
        return Past(status=Status(row.state), finished_at=row.finished_at, reply=row.note)

    def created_at(self, row: Any) -> datetime:
        created: datetime = row.created_at
        return created

    def listed(self) -> Iterable[str]:
        return self.suppressed

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        for row, log in moved:
            OutsideMail.objects.filter(pk=row.pk).update(state="moved", note=str(log.pk))

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        self.is_held_back = True
        yield
        self.is_held_back = False
