"""The list of e-mails in the admin: its columns, its status badges and its search."""

from __future__ import annotations

from functools import reduce
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.db import connections
from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin.base import BoundedPaginator, recent
from django_epica_mail.admin.detail import Detail
from django_epica_mail.admin.filters import FILTERS
from django_epica_mail.admin.operations import ACTIONS, OperatePermission
from django_epica_mail.admin.previews import Previews
from django_epica_mail.messages.addresses import canonical, is_complete
from django_epica_mail.models import EmailLog, EmailQuerySet, EmailRecipient
from django_epica_mail.rules import address_pattern

SEARCH_HELP = _(
    "An id, a Message-ID in angle brackets, an address or the beginning of one (name@ or name*), "
    "or words from the subject (of the newest 50,000 e-mails)."
)
_RECIPIENTS = 3
"""The list names this many recipients of an e-mail."""
_LINE = 120
"""Characters of a subject in the list."""
_MOST_LOOKED_UP = 1_000
"""An address with more e-mails than this is searched for only among the newest."""
_LAST = "\U0010ffff"
"""Sorts after every other character."""


@admin.register(EmailLog)
class EmailLogAdmin(OperatePermission, Previews, Detail):
    """The e-mails, newest first, without their content."""

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
    search_fields = ("id",)  # only shows the search box: ``search`` finds the rows
    search_help_text = SEARCH_HELP
    ordering = ("-pk",)
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ("epica_mail/admin.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[EmailLog]:
        """Defer the content, and prefetch the first recipients."""
        first = EmailRecipient.objects.filter(position__lte=_RECIPIENTS).order_by("position")
        rows = super().get_queryset(request).defer("envelope")
        return rows.prefetch_related(Prefetch("recipients", first, to_attr="first_recipients"))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by what the term looks like; results have no duplicates."""
        return search(queryset, search_term), False  # type: ignore[arg-type]

    @admin.display(description=_("status"))
    def state(self, mail: EmailLog) -> SafeString:
        return status_badge(mail)

    @admin.display(description=_("subject"))
    def title(self, mail: EmailLog) -> str:
        return Truncator(mail.subject).chars(_LINE) or str(_("(no subject)"))

    @admin.display(description=_("recipients"))
    def addressees(self, mail: EmailLog) -> str:
        addresses = [recipient.address for recipient in mail.first_recipients]  # type: ignore[attr-defined]
        more = ", …" if len(addresses) > _RECIPIENTS else ""
        return ", ".join(addresses[:_RECIPIENTS]) + more

    @admin.display(description=_("attempts"))
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


def status_badge(mail: EmailLog) -> SafeString:
    """Return the status of an e-mail as a coloured badge with its name."""
    return format_html(
        '<span class="epica-badge epica-{}">{}</span>', mail.status, mail.get_status_display()
    )


def search(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    """Return the ``rows`` that match a search term; its form decides what is searched."""
    term = term.strip()
    if not term:
        return rows
    if (pk := _uuid(term)) is not None:
        return rows.filter(pk=pk)
    if term.startswith("<") and term.endswith(">"):
        return rows.filter(message_id=term)
    if term.startswith("@"):
        return _to(recent(rows), Q(address__endswith=address_pattern(term)))
    if is_complete(address := canonical(term)):
        return _addressed(rows, address)
    if " " not in term and ("@" in term or term.endswith("*")):
        return _addressed(rows, address_pattern(term).rstrip("*"))
    words = (Q(subject__icontains=word) for word in term.split())
    return recent(rows).filter(reduce(Q.__and__, words))


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _addressed(rows: EmailQuerySet, beginning: str) -> EmailQuerySet:
    condition = _starts_with(beginning, rows.db)
    recipients = EmailRecipient.objects.using(rows.db).filter(condition).order_by()
    ids = list(recipients.values_list("email_id", flat=True)[: _MOST_LOOKED_UP + 1])
    if len(ids) <= _MOST_LOOKED_UP:
        return rows.filter(pk__in=set(ids))
    return _to(recent(rows), condition)


def _to(rows: EmailQuerySet, condition: Q) -> EmailQuerySet:
    """Return the recent ``rows`` with a recipient that meets a condition."""
    recipients = recent(EmailLog.objects.using(rows.db)).filter(
        pk__in=EmailRecipient.objects.using(rows.db).filter(condition).values("email")
    )
    return rows.filter(pk__in=recipients.values("pk"))


def _starts_with(text: str, using: str) -> Q:
    """Return a condition on the beginning of an address that the database's index can serve."""
    vendor = connections[using].vendor
    if vendor == "mysql":  # where ``startswith`` is LIKE BINARY, which cannot use the index
        return Q(address__istartswith=text)
    if vendor == "sqlite":  # where LIKE cannot use the index
        return Q(address__gte=text, address__lt=text + _LAST)
    return Q(address__startswith=text)
