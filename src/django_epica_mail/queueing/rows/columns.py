"""The columns and the values of the rows that ``sql`` writes, compared with Django's once.

Building SQL as Django does takes most of the time of an insert, so this does it once per model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import django
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    AutoField,
    BinaryField,
    BooleanField,
    CharField,
    DateTimeField,
    Expression,
    Field,
    FloatField,
    IntegerField,
    JSONField,
    Model,
    TextField,
    UUIDField,
)
from django.db.models.sql import InsertQuery, Query

from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient
from django_epica_mail.models.fields import CopyCharField, CopyTextField, charset_of

logger = logging.getLogger(__name__)

Statement = tuple[str, Sequence[Any]]
"""SQL, and the values of its placeholders."""

_NONE: frozenset[type] = frozenset()
_NOTHING: Mapping[Expression, Any] = {}
_DRIVERS_TYPES: dict[type[Field[Any, Any]], frozenset[type]] = {
    CharField: frozenset((str,)),
    TextField: frozenset((str,)),
    IntegerField: frozenset((int,)),
    UUIDField: frozenset((UUID,)),
}
"""The types of values that need no conversion for any driver, by the kind of field."""

_SAMPLES: dict[type[Field[Any, Any]], Any] = {
    CharField: "ş'\\%s",
    TextField: "ş'\\%s",
    BooleanField: True,
    IntegerField: 7,
    FloatField: 0.5,
    UUIDField: UUID(int=7),
    DateTimeField: datetime(2023, 1, 2, 3, 4, 5, 6, timezone.utc),
    JSONField: ["ş", {"a": 1}],
    BinaryField: b"\0\xff",
}
"""Values of a sample row, by the kind of field."""


class Column(NamedTuple):
    """A column that an INSERT gives a value."""

    name: str
    """The attribute of a row that holds the value."""
    field: Field[Any, Any]
    needs_nothing: frozenset[type]
    """The types of values that the driver takes as they are."""


@lru_cache
def columns_of(model: type[Model], using: str) -> list[Column]:
    """Return the columns of a model except automatic keys."""
    return [
        Column(it.attname, it, _needs_nothing(it, connections[using]))
        for it in model._meta.concrete_fields
        if not isinstance(it, AutoField)
    ]


def _needs_nothing(field: Field[Any, Any], connection: BaseDatabaseWrapper) -> frozenset[type]:
    field = getattr(field, "target_field", field)
    if isinstance(field, (CopyCharField, CopyTextField)) and charset_of(connection) is not None:
        return frozenset()
    if isinstance(field, UUIDField) and not connection.features.has_native_uuid_field:
        return frozenset()
    return next((types for kind, types in _DRIVERS_TYPES.items() if isinstance(field, kind)), _NONE)


def table(model: type[Model], using: str) -> str:
    """Return the quoted names of a model's table and columns."""
    quote = connections[using].ops.quote_name
    columns = ", ".join(quote(str(it.field.column)) for it in columns_of(model, using))
    return f"{quote(model._meta.db_table)} ({columns})"


def values_of(
    row: Model,
    columns: Sequence[Column],
    connection: BaseDatabaseWrapper,
    computed: Mapping[Expression, Any] = _NOTHING,
) -> list[Any]:
    """Return the values of a row as the driver takes them.

    Expressions become their value among the ``computed``, or stay what they are.
    """
    given = row.__dict__
    values = []
    for name, field, needs_nothing in columns:
        value = given[name]
        if value is None or type(value) in needs_nothing:
            pass
        elif isinstance(value, Expression):
            value = computed.get(value, value)
        else:
            value = field.get_db_prep_save(value, connection)
            if isinstance(value, str):
                value = str.__str__(value)  # of a subclass, such as the members of Status
        values.append(value)
    return values


def cells_of(
    values: Iterable[Any], model: type[Model], connection: BaseDatabaseWrapper, params: list[Any]
) -> str:
    """Return the cells of one row, and append the values of its placeholders to ``params``."""
    cells = []
    for value in values:
        if value is None:
            cells.append("NULL")
        elif isinstance(value, Expression):
            sql, own = compile_expression(value, model, connection.alias)
            cells.append(sql)
            params += own
        else:
            cells.append("%s")
            params.append(value)
    return f"({', '.join(cells)})"


@lru_cache(maxsize=64)
def compile_expression(value: Expression, model: type[Model], using: str) -> Statement:
    """Return an expression on the columns of a model as SQL with its values."""
    query = Query(model)
    compiler = query.get_compiler(connection=connections[using])
    sql, params = compiler.compile(value.resolve_expression(query, allow_joins=False))
    return sql, params


def examine() -> None:
    """Compare the rows that a starting worker will write with Django's.

    If the database cannot be asked now, the first insert does so.
    """
    for model in (EmailLog, EmailRecipient, DeliveryAttempt):
        with suppress(Error):
            writes_like_django(model, router.db_for_write(model))


@lru_cache
def writes_like_django(model: type[Model], using: str) -> bool:
    """Return whether a sample row has the columns and values that Django's own INSERT gives it.

    A future version of Django may write rows differently. Then ``bulk_create`` writes them, and the
    log says so, once in each process. Raises ``django.db.Error`` if the database cannot be asked,
    which is asked again the next time.
    """
    try:
        difference = _difference(model, using)
    except Error:
        raise
    except Exception as error:  # noqa: BLE001 - what cannot be compared is not taken
        difference = f"{type(error).__name__}: {error}"
    if difference:
        logger.warning(
            "With Django %s, rows of %s would be written differently from Django's (%s). So Django "
            "writes them, which is slower. Look for a newer version of django-epica-mail.",
            django.get_version(),
            model._meta.label,
            difference,
        )
    return not difference


def _difference(model: type[Model], using: str) -> str:
    """Return the first column whose cell differs from Django's, or ``""``."""
    connection = connections[using]
    row, columns = _sample(model), columns_of(model, using)
    fields = [it for it in model._meta.concrete_fields if not isinstance(it, AutoField)]
    names = [str(it.field.column) for it in columns]
    if names != (expected := [str(it.column) for it in fields]):
        return f"columns {names}, not {expected}"
    query = InsertQuery(model)
    query.insert_values(fields, [row])
    compiler: Any = query.get_compiler(connection=connection)
    djangos = [
        [compiler.prepare_value(field, compiler.pre_save_val(field, row))] for field in fields
    ]
    placeholders, params = compiler.assemble_as_sql(fields, [[it[0] for it in djangos]])
    flat = iter(params[0])
    for column, value, placeholder in zip(
        columns, values_of(row, columns, connection), placeholders[0], strict=True
    ):
        own: list[Any] = []
        cell = cells_of([value], model, connection, own)[1:-1]
        theirs = [next(flat) for _ in range(placeholder.count("%s"))]
        if cell == "NULL":
            cell, own = "%s", [None]
        if cell != placeholder or list(map(_plain, own)) != list(map(_plain, theirs)):
            return f"column {column.field.column}"
    return ""


def _plain(value: Any) -> Any:
    """Return a driver's value as one that can be compared: psycopg wraps JSON and bytes in objects,
    with other names in its versions 3 and 2.
    """
    return getattr(value, "obj", getattr(value, "adapted", value))


def _sample(model: type[Model]) -> Model:
    """Return a row with a value in each column; what has a default keeps it."""
    row = model()
    for field in model._meta.concrete_fields:
        kind = getattr(field, "target_field", field)
        if row.__dict__.get(field.attname) in (None, ""):
            for types, value in _SAMPLES.items():
                if isinstance(kind, types):
                    setattr(row, field.attname, value)
    return row
