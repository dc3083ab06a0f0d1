"""The filters of the list of e-mails.

Each uses an indexed condition or searches recent e-mails only, and finds its choices without
scanning the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Min, Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import localize
from django.utils.translation import gettext_lazy as _

from django_epica_mail import clock
from django_epica_mail.admin.base import recent
from django_epica_mail.clock import lowest_id_at
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS

_LONGEST_LEASE = timedelta(days=365)
_CATEGORIES_OF = 5_000
"""The categories on offer are those of this many of the newest e-mails."""
_BATCHES = 5
"""This many of the newest bulk calls are on offer."""
_PERIODS = {
    "hour": (_("the last hour"), timedelta(hours=1)),
    "day": (_("the last 24 hours"), timedelta(days=1)),
    "week": (_("the last 7 days"), timedelta(days=7)),
    "month": (_("the last 30 days"), timedelta(days=30)),
}

Choices = list[tuple[str, Any]]


class Filter(admin.SimpleListFilter):
    """A choice of one value, given in the query string as ``parameter_name``."""

    def has_output(self) -> bool:
        """Return whether the filter takes part: also without choices, if the query names a value.

        Django leaves out a filter without choices, and shows every row as if it matched.
        """
        return super().has_output() or self.value() is not None

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        rows: EmailQuerySet = model_admin.model._default_manager.all()
        return list(self.offered(rows))

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset if value is None else self.narrow(queryset, value)

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        """Yield the values to choose from, with their labels."""
        raise NotImplementedError

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        """Return the ``rows`` that match a value; an unknown value matches none."""
        raise NotImplementedError


class StatusFilter(Filter):
    """The status of an e-mail.

    No index covers the status, because every write would pay for it. So each condition also names
    what the status implies about columns that an index does cover.
    """

    title = _("status")
    parameter_name = "status"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from Status.choices

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        found = rows.filter(status=value)
        if value in (Status.QUEUED, Status.RETRYING):
            aliases = list(_hop(rows, "transport"))
            return found.filter(transport__in=aliases, pending__in=LEVELS)
        if value == Status.SENDING:
            return found.filter(lease_until__gt=clock.now(-_LONGEST_LEASE))
        if value == Status.UNKNOWN:
            return found.filter(failure_kind__in=Kind.values, finished_at__isnull=True)
        if value == Status.FAILED:
            return found.filter(failure_kind__in=Kind.values, finished_at__isnull=False)
        if value == Status.SENT:
            return found.filter(failure_kind__in=["", *Kind.values], finished_at__isnull=False)
        return recent(found)


class FailureFilter(Filter):
    """Why the last attempt failed."""

    title = _("failure")
    parameter_name = "failure_kind"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from Kind.choices

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return rows.filter(failure_kind=value)


class QueueFilter(Filter):
    """The queue that e-mails wait in, or waited in."""

    title = _("queue")
    parameter_name = "queue"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((name, name) for name in _hop(rows, "queue"))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return rows.filter(queue=value)


class TransportFilter(Filter):
    """The transport of an e-mail."""

    title = _("transport")
    parameter_name = "transport"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((name, name) for name in _hop(rows, "transport"))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return rows.filter(transport=value)


class CategoryFilter(Filter):
    """The category that the site gave an e-mail."""

    title = _("category (of recent e-mails)")
    parameter_name = "category"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        newest = rows.order_by("-pk").values("category")[:_CATEGORIES_OF]
        names = {row["category"] for row in newest} - {""}
        yield from ((name, name) for name in sorted(names))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return recent(rows).filter(category=value)


class BatchFilter(Filter):
    """The bulk call that made an e-mail."""

    title = _("batch")
    parameter_name = "batch"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        batches = EmailBatch.objects.using(rows.db).order_by("-pk").only("pk", "created_at")
        for batch in batches[:_BATCHES]:
            yield str(batch.pk), localize(timezone.localtime(batch.created_at))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        try:
            return rows.filter(batch_id=UUID(value))
        except ValueError:
            return rows.none()


class PeriodFilter(Filter):
    """How recently an e-mail was queued."""

    title = _("queued within")
    parameter_name = "since"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((value, label) for value, (label, _period) in _PERIODS.items())

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        if value not in _PERIODS:
            return rows.none()
        _label, period = _PERIODS[value]
        return rows.filter(pk__gte=lowest_id_at(timezone.now() - period))


FILTERS = (
    StatusFilter,
    FailureFilter,
    QueueFilter,
    TransportFilter,
    CategoryFilter,
    BatchFilter,
    PeriodFilter,
)


def _hop(rows: EmailQuerySet, column: str) -> Iterator[str]:
    """Yield the values of a column that leads an index, by one index lookup for each."""
    name = ""
    every = EmailLog.objects.using(rows.db)
    while True:
        name = every.filter(Q((f"{column}__gt", name))).aggregate(name=Min(column))["name"]
        if name is None:
            return
        yield name
