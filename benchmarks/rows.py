"""Create mails by the million: copies of one, made inside the database."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any

from django.core.mail import EmailMessage
from django.db import connections, models
from django.utils import timezone

from django_epica_mail import lifecycle, outbox
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient

_NUMBERS = {
    "postgresql": "(SELECT generate_series({first}, {last}) AS n) AS numbers",
    "mysql": "(SELECT seq AS n FROM seq_{first}_to_{last}) AS numbers",
    "sqlite": "(WITH RECURSIVE up(n) AS (VALUES({first}) UNION ALL SELECT n + 1 FROM up "
    "WHERE n < {last}) SELECT n FROM up) AS numbers",
}
# Nearly ascending, as in a real queue: new rows are next to each other in the index.
_IDS = {
    "postgresql": "CAST('{series}-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid)",
    "mysql": "CONCAT('{series}-7000-8000-', LPAD(LOWER(HEX(n)), 12, '0'))",
    "sqlite": "replace('{series}-7000-8000-', '-', '') || printf('%%012x', n)",
}
_LATER = {
    "postgresql": "{column} + n * interval '1 millisecond'",
    "mysql": "DATE_ADD({column}, INTERVAL n * 1000 MICROSECOND)",
    "sqlite": "strftime('%%Y-%%m-%%d %%H:%%M:%%f000', {column}, (n * 0.001) || ' seconds')",
}
_series = count(0x0190_0000_0000)


def template(
    status: Status,
    *,
    priority: int = 9,
    transport: str = "smtp",
    due: timedelta = timedelta(hours=-1),
    give_up: timedelta = timedelta(days=3),
    finished: timedelta | None = None,
    leased: timedelta | None = None,
    kind: str = "",
) -> EmailLog:
    """Store a mail in the given state; times are relative to now."""
    now = timezone.now()
    log = outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"]), transport="smtp")
    log.transport = transport  # which may have been configured before
    log.status, log.priority = status, priority
    log.pending = priority if status in lifecycle.CLAIMABLE else None
    log.created_at = log.due_at = now + due
    log.give_up_at = now + give_up
    log.finished_at = None if finished is None else now + finished
    log.lease_until = None if leased is None else now + leased
    log.lease_token = None if leased is None else uuid.uuid4()
    log.failure_kind = kind
    if status in lifecycle.FINAL:
        log.attempts = log.tries = 1
        log.delivery_attempts.create(
            number=1, transport="smtp", worker="w", created_at=now, failure_kind=kind
        )
    log.save()
    return log


def multiply(
    log: EmailLog,
    copies: int,
    *,
    using: str = "default",
    chunk: int = 50_000,
    advance: Callable[[int], None] = lambda rows: None,
) -> None:
    """Insert ``copies`` more mails like ``log``, with recipients and attempts.

    Each copy has its own ids, and times a millisecond after those of the previous one. After each
    ``chunk``, which takes one statement per table, ``advance`` is called with the number made.
    """
    copiers = [
        _Copier(using, EmailLog, "id", log.pk),
        _Copier(using, EmailRecipient, "email", log.pk),
        _Copier(using, DeliveryAttempt, "email", log.pk),
    ]
    series = [_new_series() for _ in copiers]
    for first in range(1, copies + 1, chunk):
        last = min(copies, first + chunk - 1)
        for copier, own in zip(copiers, series, strict=True):
            copier.copy(first, last, own=own, parent=series[0])
        advance(last - first + 1)


def analyze(using: str = "default") -> None:
    """Update the database's statistics, from which it chooses query plans."""
    connection = connections[using]
    tables = [model._meta.db_table for model in (EmailLog, EmailRecipient, DeliveryAttempt)]
    with connection.cursor() as cursor:
        for table in tables:
            if connection.vendor == "mysql":
                cursor.execute(f"ANALYZE TABLE {table}")
                cursor.fetchall()
            elif connection.vendor == "postgresql":
                cursor.execute(f"VACUUM (ANALYZE) {table}")
            else:
                cursor.execute(f"ANALYZE {table}")


def _new_series() -> str:
    digits = f"{next(_series):012x}"
    return f"{digits[:8]}-{digits[8:]}"


class _Copier:
    """Copies the rows of one table that belong to a mail."""

    def __init__(self, using: str, model: type[models.Model], by: str, value: Any) -> None:
        self._connection, self._model = connections[using], model
        owner = model._meta.get_field(by)
        self._where = owner.column
        self._value = owner.get_db_prep_value(value, self._connection)

    def copy(self, first: int, last: int, *, own: str, parent: str) -> None:
        vendor, table = self._connection.vendor, self._model._meta.db_table
        columns = dict(self._columns(own, parent))
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - our own names
                f"SELECT {', '.join(columns.values())} FROM {table}, "
                f"{_NUMBERS[vendor].format(first=first, last=last)} WHERE {self._where} = %s",
                [self._value],
            )

    def _columns(self, own: str, parent: str) -> Iterator[tuple[str, str]]:
        """Yield each column with the SQL of its value in a copy."""
        vendor = self._connection.vendor
        for field in self._model._meta.local_concrete_fields:
            column = field.column
            if isinstance(field, models.AutoField):
                continue
            if field.primary_key:
                yield column, _IDS[vendor].format(series=own)
            elif column == self._where:
                yield column, _IDS[vendor].format(series=parent)
            elif column == "message_id":
                yield column, _text(vendor, f"<{own}-", "n", "@example.com>")
            elif isinstance(field, models.DateTimeField) and column != "lease_until":
                yield column, _LATER[vendor].format(column=column)
            else:
                yield column, column


def _text(vendor: str, *parts: str) -> str:
    quoted = [part if part == "n" else f"'{part}'" for part in parts]
    return f"CONCAT({', '.join(quoted)})" if vendor == "mysql" else " || ".join(quoted)
