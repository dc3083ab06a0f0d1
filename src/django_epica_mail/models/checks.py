"""System checks of the database that holds the mail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router
from django.db.migrations.loader import MigrationLoader

from django_epica_mail.models.emails import EmailLog
from django_epica_mail.models.fields import charset_of


@checks.register("mail", checks.Tags.database)
def check_characters(
    app_configs: Sequence[AppConfig] | None = None,
    databases: Sequence[str] | None = None,
    **_: Any,
) -> list[CheckMessage]:
    """Warn of a database that cannot store every character; run with ``--database``."""
    using = router.db_for_write(EmailLog)
    charset = charset_of(connections[using]) if using in (databases or ()) else None
    if charset is None:
        return []
    return [
        checks.Warning(
            f"The database {using!r} stores text as {charset}: of subjects, addresses and the "
            "words of servers, lists and searches show question marks for what it lacks. The mail "
            "is sent as it was written.",
            hint="Convert the tables of epica_mail: to utf8mb4 on MariaDB and MySQL, to UTF8 on "
            "PostgreSQL.",
            id="epica_mail.W010",
        )
    ]


def check_locking() -> Iterator[CheckMessage]:
    """Warn of SQLite in the mode in which a transaction fails when another one writes."""
    using = router.db_for_write(EmailLog)
    connection: Any = connections[using]
    mode = connection.settings_dict["OPTIONS"].get("transaction_mode") or ""
    if connection.vendor != "sqlite" or connection.is_in_memory_db():
        return  # in memory, no other process writes
    if mode.upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield checks.Warning(
            f"DATABASES[{using!r}] is SQLite in its deferred mode: a transaction that reads before "
            "it writes fails with 'database is locked' if a worker has written meanwhile, without "
            "waiting for its timeout.",
            hint="Add to its OPTIONS 'transaction_mode': 'IMMEDIATE', 'timeout': 20 and "
            "'init_command': 'PRAGMA journal_mode=WAL;'; see 'SQLite' on the page 'Production'.",
            id="epica_mail.W080",
        )


def missing_migrations(using: str) -> str:
    """Return a sentence, without its end, on migrations of mail that have not run; or ``""``."""
    label = EmailLog._meta.app_label
    try:
        loader = MigrationLoader(connections[using])
    except DatabaseError:
        return ""  # no database
    names = [name for app, name in loader.graph.nodes if app == label]
    waiting = sorted(it for it in names if (label, it) not in (loader.applied_migrations or {}))
    if not waiting:
        return ""
    if len(waiting) == len(names):
        return "The tables of mail do not exist yet"
    return f"The tables of mail lack what {', '.join(waiting)} adds"


_PACKAGE = "django_epica_mail"


def check_database() -> Iterator[CheckMessage]:
    """Check which database holds the mail, and how times are stored in it."""
    using = router.db_for_write(EmailLog)
    yield from _check_transactions(using)
    yield from _check_times(using)
    yield from _check_tenants()


def _check_transactions(using: str) -> Iterator[CheckMessage]:
    if not connections[using].settings_dict["AUTOCOMMIT"]:
        yield Error(
            f"DATABASES[{using!r}]['AUTOCOMMIT'] is False: nothing that a worker records would be "
            "committed, and each mail would be sent again and again. So no worker sends any.",
            hint="Remove it, or route epica_mail to another database.",
            id="epica_mail.E010",
        )
    if using != DEFAULT_DB_ALIAS:
        yield checks.Warning(
            f"Mail is stored in the database {using!r}, outside the transactions of "
            f"{DEFAULT_DB_ALIAS!r}: after a rollback there, its mail is still sent.",
            hint="Route epica_mail to the database that holds the data the mail is about.",
            id="epica_mail.W006",
        )


def _check_times(using: str) -> Iterator[CheckMessage]:
    if not settings.USE_TZ:
        yield Error(
            "USE_TZ is False: times from web processes, workers and the database cannot be "
            "compared, and mail would be sent hours early or late.",
            hint="Set USE_TZ = True; see 'Times and zones' on the page 'Production'.",
            id="epica_mail.E007",
        )
    elif not connections[using].features.supports_timezones and not _is_utc(using):
        zone = connections[using].settings_dict["TIME_ZONE"]
        yield Error(
            f"DATABASES[{using!r}]['TIME_ZONE'] is {zone!r}: Django stores the times of mail as "
            "clocks there show them, but this database knows the time in UTC only, and mail would "
            "be sent or expire hours early or late.",
            hint="Remove it, and convert the times that are stored already, or route epica_mail to "
            "another database; see 'Times and zones' on the page 'Production'.",
            id="epica_mail.E008",
        )


def _check_tenants() -> Iterator[CheckMessage]:
    """Refuse tables in each tenant's schema: nobody would sweep and claim in all of them."""
    named = [("TENANT_APPS", getattr(settings, "TENANT_APPS", ()))]
    public = getattr(settings, "PUBLIC_SCHEMA_NAME", "public")
    for name, kind in getattr(settings, "TENANT_TYPES", {}).items():
        if name != public:
            named.append((f"TENANT_TYPES[{name!r}]['APPS']", kind.get("APPS", ())))
    for setting, apps in named:
        if any(str(it).partition(".")[0] == _PACKAGE for it in apps):
            yield Error(
                f"{setting} lists {_PACKAGE}: each tenant would have a queue of its own, but "
                "workers and the sweep look into one schema, and mail of the others would wait.",
                hint=f"List {_PACKAGE} in SHARED_APPS alone, with the apps it needs; tenants then "
                "share one queue, in which a category or a queue tells their mail apart.",
                id="epica_mail.E009",
            )


def _is_utc(using: str) -> bool:
    """Return whether Django stores times in UTC, or in a zone that never differs from it."""
    zone = connections[using].timezone
    moments = (datetime(2026, month, 1) for month in (1, 7))
    return zone is None or all(zone.utcoffset(it) == timedelta() for it in moments)
