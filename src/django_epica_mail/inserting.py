"""Inserting rows with less ado than ``bulk_create``, which builds the same SQL anew each time.

What a request pays for a mail is its inserts, and most of these is the building.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import AutoField, Expression, Field, Model
from django.db.models.sql import Query

_Fields = Sequence["Field[Any, Any]"]


def insert(rows: Sequence[Model], using: str) -> None:
    """Insert rows of one model, in as few statements as the database takes.

    Values are the rows' own, expressions like ``Now()`` included; keys the database numbers itself
    are left to it, and not read back. As with ``bulk_create``, no signal is sent.
    """
    if not rows:
        return
    connection = connections[using]
    fields = [it for it in rows[0]._meta.concrete_fields if not isinstance(it, AutoField)]
    size = max(1, connection.ops.bulk_batch_size(fields, rows))
    with connection.cursor() as cursor:
        for start in range(0, len(rows), size):
            cursor.execute(*_statement(rows[start : start + size], fields, connection))
    for row in rows:
        row._state.adding, row._state.db = False, using


def _statement(
    rows: Sequence[Model], fields: _Fields, connection: BaseDatabaseWrapper
) -> tuple[str, list[Any]]:
    quote = connection.ops.quote_name
    columns = ", ".join(quote(str(field.column)) for field in fields)
    params: list[Any] = []
    values = ", ".join(_row(row, fields, connection, params) for row in rows)
    table = quote(rows[0]._meta.db_table)
    return f"INSERT INTO {table} ({columns}) VALUES {values}", params  # noqa: S608 - no values


def _row(row: Model, fields: _Fields, connection: BaseDatabaseWrapper, params: list[Any]) -> str:
    """Return the placeholders of one row, and add its values to ``params``."""
    cells = []
    for field in fields:
        value = row.__dict__[field.attname]
        if isinstance(value, Expression):
            sql, own = _compile(value, row, connection)
            cells.append(sql)
            params += own
        else:
            cells.append("%s")
            params.append(field.get_db_prep_save(value, connection))
    return f"({', '.join(cells)})"


def _compile(
    value: Expression, row: Model, connection: BaseDatabaseWrapper
) -> tuple[str, Sequence[Any]]:
    query = Query(type(row))
    compiler = query.get_compiler(connection=connection)
    sql, params = compiler.compile(value.resolve_expression(query, allow_joins=False))
    return sql, params
