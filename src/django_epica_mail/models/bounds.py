"""Columns whose values are bounded where a row is read: one damaged row must not stop the others.

A database stores times and numbers that Python, its driver or the next addition cannot hold. What
the package never writes is read as the nearest value that it can go on with. Times of which even
the reading fails are refused by the database itself: ``ReadableTimes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models
from django.db.models.expressions import Col
from django.db.models.functions import Greatest, Least

from django_epica_mail.models.fields import Unseen

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor

EARLIEST = datetime(1900, 1, 1, tzinfo=timezone.utc)
LATEST = datetime(9999, 1, 1, tzinfo=timezone.utc)
"""The times between which times are read. Centuries and a year from the ends of Python's calendar,
so that what follows from a time, in any zone, is in the calendar as well."""

READABLE = datetime(2, 1, 1, tzinfo=timezone.utc), LATEST
"""The times that are stored: those that every driver reads in every time zone."""

MOST_SMALL, MOST, MOST_BIG = 2**15 - 2, 2**31 - 2, 10**15
"""The largest numbers that are read from the three sizes of columns: one more can be stored. A sum
of thousands of the last fits into a column."""

_NUMBER = models.BigIntegerField()


class Moment(Unseen, models.DateTimeField):  # type: ignore[type-arg]
    """A time that is read as one from ``EARLIEST`` to ``LATEST``."""

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        """Return the time, or the nearest that is in bounds, in UTC.

        The driver returns times in the zone of the connection, ``DATABASES``' ``TIME_ZONE``. Python
        subtracts and orders those of one zone by its clocks, which a summer time sets back.

        MariaDB's driver returns ``None`` for the day zero of its calendar, and SQLite's for text
        that is no time: that is ``EARLIEST`` in a column that holds no NULL.
        """
        if value is None:
            is_damaged = connection.vendor != "postgresql" and self._is_own(expression)
            return EARLIEST if is_damaged else None
        if value.tzinfo is None:
            return value  # with USE_TZ = False, which a check refuses
        return min(max(value, EARLIEST), LATEST).astimezone(timezone.utc)

    def _is_own(self, expression: Any) -> bool:
        """Return whether an expression is this column itself, which is not NULL, of its table.

        It may be NULL in an aggregate, and in the row that an outer join adds.
        """
        is_column = isinstance(expression, Col) and not self.null
        return is_column and expression.alias == self.model._meta.db_table


class _Bounded(Unseen):
    """A mixin for a number that is read as one from 0 to ``most``."""

    most: ClassVar[float]

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        """Return the number, or the nearest that is in bounds; 0 for what is no number."""
        return None if value is None else bounded(value, self.most)


class SmallCount(_Bounded, models.PositiveSmallIntegerField):  # type: ignore[type-arg]
    """A whole number of 16 bits, of which one more can be stored."""

    most = MOST_SMALL


class Count(_Bounded, models.PositiveIntegerField):  # type: ignore[type-arg]
    """A whole number of 32 bits, of which one more can be stored."""

    most = MOST


class BigCount(_Bounded, models.PositiveBigIntegerField):  # type: ignore[type-arg]
    """A whole number of 64 bits that can be added up."""

    most = MOST_BIG


class Version(_Bounded, models.PositiveIntegerField):  # type: ignore[type-arg]
    """A whole number of 32 bits that is read as it is stored, for it is compared with that."""

    most = 2**31 - 1


class BigVersion(_Bounded, models.PositiveBigIntegerField):  # type: ignore[type-arg]
    """A ``Version`` of 64 bits."""

    most = 2**63 - 1


class Amount(_Bounded, models.FloatField):  # type: ignore[type-arg]
    """A number that is finite and not negative, such as seconds."""

    most = float(MOST_BIG)


def bounded(value: Any, most: float) -> Any:
    """Return a number as one from 0 to ``most``; 0 for NaN and for what is no number."""
    if not isinstance(value, (int, float)) or value != value:
        return 0
    return min(max(value, 0), most)


def increased(column: str, by: int, most: int) -> models.Expression:
    """Return a column plus ``by``, to be stored in it: no more than fits, whatever it holds.

    ``most`` is that of its size.
    """
    return _at_most(column, most) + by


def total(column: str) -> models.Sum:
    """Return the sum of a ``BigCount``, whatever its rows hold."""
    within = Greatest(_at_most(column, MOST_BIG), 0, output_field=_NUMBER)
    return models.Sum(within, output_field=_NUMBER)


def _at_most(column: str, most: int) -> models.Expression:
    """Return a column, but no more than ``most``.

    With the size named: Django takes a number of 64 bits for one of 32, and PostgreSQL is given
    that where parameters travel beside the statement (``server_side_binding``).
    """
    value = models.Value(most, output_field=_NUMBER)
    return Least(models.F(column), value, output_field=_NUMBER)


class ReadableTimes(models.CheckConstraint):
    """A constraint that refuses times that no driver reads, such as PostgreSQL's ``infinity``.

    One such time fails the reading of every row beside it. Other databases have none, and Python's
    calendar is theirs: there it constrains nothing, and costs no copy of the table.
    """

    def __init__(self, *, fields: Sequence[str], name: str) -> None:
        """Take the names of the columns."""
        self.fields = tuple(fields)
        first, last = READABLE
        each = (models.Q(**{f"{it}__gte": first, f"{it}__lte": last}) for it in self.fields)
        super().__init__(condition=models.Q(*each), name=name)

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        """Return its part of the statement that creates the table; ``None`` if it has none."""
        return super().constraint_sql(model, schema_editor) if _has_it(schema_editor) else None

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        """Return the statement that adds it; ``None`` if it needs none."""
        return super().create_sql(model, schema_editor) if _has_it(schema_editor) else None

    def remove_sql(self, model: Any, schema_editor: Any) -> Any:
        """Return the statement that removes it; ``None`` if it needs none."""
        return super().remove_sql(model, schema_editor) if _has_it(schema_editor) else None

    def validate(self, *args: Any, **options: Any) -> None:
        """Accept every row: forms have rules of their own."""

    def deconstruct(self) -> Any:
        """Return it as migrations write it."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, (), {"fields": list(self.fields), "name": self.name}


def _has_it(schema_editor: BaseDatabaseSchemaEditor) -> bool:
    return schema_editor.connection.vendor == "postgresql"
