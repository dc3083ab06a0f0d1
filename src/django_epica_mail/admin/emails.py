"""The list of e-mails in the admin: its rows, and what can be done to all that it matches."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timesince import timesince
from django.utils.translation import gettext, pgettext
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin import times
from django_epica_mail.admin.base import AtLeast, BoundedPaginator, PagedList
from django_epica_mail.admin.changelist import afterwards, links
from django_epica_mail.admin.changelist.filters import FILTERS, StatusFilter
from django_epica_mail.admin.changelist.search import search, tried
from django_epica_mail.admin.detail import Detail
from django_epica_mail.admin.operations import ACTIONS, OperatePermission, for_statuses
from django_epica_mail.admin.previews import Previews
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailRecipient

SEARCH_HELP = _(
    "An id, a Message-ID, a provider's id, an address or its beginning, a domain, or words from "
    "the subject."
)
_RECIPIENTS = 3
"""The list names this many recipients of an e-mail."""
_LINE = 120
"""Characters of a subject in the list."""


class EmailList(PagedList):
    """A page of the list, whose e-mails know what happened to them after they were sent."""

    def get_results(self, request: HttpRequest) -> None:
        """Fetch the e-mails of the page, and the outcomes of all of them at once."""
        super().get_results(request)
        mails = self.result_list = list(self.result_list)
        if mails:
            found = afterwards.of_each((it.pk for it in mails), mails[0]._state.db)
            for mail in mails:
                mail.afterwards = found.get(mail.pk)


@admin.register(EmailLog)
class EmailLogAdmin(OperatePermission, Previews, Detail):
    """The e-mails, newest first, without their content."""

    list_display = ("state", "mail", "place", "age")
    list_display_links = None  # the cell of the e-mail has the link, and text that can be copied
    list_filter = FILTERS
    actions = ACTIONS
    list_per_page = 50
    list_max_show_all = 500
    show_facets = admin.ShowFacets.NEVER  # they count the whole table
    show_full_result_count = False
    paginator = BoundedPaginator
    search_fields = ("id",)  # only shows the search box: ``search`` finds the rows
    search_help_text = SEARCH_HELP
    ordering = ("-pk",)
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[EmailLog]:
        """Defer the content, and prefetch the first recipients."""
        first = EmailRecipient.objects.filter(position__lte=_RECIPIENTS).order_by("position")
        rows = super().get_queryset(request).defer("envelope")
        return rows.prefetch_related(Prefetch("recipients", first, to_attr="first_recipients"))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the class of a page of the list."""
        return EmailList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by what the term looks like; results have no duplicates."""
        return search(queryset, search_term), False  # type: ignore[arg-type]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Show the list, what a vain search tried, and the operations on all that matches."""
        response = super().changelist_view(request, extra_context)
        if isinstance(response, TemplateResponse) and "cl" in (response.context_data or {}):
            context: Any = response.context_data
            context.update(self._narrowed(request, context["cl"]))
        return response

    def _narrowed(self, request: HttpRequest, changelist: Any) -> dict[str, Any]:
        """Return the context of a list that filters or a search have narrowed."""
        active = [it for it in FILTERS if it.parameter_name in request.GET]
        context: dict[str, Any] = {"active_filters": len(active)}
        if changelist.query and not changelist.result_count:
            context["tried"] = tried(changelist.query)
        is_narrowed = active or changelist.query
        is_bounded = changelist.result_count > 0 and not isinstance(
            changelist.result_count, AtLeast
        )
        if is_narrowed and is_bounded and self.has_operate_permission(request):
            seen = {mail.status for mail in changelist.result_list}
            has_all = changelist.result_count == len(changelist.result_list)
            is_of_one = StatusFilter.parameter_name in request.GET
            context["matching"] = for_statuses(seen if has_all or is_of_one else Status.values)
            context["first"] = changelist.result_list[0].pk
        return context

    @admin.display(description=_("status"))
    def state(self, mail: EmailLog) -> SafeString:
        """Return the status, what happened afterwards, and the reason of a failure."""
        return format_html(
            "{} {}{}",
            status_badge(mail),
            afterwards.badge(getattr(mail, "afterwards", None)),
            format_html('<span class="epica-under">{}</span>', why)
            if (why := reason(mail))
            else "",
        )

    @admin.display(description=_("e-mail"))
    def mail(self, mail: EmailLog) -> SafeString:
        """Return the subject, as a link to the e-mail's page, over its recipients."""
        addresses = [recipient.address for recipient in mail.first_recipients]  # type: ignore[attr-defined]
        more = ", …" if len(addresses) > _RECIPIENTS else ""
        return format_html(
            '<a class="epica-subject" dir="auto" href="{}">{}</a>'
            '<span class="epica-under" dir="auto">{}</span>',
            links.page_url(self.admin_site, "emaillog_change", mail.pk),
            Truncator(mail.subject).chars(_LINE) or gettext("(no subject)"),
            ", ".join(addresses[:_RECIPIENTS]) + more,
        )

    @admin.display(description=_("queue, transport, category"))
    def place(self, mail: EmailLog) -> SafeString:
        """Return where an e-mail waits and which way it goes, in small print."""
        names = filter(None, (mail.queue, mail.transport, mail.category))
        lines = ((name,) for name in names)
        return format_html_join("", '<span class="epica-line">{}</span>', lines)

    @admin.display(description=_("age"))
    def age(self, mail: EmailLog) -> SafeString:
        """Return when an e-mail was queued, by the clock and as its age."""
        return format_html(
            '{}<span class="epica-under">{}</span>',
            times.element(mail.created_at, times.clock(mail.created_at)),
            pgettext("age", "%(time)s ago") % {"time": timesince(mail.created_at, depth=1)},
        )


def status_badge(mail: EmailLog) -> SafeString:
    """Return the status of an e-mail as a coloured badge with its name."""
    return format_html(
        '<span class="epica-badge epica-{}">{}</span>', mail.status, mail.get_status_display()
    )


def reason(mail: EmailLog) -> str:
    """Return why the last attempt failed, with the reply code; empty if none failed."""
    words = [mail.get_failure_kind_display() if mail.failure_kind else "", mail.failure_code]
    return ", ".join(str(it) for it in words if it)
