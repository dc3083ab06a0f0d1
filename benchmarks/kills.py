"""Kill a worker again and again at full speed, and count the mails that then arrive twice.

    python -m benchmarks.kills --kills 100

A process sends a backlog on PostgreSQL with durable commits, and gets SIGKILL at a random moment.
What the server accepted and the database does not know as sent will be sent once more.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.testbed import SinkProcess
from devservers.postgres import PostgresServer

_MAILS_PER_KILL = 250
_SHORTEST, _LONGEST = 0.2, 0.6
"""Seconds that a worker lives."""
_REST = 0.4
"""Seconds for PostgreSQL to end what the killed process had asked for."""


def main() -> None:
    """Kill workers, and print how many mails of each would arrive twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    kills = parser.parse_args().kills
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder, durable=True))
        sink = stack.enter_context(SinkProcess(folder, 0.0))
        postgres.create_database("epica_mail")
        set_up(postgres.django_settings("epica_mail"), sink.port)
        _queue(kills * _MAILS_PER_KILL)
        twice, held = _kill_workers(kills, sink)
    twice.sort()
    print(f"\n| of {kills} kills | median | 95 in 100 | most |\n|---|---|---|---|")
    print(
        f"| mails that arrive twice | {_share(twice, 0.5)} | {_share(twice, 0.95)} | {twice[-1]} |"
    )
    print(f"| mails in doubt, for each kill | {held / kills:.1f} | | |")


def set_up(database: dict[str, Any], smtp_port: int) -> None:
    """Set Django up with a database and one transport, and create the tables."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    smtp = "django.core.mail.backends.smtp.EmailBackend"
    transport = {"BACKEND": smtp, "OPTIONS": {"host": "127.0.0.1", "port": smtp_port}}
    settings.configure(
        SECRET_KEY="benchmark",  # noqa: S106 - nothing is signed
        USE_TZ=True,
        INSTALLED_APPS=["django.contrib.contenttypes", "django_epica_mail"],
        DATABASES={"default": {**database, "CONN_MAX_AGE": 600}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        MAILERS={"smtp": transport},
        CELERY_BROKER_URL="memory://",
        LOGGING_CONFIG=None,
    )
    logging.disable()  # there is no broker to ring
    django.setup()
    call_command("migrate", verbosity=0)


def _queue(number: int) -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    messages = (
        EmailMessage(f"Mail {it}", "Body " * 50, "from@example.com", [f"to{it}@example.com"])
        for it in range(number)
    )
    outbox.enqueue_many(messages, queue="emails", transport="smtp")


def _kill_workers(kills: int, sink: SinkProcess) -> tuple[list[int], int]:
    """Return how many mails of each kill will arrive twice, and how many are in doubt in sum."""
    from django.db import connections

    from django_epica_mail.delivery import worker
    from django_epica_mail.models import EmailLog

    twice: list[int] = []
    for _ in range(kills):
        connections.close_all()
        child = os.fork()
        if child == 0:
            while True:
                worker.deliver("emails")
        time.sleep(random.uniform(_SHORTEST, _LONGEST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        time.sleep(_REST)
        unknown = sink.counts()["total"] - EmailLog.objects.filter(status="sent").count()
        twice.append(unknown - sum(twice))
    return twice, EmailLog.objects.filter(status="sending").count()


def _share(values: list[int], share: float) -> int:
    return values[min(len(values) - 1, int(len(values) * share))]


if __name__ == "__main__":
    main()
