"""Inserts rows faster than ``bulk_create``, which builds the same SQL anew on every call.

Queueing a mail costs a request the time of its inserts, most of which goes into building SQL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    Expression,
    Model,
)
from django.db.models.constants import OnConflict

from django_epica_mail._compat import batched
from django_epica_mail.queueing.rows.columns import (
    Statement,
    cells_of,
    columns_of,
    compile_expression,
    table,
    values_of,
    writes_like_django,
)

_MAX_STATEMENT_LENGTH = 4_000_000
"""Characters after which a statement gets no more rows, because MariaDB refuses long ones."""

_COPIED_ROWS = 100
"""From how many rows on COPY costs less than INSERT, although it takes more round trips."""


def insert_rows(rows: Sequence[Model], using: str, *, ignore_conflicts: bool = False) -> None:
    """Insert rows of one model, in as few statements as the database allows.

    Values may be expressions such as ``Now()``. The database assigns automatic keys, which are not
    read back. As with ``bulk_create``, no signals are sent, and with ``ignore_conflicts`` a row
    whose unique values are taken is skipped.
    """
    connection = connections[using]
    if rows and not writes_like_django(type(rows[0]), using):
        _insert_by_django([rows], using, ignore_conflicts=ignore_conflicts)
        return
    _execute(list(_statements(rows, connection, ignore_conflicts)), connection)
    _mark_inserted(rows, using)


def insert_together(groups: Sequence[Sequence[Model]], using: str) -> None:
    """Insert rows of several models, all or none; referenced models must come first.

    Many rows go to PostgreSQL by COPY. If the database takes fewer in one statement, no transaction
    is opened, which would cost each request three more round trips.
    """
    connection = connections[using]
    if not all(writes_like_django(type(rows[0]), using) for rows in groups if rows):
        _insert_by_django(groups, using)
        return
    if not (_is_for_copy(groups, connection) and _copy(groups, connection)):
        _insert_together(groups, connection)
    for rows in groups:
        _mark_inserted(rows, using)


def _insert_by_django(
    groups: Sequence[Sequence[Model]], using: str, *, ignore_conflicts: bool = False
) -> None:
    with transaction.atomic(using=using, savepoint=False):
        for rows in groups:
            if rows:
                manager = type(rows[0])._base_manager.using(using)
                manager.bulk_create(rows, ignore_conflicts=ignore_conflicts)


def _insert_together(groups: Sequence[Sequence[Model]], connection: BaseDatabaseWrapper) -> None:
    statements = [it for rows in groups for it in _statements(rows, connection)]
    max_params = connection.features.max_query_params or math.inf
    if connection.vendor == "postgresql" and sum(len(it) for _, it in statements) <= max_params:
        statements = _as_one(statements)
    if len(statements) == 1:
        _execute(statements, connection)
    else:
        # Within the caller's transaction, a savepoint would cost two more round trips.
        with transaction.atomic(using=connection.alias, savepoint=False):
            _execute(statements, connection)


def _is_for_copy(groups: Sequence[Sequence[Model]], connection: BaseDatabaseWrapper) -> bool:
    """Return whether rows are many, and the driver is psycopg 3.

    A site's ``execute_wrapper`` must see every statement, but Django calls none for COPY.
    """
    if sum(map(len, groups)) < _COPIED_ROWS or connection.execute_wrappers:
        return False
    return _cursor_classes(connection.vendor)[1] is not None


def _statements(
    rows: Sequence[Model], connection: BaseDatabaseWrapper, ignore_conflicts: bool = False
) -> Iterator[Statement]:
    if not rows:
        return
    columns = columns_of(type(rows[0]), connection.alias)
    head, tail = _insert(type(rows[0]), connection.alias, ignore_conflicts)
    size = max(1, connection.ops.bulk_batch_size([it.field for it in columns], rows))
    for chunk in batched(rows, size):
        cells: list[str] = []
        params: list[Any] = []
        length = 0
        for row in chunk:
            if length > _MAX_STATEMENT_LENGTH:
                yield f"{head} {', '.join(cells)} {tail}", params
                cells, params, length = [], [], 0
            before = len(params)
            cells.append(
                cells_of(values_of(row, columns, connection), type(row), connection, params)
            )
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
        with _cursor(connection) as cursor:
            for statement in statements:
                cursor.execute(*statement)


@contextmanager
def _cursor(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """Yield a cursor that sends values beside the statement, where the driver can.

    Django's cursor for psycopg 3 quotes them into it, which is a tenth of the cost of a call. It
    stays where the site has chosen another, or lets the driver prepare statements on the server,
    which Django's never does and some poolers forbid.
    """
    connection.ensure_connection()
    driver = connection.connection
    djangos, binding = _cursor_classes(connection.vendor)
    if binding is None or driver.cursor_factory is not djangos or driver.prepare_threshold:
        with connection.cursor() as cursor:
            yield cursor
        return
    driver.cursor_factory = binding
    try:
        cursor = connection.cursor()
    finally:
        driver.cursor_factory = djangos
    with cursor:
        yield cursor


@lru_cache
def _cursor_classes(vendor: str) -> tuple[Any, Any]:
    """Return Django's cursor class, and the one that sends values apart; ``None`` if there is none.

    The latter is what Django uses for the option ``server_side_binding``.
    """
    if vendor != "postgresql":
        return None, None
    base = import_module("django.db.backends.postgresql.base")
    return base.Cursor, getattr(base, "ServerBindingCursor", None)


def _copy(groups: Sequence[Sequence[Model]], connection: BaseDatabaseWrapper) -> bool:
    """Insert rows by COPY, all or none; return ``False`` if the database does not allow it.

    COPY takes no expressions, so the database is asked for their values first.
    """
    groups = [rows for rows in groups if rows]
    with transaction.atomic(using=connection.alias, savepoint=False):
        computed = _compute(groups, connection)
        if computed is None:
            return False
        for rows in groups:
            columns = columns_of(type(rows[0]), connection.alias)
            statement = f"COPY {table(type(rows[0]), connection.alias)} FROM STDIN"
            with (
                connection.cursor() as cursor,
                connection.wrap_database_errors,  # Django does so in execute() alone
                cursor.copy(statement) as copy,
            ):
                for row in rows:
                    copy.write_row(values_of(row, columns, connection, computed))
    return True


def _compute(
    groups: Sequence[Sequence[Model]], connection: BaseDatabaseWrapper
) -> dict[Expression, Any] | None:
    """Return the values of the expressions in rows; ``None`` if COPY is refused for a table.

    PostgreSQL refuses it where the table has a policy that decides about each row.
    """
    found = {
        value: compile_expression(value, type(row), connection.alias)
        for rows in groups
        for row in rows
        for value in row.__dict__.values()
        if isinstance(value, Expression)
    }
    tables = [rows[0]._meta.db_table for rows in groups]
    parts = [*(("row_security_active(%s)", (table,)) for table in tables), *found.values()]
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(sql for sql, _ in parts)}", [it for _, own in parts for it in own]
        )
        row_of_values = cursor.fetchone()
    if any(row_of_values[: len(tables)]):
        return None
    return dict(zip(found, row_of_values[len(tables) :], strict=True))


def _mark_inserted(rows: Sequence[Model], using: str) -> None:
    for row in rows:
        row._state.adding, row._state.db = False, using


@lru_cache
def _insert(model: type[Model], using: str, ignore_conflicts: bool) -> tuple[str, str]:
    """Return the parts of a model's INSERT before and after the values."""
    fields = [it.field for it in columns_of(model, using)]
    ops = connections[using].ops
    on_conflict = OnConflict.IGNORE if ignore_conflicts else None
    verb = ops.insert_statement(on_conflict=on_conflict)
    head = f"{verb} {table(model, using)} VALUES"
    return head, ops.on_conflict_suffix_sql(fields, on_conflict, [], [])
