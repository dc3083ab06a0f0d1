"""Makes instances of what a statement returns, in half the time of ``QuerySet.raw``.

A worker claims mail for every few that it sends, and each claim reads all columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.models import Model


def read(model: type[Model], statement: str, params: Sequence[Any], using: str) -> list[Any]:
    """Return the rows of a statement as instances, as ``QuerySet.raw`` does.

    Columns that are none of the model become attributes. The statement must return all columns of
    the model. Raises what the database raises.
    """
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        positions = {column[0]: index for index, column in enumerate(cursor.description)}
        rows = cursor.fetchall()
    fields = model._meta.concrete_fields
    order = [positions.pop(field.column) for field in fields]
    columns = [field.cached_col for field in fields]
    converters = [
        (index, column, convert)
        for index, column in enumerate(columns)
        for convert in (
            *connection.ops.get_db_converters(column),
            *column.get_db_converters(connection),
        )
    ]
    names = [field.attname for field in fields]
    found = []
    for row in rows:
        values = [row[index] for index in order]
        for index, column, convert in converters:
            values[index] = convert(values[index], column, connection)
        instance = model.from_db(using, names, values)
        for name, index in positions.items():
            setattr(instance, name, row[index])
        found.append(instance)
    return found
