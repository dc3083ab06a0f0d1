"""The state of a database that a site may have, and a test's own never has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.db.migrations.recorder import MigrationRecorder


@contextmanager
def no_migrations() -> Iterator[None]:
    """Take the package's migrations for not having run. Outside a transaction, as commands are."""
    recorder = MigrationRecorder(connection)
    names = [name for app, name in recorder.applied_migrations() if app == "epica_mail"]
    for name in names:
        recorder.record_unapplied("epica_mail", name)
    try:
        yield
    finally:
        for name in names:
            recorder.record_applied("epica_mail", name)
