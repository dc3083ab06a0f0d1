"""Delivery events in the admin: what happened to e-mails after they were sent."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail.admin import times
from django_epica_mail.admin.base import BaseAdmin, CappedPaginator, ReadOnly
from django_epica_mail.admin.changelist import links
from django_epica_mail.admin.detail import may_see_content
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailEvent


@admin.register(EmailEvent)
class EmailEventAdmin(ReadOnly, BaseAdmin):
    """The events, newest first."""

    list_display = (
        times.column("at", pgettext_lazy("time", "at")),
        "kind",
        "address",
        "mail",
        "source",
        "reason",
        "is_machine",
    )
    list_filter = ("kind", "is_machine")
    list_select_related = False
    search_fields = ("id",)  # only shows the search box: see ``get_search_results``
    search_help_text = _("An address, an e-mail's id or a provider's id, in full.")
    ordering = ("-pk",)
    sortable_by = ()
    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count the whole table

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for an exact address or id, which are indexed."""
        term = search_term.strip()
        if not term:
            return queryset, False
        wanted = Q(address=canonical(term)) | Q(provider_id=term)
        with contextlib.suppress(ValueError):
            wanted |= Q(email=UUID(term))
        return queryset.filter(wanted), False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Leave the link out for those who may not see content, of which it is a part."""
        names = super().get_fields(request, obj)
        return [name for name in names if name != "url" or may_see_content(request)]

    @admin.display(description=_("e-mail"))
    def mail(self, event: EmailEvent) -> SafeString | str:
        """Return a link to the event's e-mail."""
        if event.email_id is None:
            return "-"
        page = links.page_url(self.admin_site, "emaillog_change", event.email_id)
        return format_html('<a href="{}">{}</a>', page, event.email_id)
