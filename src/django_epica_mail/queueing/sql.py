"""Inserts rows faster than ``bulk_create``, which builds the same SQL anew on every call.

Queueing a mail costs a request the time of its inserts, most of which goes into building SQL.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import AutoField, CharField, Expression, Field, IntegerField, Model, TextField
from django.db.models.constants import OnConflict
from django.db.models.sql import Query

from django_epica_mail._compat import batched
from django_epica_mail.models.fields import CopyCharField, CopyTextField, charset_of

Statement = tuple[str, Sequence[Any]]
"""SQL, and the values of its placeholders."""

_MAX_STATEMENT_LENGTH = 4_000_000
"""Characters after which a statement gets no more rows, because MariaDB refuses long ones."""

_WORD = re.compile(r"[a-z0-9_]{0,32}", re.ASCII)

_PLAIN_FIELDS = (CharField, TextField, IntegerField)
"""Fields whose string, integer or ``NULL`` needs no conversion for any database."""


def insert_rows(rows: Sequence[Model], using: str, *, ignore_conflicts: bool = False) -> None:
    """Insert rows of one model, in as few statements as the database allows.

    Values may be expressions such as ``Now()``. The database assigns automatic keys, which are not
    read back. As with ``bulk_create``, no signals are sent, and with ``ignore_conflicts`` a row
    whose unique values are taken is skipped.
    """
    connection = connections[using]
    _execute(list(_statements(rows, connection, ignore_conflicts)), connection)
    _mark_inserted(rows, using)


def insert_together(groups: Sequence[Sequence[Model]], using: str) -> None:
    """Insert rows of several models, all or none; referenced models must come first.

    If the database takes all of them in one statement, no transaction is opened, which would cost
    each request three more round trips.
    """
    connection = connections[using]
    statements = [it for rows in groups for it in _statements(rows, connection)]
    max_params = connection.features.max_query_params or math.inf
    if connection.vendor == "postgresql" and sum(len(it) for _, it in statements) <= max_params:
        statements = _as_one(statements)
    if len(statements) == 1:
        _execute(statements, connection)
    else:
        # Within the caller's transaction, a savepoint would cost two more round trips.
        with transaction.atomic(using=using, savepoint=False):
            _execute(statements, connection)
    for rows in groups:
        _mark_inserted(rows, using)


def _statements(
    rows: Sequence[Model], connection: BaseDatabaseWrapper, ignore_conflicts: bool = False
) -> Iterator[Statement]:
    if not rows:
        return
    fields, head, tail = _shape(type(rows[0]), connection.alias, ignore_conflicts)
    size = max(1, connection.ops.bulk_batch_size([field for field, _ in fields], rows))
    for chunk in batched(rows, size):
        cells: list[str] = []
        params: list[Any] = []
        length = 0
        for row in chunk:
            if length > _MAX_STATEMENT_LENGTH:
                yield f"{head} {', '.join(cells)} {tail}", params
                cells, params, length = [], [], 0
            before = len(params)
            cells.append(_cells(row, fields, connection, params))
            length += sum(len(it) for it in params[before:] if isinstance(it, str))
        yield f"{head} {', '.join(cells)} {tail}", params


def _as_one(statements: list[Statement]) -> list[Statement]:
    """Combine inserts into one PostgreSQL statement, with all but the last in a WITH."""
    if len(statements) < 2:
        return statements
    *first, last = (sql for sql, _ in statements)
    named = ", ".join(f"insert_{index} AS ({sql})" for index, sql in enumerate(first))
    return [(f"WITH {named} {last}", [it for _, params in statements for it in params])]


def _execute(statements: Sequence[Statement], connection: BaseDatabaseWrapper) -> None:
    if statements:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(*statement)


def _mark_inserted(rows: Sequence[Model], using: str) -> None:
    for row in rows:
        row._state.adding, row._state.db = False, using


@lru_cache
def _shape(
    model: type[Model], using: str, ignore_conflicts: bool
) -> tuple[list[tuple[Field[Any, Any], bool]], str, str]:
    """Return a model's fields, and the parts of its INSERT before and after the values.

    Each field comes with whether its strings and integers need no conversion.
    """
    fields = [it for it in model._meta.concrete_fields if not isinstance(it, AutoField)]
    ops = connections[using].ops
    on_conflict = OnConflict.IGNORE if ignore_conflicts else None
    columns = ", ".join(ops.quote_name(str(field.column)) for field in fields)
    verb = ops.insert_statement(on_conflict=on_conflict)
    head = f"{verb} {ops.quote_name(model._meta.db_table)} ({columns}) VALUES"
    tail = ops.on_conflict_suffix_sql(fields, on_conflict, [], [])
    plain: tuple[type[Field[Any, Any]], ...] = _PLAIN_FIELDS
    lossy = () if charset_of(connections[using]) is None else (CopyCharField, CopyTextField)
    return [(it, isinstance(it, plain) and not isinstance(it, lossy)) for it in fields], head, tail


def _cells(
    row: Model,
    fields: Sequence[tuple[Field[Any, Any], bool]],
    connection: BaseDatabaseWrapper,
    params: list[Any],
) -> str:
    """Return the cells of one row, and append the values of its placeholders to ``params``.

    Harmless values are written into the statement itself: a placeholder costs the driver more, and
    most columns of a new mail hold NULL, a number, an id or one of our own keywords.
    """
    cells = []
    for field, is_plain in fields:
        value = row.__dict__[field.attname]
        if value is None:
            cells.append("NULL")
        elif isinstance(value, Expression):
            sql, own = compile_expression(value, type(row), connection.alias)
            cells.append(sql)
            params += own
        elif type(value) is UUID:
            is_native = connection.features.has_native_uuid_field
            cells.append(f"'{value if is_native else value.hex}'")
        elif is_plain and type(value) is int:
            cells.append(str(value))
        elif is_plain and isinstance(value, str) and (word := _WORD.fullmatch(value)):
            cells.append(f"'{word[0]}'")
        else:
            cells.append("%s")
            is_text = is_plain and type(value) is str
            params.append(value if is_text else field.get_db_prep_save(value, connection))
    return f"({', '.join(cells)})"


@lru_cache(maxsize=64)
def compile_expression(value: Expression, model: type[Model], using: str) -> Statement:
    """Return an expression on the columns of a model as SQL with its values."""
    query = Query(model)
    compiler = query.get_compiler(connection=connections[using])
    sql, params = compiler.compile(value.resolve_expression(query, allow_joins=False))
    return sql, params
