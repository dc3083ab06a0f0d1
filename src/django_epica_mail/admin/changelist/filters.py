"""The filters of the list of e-mails.

Each uses an indexed condition or searches recent e-mails only, and finds its choices without
scanning the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_epica_mail import clock
from django_epica_mail.admin import times
from django_epica_mail.admin.base import of_recent, recent
from django_epica_mail.admin.changelist import afterwards, links
from django_epica_mail.clock import lowest_id_at
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailQuerySet, EmailTotal
from django_epica_mail.monitoring import totals
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
            aliases = list(rows.names("transport"))
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


class CodeFilter(Filter):
    """The reply code of the last failure; 0 is none.

    The codes on offer are those that the sweep has counted, which takes a minute.
    """

    title = _("reply code")
    parameter_name = "code"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        counted = EmailTotal.objects.using(rows.db).filter(
            hour=totals.ALL_TIME, event=EmailTotal.Event.FAILED
        )
        found = counted.order_by().values_list("failure_code", flat=True)
        codes = {code for code in found if isinstance(code, int)}  # SQLite stores anything
        yield from ((str(code), str(code)) for code in sorted(codes - {0}))
        if 0 in codes:
            yield links.NO_CODE, _("without a code")

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        failed = rows.filter(failure_kind__in=Kind.values)
        if value == links.NO_CODE:
            return failed.filter(failure_code__isnull=True)
        if not (value.isascii() and value.isdigit() and len(value) == 3):
            return rows.none()
        return failed.filter(failure_code=int(value))


class AfterwardsFilter(Filter):
    """What happened to an e-mail after it was sent."""

    title = _("after sending")
    parameter_name = "after"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((it.kind.value, it.kind.label) for it in afterwards.OUTCOMES)

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        outcome = afterwards.BY_KIND.get(value)
        if outcome is None:
            return rows.none()
        events = afterwards.believed(rows.db).filter(kind=value)
        # What is rare is found by its events; of what is frequent, the newest e-mails will do.
        if not outcome.is_rare:
            events = of_recent(events)
        return rows.filter(pk__in=events.values("email"))


class QueueFilter(Filter):
    """The queue that e-mails wait in, or waited in."""

    title = _("queue")
    parameter_name = "queue"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((name, name) for name in rows.names("queue"))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return rows.filter(queue=value)


class TransportFilter(Filter):
    """The transport of an e-mail."""

    title = _("transport")
    parameter_name = "transport"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((name, name) for name in rows.names("transport"))

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
            yield str(batch.pk), times.moment(batch.created_at)

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


class EndedFilter(Filter):
    """When an e-mail ended: a period until now, or the interval that a link names."""

    title = _("ended within")
    parameter_name = "ended"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield from ((value, label) for value, (label, _period) in _PERIODS.items())

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Yield the choices, and the interval of a link that none of them names."""
        yield from super().choices(changelist)
        value = self.value()
        if value not in (None, *_PERIODS) and (span := links.bounds(value or "")):
            yield {
                "selected": True,
                "query_string": changelist.get_query_string(),
                "display": _span(*span),
            }

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        if value in _PERIODS:
            span: Any = timezone.now() - _PERIODS[value][1], None
        elif (span := links.bounds(value)) is None:
            return rows.none()
        since, until = span
        # The index of the ends begins with the kind of failure.
        ended = rows.filter(failure_kind__in=["", *Kind.values], finished_at__isnull=False)
        if since is not None:
            ended = ended.filter(finished_at__gte=since)
        return ended if until is None else ended.filter(finished_at__lt=until)


class NowFilter(Filter):
    """What waits or is in flight at this moment, as the numbers of the dashboard count it."""

    title = _("now")
    parameter_name = "now"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        yield "waiting", _("waiting")
        yield "due", _("due")
        yield "in_flight", _("in flight")
        yield "sent", _("sent in the last minute")

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        if value == "in_flight":
            held = rows.filter(lease_until__gt=clock.now(-_LONGEST_LEASE))
            return held.filter(status=Status.SENDING)
        if value == "sent":
            sent = rows.filter(failure_kind="", finished_at__gt=clock.now(-60))
            return sent.filter(status=Status.SENT)
        if value not in ("waiting", "due"):
            return rows.none()
        aliases = list(rows.names("transport"))
        waiting = rows.filter(transport__in=aliases, pending__in=LEVELS)
        return waiting.filter(due_at__lte=clock.now()) if value == "due" else waiting


class SlowedFilter(Filter):
    """The slowed domain for whose turn an e-mail waits."""

    title = _("slowed domain")
    parameter_name = "slowed"

    def offered(self, rows: EmailQuerySet) -> Iterator[tuple[str, Any]]:
        found = slowed_domains.current(rows.db).found
        yield from ((name, name) for name in sorted({it.row.domain for it in found}))

    def narrow(self, rows: EmailQuerySet, value: str) -> EmailQuerySet:
        return rows.due_to([value], list(rows.names("transport")))


FILTERS = (
    NowFilter,
    SlowedFilter,
    StatusFilter,
    AfterwardsFilter,
    FailureFilter,
    CodeFilter,
    EndedFilter,
    QueueFilter,
    TransportFilter,
    CategoryFilter,
    BatchFilter,
    PeriodFilter,
)


def _span(since: datetime | None, until: datetime | None) -> str:
    """Return an interval in the words of a reader, in the current time zone."""
    first, last = (times.moment(it) if it else "…" for it in (since, until))
    return f"{first} - {last}"
