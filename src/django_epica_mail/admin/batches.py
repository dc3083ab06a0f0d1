"""Bulk calls in the admin: progress, status counts and refused entries."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from django_epica_mail import spreadsheets
from django_epica_mail.admin import times
from django_epica_mail.admin.base import (
    MOST,
    BoundedPaginator,
    ReadOnlyPage,
    grouped,
    of_words,
    recent,
)
from django_epica_mail.admin.detail import may_see_content
from django_epica_mail.admin.export import cell
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk

_GROUPS = 100
"""The page of a batch shows at most this many reasons for which entries were refused."""
_INDEXES = 10
"""It names at most this many entries of each."""
_LINE = 120
"""Characters of a subject."""


@admin.register(EmailBatch)
class EmailBatchAdmin(ReadOnlyPage):
    """The bulk calls, newest first."""

    list_display = (
        "title",
        times.column("created_at", _("created at")),
        "progress",
        "queued",
        "left_out",
        times.column("finished_at", _("finished at")),
    )
    search_fields = ("id",)  # only shows the search box: see ``get_search_results``
    search_help_text = _("An id, or words from a subject (of the newest 50,000 e-mails).")
    list_per_page = 50
    ordering = ("-pk",)
    page_template = "admin/epica_mail/batch.html"
    paginator = BoundedPaginator
    show_full_result_count = False
    sortable_by = ()

    def get_urls(self) -> list[URLPattern]:
        """Add the URL of the refused entries as a file."""
        view = self.admin_site.admin_view(self.refused_view)
        own = path("<uuid:pk>/refused.csv", view, name="epica_mail_emailbatch_refused")
        return [own, *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Defer the long columns, the entries and those refused, and add a subject if it may show.

        It is that of the first e-mail that the index of batches finds: which one is the first of
        all is not worth reading the others for.
        """
        rows: QuerySet[Any] = super().get_queryset(request).defer("payload", "refused")
        if not _may_see_subjects(request):
            return rows
        mails = EmailLog.objects.using(rows.db).filter(batch=OuterRef("pk")).order_by()
        subject = Subquery(mails.values("subject")[:1])
        return rows.annotate(first_subject=subject)  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by the id of a batch or of one of its e-mails, or by words of their subjects."""
        term = search_term.strip()
        if not term:
            return queryset, False
        mails = EmailLog.objects.using(queryset.db).filter(batch__isnull=False).order_by()
        with contextlib.suppress(ValueError):
            pk = UUID(term)
            return queryset.filter(Q(pk=pk) | Q(pk__in=mails.filter(pk=pk).values("batch"))), False
        if not _may_see_subjects(request):
            return queryset.none(), False
        found = recent(mails).filter(of_words(term))
        return queryset.filter(pk__in=found.values("batch")), False

    @admin.display(description=_("batch"))
    def title(self, batch: EmailBatch) -> str:
        """Return the subject of its first e-mail, or its id."""
        return Truncator(getattr(batch, "first_subject", "") or str(batch.pk)).chars(_LINE)

    @admin.display(description=_("progress"))
    def progress(self, batch: EmailBatch) -> SafeString:
        return progress_bar(batch)

    @admin.display(description=_("accepted"))
    def queued(self, batch: EmailBatch) -> str:
        """Return how many entries made a mail."""
        return grouped(batch.accepted)

    @admin.display(description=_("not queued"))
    def left_out(self, batch: EmailBatch) -> str:
        """Return how many entries made no mail: refused, or with a key that was used before."""
        return grouped(batch.position - batch.accepted)

    def page(self, request: HttpRequest, row: EmailBatch) -> dict[str, Any]:
        """Return the progress of a batch, its status counts and its refused entries."""
        may_see_reasons = may_see_content(request)
        groups = _grouped(row)
        return {
            "title": self.title(row),
            "batch": row,
            "called_at": times.moment(row.created_at),
            "finished_at": times.moment(row.finished_at) if row.finished_at else "",
            "progress": progress_bar(row),
            "refusals": len(row.refused),
            "statuses": _statuses(row),
            "most": MOST,
            "groups": [_group(row, its, with_reason=may_see_reasons) for its in groups[:_GROUPS]],
            "has_more_groups": len(groups) > _GROUPS,
            "may_see_reasons": may_see_reasons,
        }

    def refused_view(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """Return the refused entries as CSV; their reasons quote them, so they are content."""
        if not (self.has_view_permission(request) and may_see_content(request)):
            raise PermissionDenied
        batch = self.get_object(request, str(pk))
        if batch is None:
            raise Http404("There is no such batch.")
        response = StreamingHttpResponse(_lines(batch), content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="refused-{pk}.csv"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Cache-Control"] = "no-store, private"
        return response


def _may_see_subjects(request: HttpRequest) -> bool:
    return request.user.has_perm("epica_mail.view_emaillog")


def _grouped(batch: EmailBatch) -> list[list[dict[str, Any]]]:
    """Return the refused entries in groups of one error and rule, the largest group first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in batch.refused:
        groups.setdefault((entry.get("error", ""), entry.get("rule", "")), []).append(entry)
    return sorted(groups.values(), key=len, reverse=True)


def _group(batch: EmailBatch, its: list[dict[str, Any]], *, with_reason: bool) -> dict[str, Any]:
    """Return what the page shows of a group, with the reason of its first entry as an example."""
    first = its[0]
    return {
        "count": len(its),
        "error": first.get("error", ""),
        "rule": first.get("rule", ""),
        "indexes": ", ".join(str(it["index"]) for it in its[:_INDEXES]),
        "has_more": len(its) > _INDEXES,
        "reason": _reason(batch, first) if with_reason else "",
    }


def _lines(batch: EmailBatch) -> Iterator[str]:
    yield "\ufeff"  # tells Excel that the file is UTF-8
    yield spreadsheets.line(("index", "error", "rule", "reason"), quotes_all=True)
    for entry in batch.refused:
        reason = _reason(batch, entry)
        values = (entry["index"], entry.get("error", ""), entry.get("rule", ""), reason)
        yield spreadsheets.line(map(cell, values), quotes_all=True)


def _reason(batch: EmailBatch, entry: dict[str, Any]) -> str:
    """Return why an entry was refused, or why that cannot be read."""
    try:
        return bulk.reason_of(batch, entry)
    except MissingKey as error:
        return str(error)


def progress_bar(batch: EmailBatch) -> SafeString:
    """Return how many entries of a batch are processed, as a bar and as numbers."""
    return format_html(
        '<progress max="{}" value="{}" aria-label="{}"></progress> {}/{}',
        max(batch.total, 1),
        batch.position if batch.total else 1,
        _("progress"),
        grouped(batch.position),
        grouped(batch.total),
    )


def _statuses(batch: EmailBatch) -> list[tuple[str, Any, int]]:
    """Return how many of a batch's e-mails have each status, counting at most ``MOST``."""
    mails = batch.emails.order_by().values_list("status", flat=True)[:MOST]
    found = Counter(mails)
    return [(status.value, status.label, found[status]) for status in Status if found[status]]
