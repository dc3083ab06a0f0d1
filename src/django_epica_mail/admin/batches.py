"""Bulk calls in the admin: progress, status counts and refused entries."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin.base import MOST, BoundedPaginator, ReadOnlyPage
from django_epica_mail.admin.detail import may_see_content
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch
from django_epica_mail.queueing import bulk
from django_epica_mail.results import refusals

_REFUSED = 200
"""The page of a batch shows at most this many refused entries."""


@admin.register(EmailBatch)
class EmailBatchAdmin(ReadOnlyPage):
    """The bulk calls, newest first."""

    list_display = ("id", "created_at", "progress", "total", "accepted", "left_out", "finished_at")
    list_per_page = 50
    ordering = ("-pk",)
    page_template = "admin/epica_mail/batch.html"
    paginator = BoundedPaginator
    show_full_result_count = False
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ("epica_mail/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[EmailBatch]:
        """Defer the long columns: the entries and those refused."""
        return super().get_queryset(request).defer("payload", "refused")

    @admin.display(description=_("progress"))
    def progress(self, batch: EmailBatch) -> SafeString:
        return progress_bar(batch)

    @admin.display(description=_("not queued"))
    def left_out(self, batch: EmailBatch) -> int:
        """Return how many entries made no mail: refused, or with a key that was used before."""
        return batch.position - batch.accepted

    def page(self, request: HttpRequest, row: EmailBatch) -> dict[str, Any]:
        """Return the progress of a batch, its status counts and its refused entries."""
        return {
            "title": row,
            "batch": row,
            "progress": progress_bar(row),
            "refusals": len(row.refused),
            "statuses": _statuses(row),
            "most": MOST,
            "refused": _refused(row, with_reasons=may_see_content(request)),
            "has_more_refused": len(row.refused) > _REFUSED,
        }


def _refused(batch: EmailBatch, *, with_reasons: bool) -> list[dict[str, Any]]:
    """Return the first refused entries; reasons quote them, so they are content."""
    shown = refusals(batch)[:_REFUSED]
    if not with_reasons:
        return [{**it, "reason": ""} for it in shown]
    return [{**it, "reason": _reason(batch, it["index"])} for it in shown]


def _reason(batch: EmailBatch, index: int) -> str:
    try:
        return bulk.reason(batch, index)
    except MissingKey as error:
        return str(error)


def progress_bar(batch: EmailBatch) -> SafeString:
    """Return how many entries of a batch are processed, as a bar and as numbers."""
    return format_html(
        '<progress max="{}" value="{}" aria-label="{}"></progress> {}/{}',
        max(batch.total, 1),
        batch.position if batch.total else 1,
        _("progress"),
        batch.position,
        batch.total,
    )


def _statuses(batch: EmailBatch) -> list[tuple[str, Any, int]]:
    """Return how many of a batch's e-mails have each status, counting at most ``MOST``."""
    mails = batch.emails.order_by().values_list("status", flat=True)[:MOST]
    found = Counter(mails)
    return [(status.value, status.label, found[status]) for status in Status if found[status]]
