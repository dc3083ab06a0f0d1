"""Start the servers of the demo on free ports; stop and remove them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import django

from demo.inbox import HOST, Inbox
from devservers.redis import RedisServer
from devservers.web import Flower, Web
from devservers.worker import Beat, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).resolve().parent.parent
USER = PASSWORD = "demo"  # noqa: S105


@dataclass(frozen=True)
class Stack:
    """The running servers."""

    inbox: Inbox
    redis: RedisServer
    worker: Worker
    beat: Beat
    site: Web
    flower: Flower | None
    """``None`` if Flower is not installed."""

    def check(self) -> None:
        """Raise `RuntimeError` with the end of its log if one of the processes has died."""
        for process in (self.redis, self.worker, self.beat, self.site, self.flower):
            if process is not None and not process.is_alive():
                raise RuntimeError(f"{process!r} has died.\n{process.log_tail()}")


@contextlib.contextmanager
def running(report: Callable[[str], None]) -> Iterator[Stack]:
    """
    Start everything in a temporary folder; stop and remove it at the end.

    `report` is called with the name of each part before it starts. The environment and
    `django.setup()` make this process one of the site's.
    """
    with ExitStack() as parts:
        folder = Path(parts.enter_context(TemporaryDirectory(prefix="epica-mail-demo-")))
        report("an SMTP inbox")
        inbox = parts.enter_context(Inbox(folder / "bounces"))
        report("Redis")
        redis = parts.enter_context(RedisServer(folder))
        # Inherited by every process started from here on, without the caller's own SHOP_ variables.
        for name in [name for name in os.environ if name.startswith("SHOP_")]:
            del os.environ[name]
        os.environ.update(
            DJANGO_SETTINGS_MODULE="shopsite.settings",
            SHOP_DATABASE_URL=f"sqlite://{folder / 'shop.sqlite3'}",
            SHOP_BROKER_URL=redis.url(),
            SHOP_SMTP_HOST=HOST,
            SHOP_SMTP_PORT=str(inbox.smtp_port),
            SHOP_SMTP_OPTIONS=json.dumps({"envelope_from": "bounces+{id}@shop.example.com"}),
            SHOP_EPICA_MAIL=json.dumps({"BOUNCE_MAILBOX": f"maildir:{inbox.bounces}"}),
            SHOP_SWEEP_SECONDS="10",
            SHOP_DEBUG="0",
        )
        report("a database")
        fill_database(parts)
        report("a Celery worker with two processes")
        worker = parts.enter_context(
            Worker(
                *(PROJECT, "shopsite", {}),
                folder=folder,
                concurrency=2,
                extra_args=["--task-events"],  # without it Flower sees no tasks
            )
        )
        report("beat")
        beat = parts.enter_context(Beat(PROJECT, "shopsite", {}, folder=folder))
        report("the site")
        site = parts.enter_context(Web(PROJECT, {}, folder=folder, name="site", insecure=True))
        flower = None
        if find_spec("flower"):
            report("Flower")
            flower = parts.enter_context(
                Flower(PROJECT, "shopsite", {}, folder=folder, basic_auth=f"{USER}:{PASSWORD}")
            )
        yield Stack(inbox, redis, worker, beat, site, flower)


def fill_database(parts: ExitStack) -> None:
    """Set up Django in this process, migrate, and add a superuser and the sample products."""
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections

    parts.callback(connections.close_all)
    call_command("migrate", verbosity=0)
    call_command("sample_products")
    User.objects.create_superuser(USER, f"{USER}@example.com", PASSWORD)
