"""Pages of a table that may have millions of rows: counted up to a bound, and no further."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from uuid import UUID

from django.core.paginator import Page, Paginator
from django.utils.formats import number_format

from django_epica_mail.admin.recency import recent
from django_epica_mail.models import EmailQuerySet

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
