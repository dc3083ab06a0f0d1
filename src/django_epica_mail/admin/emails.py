"""The list of mails in the admin: what became of each."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin.badges import badge
from django_epica_mail.admin.detail import Detail
from django_epica_mail.admin.filters import FILTERS
from django_epica_mail.admin.operations import ACTIONS, Operations
from django_epica_mail.admin.pagination import BoundedPaginator
from django_epica_mail.admin.previews import Previews
from django_epica_mail.admin.search import HELP, search
from django_epica_mail.models import EmailLog, EmailRecipient

_RECIPIENTS = 3
"""How many recipients of a mail the list names."""


@admin.register(EmailLog)
class EmailLogAdmin(Operations, Previews, Detail):
    """The mails, newest first; never their content."""

    list_display = (
        "state",
        "age",
        "title",
        "addressees",
        "category",
        "queue",
        "transport",
        "attempted",
    )
    list_display_links = ("title",)
    list_filter = FILTERS
    actions = ACTIONS
    list_per_page = 50
    list_max_show_all = 500
    show_facets = admin.ShowFacets.NEVER  # they count the whole table
    show_full_result_count = False
    paginator = BoundedPaginator
    search_fields = ("id",)  # shows the box; what is found is decided by ``search``
    search_help_text = HELP
    ordering = ("-pk",)
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ("epica_mail/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[EmailLog]:
        """Leave the content out, and fetch the first recipients with the rows."""
        first = EmailRecipient.objects.filter(position__lte=_RECIPIENTS).order_by("position")
        rows = super().get_queryset(request).defer("envelope")
        return rows.prefetch_related(Prefetch("recipients", first, to_attr="first_recipients"))

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow the filters only: others would ask of columns that may not be shown."""
        return lookup in {filter_.parameter_name for filter_ in FILTERS}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find by what the term looks like; never twice the same."""
        return search(queryset, search_term), False  # type: ignore[arg-type]

    @admin.display(description=_("status"))
    def state(self, mail: EmailLog) -> SafeString:
        return badge(mail)

    @admin.display(description=_("subject"))
    def title(self, mail: EmailLog) -> str:
        return mail.subject or str(_("(no subject)"))

    @admin.display(description=_("recipients"))
    def addressees(self, mail: EmailLog) -> str:
        addresses = [recipient.address for recipient in mail.first_recipients]  # type: ignore[attr-defined]
        more = ", …" if len(addresses) > _RECIPIENTS else ""
        return ", ".join(addresses[:_RECIPIENTS]) + more

    @admin.display(description=_("tries"))
    def attempted(self, mail: EmailLog) -> int:
        return mail.attempts

    @admin.display(description=_("age"))
    def age(self, mail: EmailLog) -> SafeString:
        at = timezone.localtime(mail.created_at)
        return format_html(
            '<time datetime="{}" title="{}">{}</time>',
            at.isoformat(),
            localize(at),
            timesince(mail.created_at, depth=1),
        )
