"""The suppression list in the admin: search it, add entries by hand, lift and export them."""

from __future__ import annotations

import logging
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from django_epica_mail import suppression
from django_epica_mail.admin import times
from django_epica_mail.admin.base import BaseAdmin, CappedPaginator, grouped
from django_epica_mail.models import Suppression

logger = logging.getLogger(__name__)


class _Form(forms.ModelForm):  # type: ignore[type-arg]
    """An entry added by hand, once per address, scope and reason."""

    tells = True
    """Whether to say that an entry exists: only to those who may see the list."""

    address = forms.CharField(label=_("Address"), max_length=320, validators=[validate_email])

    class Meta:
        model = Suppression
        fields = ("address", "scope", "reason", "note", "expires_at")

    def clean(self) -> dict[str, Any]:
        """Return the values, and set the digest by which the address is found."""
        values = super().clean() or self.cleaned_data
        if "address" in values:
            try:
                entry = suppression.entry(
                    values["address"],
                    reason=values.get("reason", ""),
                    scope=values["scope"],
                    expires_at=values.get("expires_at"),
                )
            except (ValueError, KeyError) as error:
                raise ValidationError(str(error)) from None
            values["address"], self.instance.digest = entry.address, entry.digest
            alike = Suppression.objects.using(router.db_for_write(Suppression)).filter(
                suppression.match(entry.address), scope=entry.scope, reason=entry.reason
            )
            if self.tells and alike.exists():
                raise ValidationError(_("This address, scope and reason are already listed."))
        return values


@admin.register(Suppression)
class SuppressionAdmin(BaseAdmin):
    """The entries, newest first. Deleting an entry lifts it; entries are never changed."""

    form = _Form
    list_display = (
        "whom",
        "scope",
        "reason",
        times.column("created_at", _("created at")),
        times.column("expires_at", _("expires at")),
        "note",
    )
    list_filter = ("reason",)
    search_fields = ("id",)  # only shows the search box: see ``get_search_results``
    search_help_text = _("An address, even one that was erased.")
    ordering = ("-pk",)
    sortable_by = ()
    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count the whole table
    actions = ("export",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: lift the entry and add a new one instead."""
        return False

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """Return the form, which tells who may not see the list nothing of it."""
        form = super().get_form(request, obj, change, **kwargs)
        form.tells = self.has_view_permission(request)  # type: ignore[attr-defined]
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Add an entry; one that exists and was not told of stays as it is."""
        suppression.insert([obj])

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for an address in any spelling; its digest finds it after erasure."""
        term = search_term.strip()
        return (queryset.filter(suppression.match(term)) if term else queryset), False

    @admin.display(description=_("address"))
    def whom(self, entry: Suppression) -> str:
        """Return the address, or a placeholder if it was erased."""
        return entry.address or str(_("(erased)"))

    @admin.action(description=_("Export as CSV"), permissions=["view"])
    def export(self, request: HttpRequest, queryset: QuerySet[Any]) -> StreamingHttpResponse:
        """Return the chosen entries as a file that can be imported again."""
        logger.info("User %s exports the suppression list.", request.user.pk)
        lines = suppression.csv_lines(queryset)
        response = StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8")
        response.headers["Content-Disposition"] = 'attachment; filename="suppressions.csv"'
        response.headers["Cache-Control"] = "no-store, private"
        return response

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Lift entries, and report what that means."""
        count = queryset.count()
        super().delete_queryset(request, queryset)
        text = ngettext(
            "%(count)s address receives e-mail again from now on.",
            "%(count)s addresses receive e-mail again from now on.",
            count,
        )
        messages.info(request, text % {"count": grouped(count)})
