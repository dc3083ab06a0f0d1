"""What every page of the admin has in common: rows that no hand changes, and who may operate."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.formats import number_format

from django_epica_mail.models import EmailLog, EmailQuerySet


def may_operate(request: HttpRequest) -> bool:
    """Tell whether a person may move mail, and stop queues and transports and let them go on."""
    return request.user.has_perm("epica_mail.operate_emaillog")


class ReadOnly:
    """Shows rows and changes none: the queue's rows move by its own rules only."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyPage(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows a row as a page to read, and not as a form."""

    page_template: str

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row of an address, or ``None``."""
        return self.get_object(request, object_id)

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Return what the template shows of a row, its ``title`` among it."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a row; nobody changes one."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        row = self.find(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(  # type: ignore[attr-defined,no-any-return]
                request, self.opts, object_id
            )
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            **self.page(request, row),
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.page_template, context)


WINDOW = 50_000
"""Among how many of the newest mails is looked for what no index has."""


def recent(rows: EmailQuerySet) -> EmailQuerySet:
    """Return those of ``rows`` that are among the newest ``WINDOW`` mails of all."""
    newest = EmailLog.objects.using(rows.db).order_by("-pk").values_list("pk", flat=True)
    oldest = newest[WINDOW - 1 : WINDOW].first()
    return rows if oldest is None else rows.filter(pk__gte=oldest)


MOST = 10_000
"""How many rows are counted, and can be paged through."""


class AtLeast(int):
    """A number that stands for itself or more, and says so."""

    def __str__(self) -> str:
        return f"{number_format(int(self), force_grouping=True)}+"


def _counted(found: int) -> int:
    """Return a number of rows, of which at most one more than ``MOST`` were looked for."""
    return AtLeast(MOST) if found > MOST else found


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages through mails, newest first, without counting all that there are.

    ``LIMIT`` invites a database to walk along the ids until it has found enough, through the whole
    table if what is asked for is rare and old. So ids are asked for in no order, which any index
    can serve. Few of them are sorted here; for many, the newest are near the end of the table.
    """

    object_list: EmailQuerySet

    @cached_property
    def _ids(self) -> list[UUID]:
        """One more than are counted, at most."""
        return list(self.object_list.order_by().values_list("pk", flat=True)[: MOST + 1])

    @cached_property
    def count(self) -> int:
        """How many mails there are, or ``AtLeast`` so many."""
        return _counted(len(self._ids))

    def page(self, number: Any) -> Page:  # type: ignore[type-arg]
        """Return one page; raises ``InvalidPage`` as Django's own does."""
        number = self.validate_number(number)
        first = (number - 1) * self.per_page
        ids = self._ids_between(first, min(first + self.per_page, self.count))
        return Page(self.object_list.filter(pk__in=ids), number, self)

    def _ids_between(self, first: int, last: int) -> list[UUID]:
        newest: Any = self.object_list.order_by("-pk").values_list("pk", flat=True)
        if not self.object_list.query.where:
            return list(newest[first:last])
        if len(self._ids) > MOST:
            newest = recent(newest)
            ids = list(newest[first:last])
            if len(ids) == last - first:
                return ids
        return sorted(self._ids, reverse=True)[first:last]


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages through the newest rows of a list by their ids; what is older is found by searching."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, or ``AtLeast`` so many."""
        rows: Any = self.object_list
        return _counted(rows.order_by()[: MOST + 1].count())
