"""The common parts of the admin pages: permissions, read-only rows, recent mail and paging."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce, wraps
from typing import Any
from uuid import UUID

from django.apps import apps
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Page, Paginator
from django.db.models import DateTimeField, Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.formats import number_format
from django.utils.text import capfirst

from django_epica_mail.admin import times
from django_epica_mail.models import EmailLog, EmailQuerySet

WINDOW = 50_000
"""Conditions that no index serves apply to this many of the newest e-mails."""
MOST = 10_000
"""A list counts and pages through at most this many rows."""
_THEMES = ("unfold", "jazzmin")
_WORDS = 20
"""A search looks for this many words: a database refuses a thousand, or takes long."""


def may_operate(request: HttpRequest) -> bool:
    """Return whether the user may act on e-mails, and pause and resume queues and transports."""
    return request.user.has_perm("epica_mail.operate_emaillog")


def is_themed() -> bool:
    """Return whether the site has a theme of the admin that draws lists and filters itself."""
    return any(map(apps.is_installed, _THEMES))


class BaseAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A model admin that anything may be asked: what is no id is no row's, and no error."""

    @property
    def urls(self) -> list[URLPattern]:
        """The URLs of the pages, each with a view that sees no NUL in the query string.

        PostgreSQL refuses NULs in text. Nothing that is stored holds one, so none is missed.
        """
        patterns: list[URLPattern] = self.get_urls()
        for pattern in patterns:
            pattern.callback = _without_nuls(pattern.callback)
        return patterns

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, or run an action on those of the chosen ids that are ids."""
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        ids = [it for it in chosen if self._is_id(it)]
        if len(ids) < len(chosen):
            post = request.POST.copy()
            post.setlist(ACTION_CHECKBOX_NAME, ids)
            request.POST = post  # type: ignore[assignment]
        context = {"zone": times.zone(), "is_themed": is_themed(), **(extra_context or {})}
        return super().changelist_view(request, context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show the form, and name the time zone."""
        context["zone"] = times.zone()
        return super().render_change_form(request, context, *args, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return the fields; on a page to read, times are in the one format for people."""
        names = super().get_fields(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return names
        return [_to_read(self.model, name) for name in names]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the class of a page of the list."""
        return PagedList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow only the filters: other lookups could probe columns that nobody may see."""
        filters: Any = self.list_filter
        names = {it if isinstance(it, str) else it.parameter_name for it in filters}
        return lookup.removesuffix("__exact") in names

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the history of a row; who may not see rows is not told which exist."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)

    def _is_id(self, text: str) -> bool:
        try:
            self.opts.pk.to_python(text)
        except ValidationError:
            return False
        return True


def grouped(number: int) -> str:
    """Return a number as the reader's language writes it: ``10,000``."""
    return number_format(number, force_grouping=True)


def _to_read(model: type[Model], name: Any) -> Any:
    field = model._meta.get_field(name)
    if isinstance(field, DateTimeField):
        return times.column(name, capfirst(field.verbose_name))
    return name


def _without_nuls(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def cleaned(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        for method in ("GET", "POST"):
            given: QueryDict = getattr(request, method)
            if any("\0" in "".join((name, *values)) for name, values in given.lists()):
                fields = QueryDict(mutable=True)
                for name, values in given.lists():
                    fields.setlist(name.replace("\0", ""), [it.replace("\0", "") for it in values])
                setattr(request, method, fields)
        return view(request, *args, **kwargs)

    return cleaned


class ReadOnly:
    """A mixin for rows that nobody changes by hand: they follow the queue's own rules."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyPage(ReadOnly, BaseAdmin):
    """A model admin that shows a row as a page to read instead of a form."""

    page_template: str

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row with this id, or ``None``."""
        return self.get_object(request, object_id)

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Return the template context of a row, including ``title``."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a row; raises ``PermissionDenied`` for any method except GET and HEAD."""
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
            "zone": times.zone(),
            **self.page(request, row),
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.page_template, context)


def of_words(term: str) -> Q:
    """Return the condition that a subject has the words of a search term, of which it has one."""
    return reduce(Q.__and__, (Q(subject__icontains=word) for word in term.split()[:_WORDS]))


def oldest_recent(using: str) -> UUID | None:
    """Return the id of the oldest of the newest ``WINDOW`` e-mails; ``None`` if there are fewer."""
    newest = EmailLog.objects.using(using).order_by("-pk").values_list("pk", flat=True)
    return newest[WINDOW - 1 : WINDOW].first()


def recent(rows: EmailQuerySet) -> EmailQuerySet:
    """Return the ``rows`` that are among the newest ``WINDOW`` e-mails."""
    oldest = oldest_recent(rows.db)
    return rows if oldest is None else rows.filter(pk__gte=oldest)


def of_recent(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return the ``rows`` that belong to the newest ``WINDOW`` e-mails, found by their index."""
    oldest = oldest_recent(rows.db)
    return rows if oldest is None else rows.filter(email_id__gte=oldest)


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator for the newest ``MOST`` rows of a list, which never counts the whole table.

    An ordered ``LIMIT`` invites a database to walk along the ids until it has enough matches: if
    they are rare and old, that is the whole table. So ids are fetched in no order, which any index
    can serve. A few are sorted here; if there are many, the newest are near the end of the table.
    Older ones are found by searching.
    """

    object_list: Any

    @cached_property
    def _ids(self) -> list[Any]:
        """The matching ids in no order, at most ``MOST`` and one more."""
        return list(self.object_list.order_by().values_list("pk", flat=True)[: MOST + 1])

    @cached_property
    def count(self) -> int:
        """The number of rows, or ``AtLeast(MOST)``."""
        return _counted(len(self._ids))

    def page(self, number: Any) -> Page:  # type: ignore[type-arg]
        """Return one page; raises ``InvalidPage`` as Django's paginator does."""
        number = self.validate_number(number)
        first = (number - 1) * self.per_page
        ids = self._ids_between(first, min(first + self.per_page, self.count))
        return Page(self.object_list.filter(pk__in=ids), number, self)

    def everything(self) -> Any:
        """Return the rows that were counted, without a second search for them."""
        return self.object_list.filter(pk__in=self._ids)

    def _ids_between(self, first: int, last: int) -> list[Any]:
        newest: Any = self.object_list.order_by("-pk").values_list("pk", flat=True)
        if not self.object_list.query.where:
            return list(newest[first:last])
        if len(self._ids) > MOST:
            ids = list(self._near_the_end(newest)[first:last])
            if len(ids) == last - first:
                return ids
        return sorted(self._ids, reverse=True)[first:last]

    def _near_the_end(self, newest: Any) -> Any:
        return newest


class BoundedPaginator(CappedPaginator):
    """A paginator for e-mails, which looks for many matches among the newest of them only."""

    def _near_the_end(self, newest: Any) -> Any:
        return recent(newest)


class PagedList(ChangeList):
    """A page of a list; if all rows fit on it, they are those that the paginator has counted.

    Django would run the query of the filters and of the search a second time.
    """

    paginator: CappedPaginator

    def get_results(self, request: HttpRequest) -> None:
        """Fetch the rows of the page."""
        super().get_results(request)
        if self.show_all or not self.multi_page:
            self.result_list = self.paginator.everything()


class AtLeast(int):
    """A lower bound, shown with a plus: ``10,000+``."""

    def __str__(self) -> str:
        return f"{grouped(int(self))}+"


def _counted(found: int) -> int:
    """Return the number of rows found, or ``AtLeast(MOST)`` if there are more."""
    return AtLeast(MOST) if found > MOST else found
