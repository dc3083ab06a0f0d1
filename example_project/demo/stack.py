"""Starts what the demo needs, each part on a free port, and stops and removes all of it."""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.request import urlopen

import django

from demo.inbox import HOST, Inbox
from devservers.process import ManagedProcess, free_port
from devservers.redis import RedisServer
from devservers.worker import Beat, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).resolve().parent.parent
USER = PASSWORD = "demo"  # noqa: S105


class Site(ManagedProcess):
    """The shop, served by Django's own server."""

    def __init__(self, folder: Path) -> None:
        address = f"{HOST}:{free_port()}"
        self.url = f"http://{address}/"
        # --insecure serves the admin's CSS although DEBUG is off.
        command = [sys.executable, "manage.py", "runserver", "--noreload", "--insecure", address]
        super().__init__(command, log=folder / "site.log", cwd=PROJECT)

    def is_ready(self) -> bool:
        """Tell whether the home page answers."""
        with contextlib.suppress(OSError), urlopen(self.url, timeout=5) as response:  # noqa: S310
            return response.status == 200
        return False


class Flower(ManagedProcess):
    """Flower: the workers and the tasks, as Celery tells of them."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}/"
        command = [sys.executable, "-m", "celery", "--app=shopsite", "flower"]
        command += [f"--address={HOST}", f"--port={port}", f"--basic-auth={USER}:{PASSWORD}"]
        super().__init__(command, log=folder / "flower.log", cwd=PROJECT)

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        with contextlib.suppress(OSError), urlopen(f"{self.url}healthcheck", timeout=5) as response:  # noqa: S310
            return response.status == 200
        return False


@dataclass(frozen=True)
class Stack:
    """What runs."""

    inbox: Inbox
    redis: RedisServer
    worker: Worker
    beat: Beat
    site: Site
    flower: Flower | None
    """``None`` where Flower is not installed."""

    def check(self) -> None:
        """Raise `RuntimeError` with the end of the log if one of the processes has died."""
        for process in (self.redis, self.worker, self.beat, self.site, self.flower):
            if process is not None and not process.is_alive():
                raise RuntimeError(f"{process!r} has died.\n{process.log_tail()}")


@contextlib.contextmanager
def running(say: Callable[[str], None]) -> Iterator[Stack]:
    """
    Start everything in a temporary folder, telling `say` what; stop and remove it at the end.

    This process itself becomes one of the site, by environment and `django.setup()`.
    """
    with ExitStack() as parts:
        folder = Path(parts.enter_context(TemporaryDirectory(prefix="epica-mail-demo-")))
        say("an SMTP inbox")
        inbox = parts.enter_context(Inbox())
        say("Redis")
        redis = parts.enter_context(RedisServer(folder))
        # Every process started from here on inherits it, and nothing the caller had set.
        for name in [name for name in os.environ if name.startswith("SHOP_")]:
            del os.environ[name]
        os.environ.update(
            DJANGO_SETTINGS_MODULE="shopsite.settings",
            SHOP_DATABASE_URL=f"sqlite://{folder / 'shop.sqlite3'}",
            SHOP_BROKER_URL=redis.url(),
            SHOP_SMTP_HOST=HOST,
            SHOP_SMTP_PORT=str(inbox.smtp_port),
            SHOP_SWEEP_SECONDS="10",
            SHOP_DEBUG="0",
        )
        say("a database")
        fill_database(parts)
        say("a Celery worker of two processes")
        worker = parts.enter_context(
            Worker(
                *(PROJECT, "shopsite", {}),
                folder=folder,
                concurrency=2,
                extra_args=["--task-events"],  # without them Flower sees no task
            )
        )
        say("beat")
        beat = parts.enter_context(Beat(PROJECT, "shopsite", {}, folder=folder))
        say("the site")
        site = parts.enter_context(Site(folder))
        flower = None
        if find_spec("flower"):
            say("Flower")
            flower = parts.enter_context(Flower(folder))
        yield Stack(inbox, redis, worker, beat, site, flower)


def fill_database(parts: ExitStack) -> None:
    """Set Django up in this process, migrate, add the log-in and the sample products."""
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections

    parts.callback(connections.close_all)
    call_command("migrate", verbosity=0)
    call_command("sample_products")
    User.objects.create_superuser(USER, f"{USER}@example.com", PASSWORD)
