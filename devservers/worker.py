"""Run a Celery worker and Celery beat as processes of their own."""

from __future__ import annotations

import os
import random
import signal
import sys
from itertools import count
from typing import TYPE_CHECKING

from devservers.process import ManagedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_numbers = count(1)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, unbuffered, and overridden by ``env``.

    The settings module of a test run is left out: the project in the other process has its own.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    return {**inherited, "PYTHONUNBUFFERED": "1", **env}


def _require_info(loglevel: str) -> None:
    if loglevel.upper() not in ("DEBUG", "INFO"):
        raise ValueError(
            f"loglevel {loglevel!r} hides the line that tells that Celery is ready: "
            "use 'INFO' or 'DEBUG'."
        )


class Worker(ManagedProcess):
    """A Celery worker of ``app`` (as in ``celery -A app``) in the folder ``project_dir``.

    ``env`` is added to this process's environment. Its log is ``folder/<name>.log``.
    """

    def __init__(
        self,
        project_dir: Path,
        app: str,
        env: Mapping[str, str],
        *,
        folder: Path,
        queues: Sequence[str] = ("celery", "emails", "bulk_emails"),
        pool: str = "prefork",
        concurrency: int = 2,
        name: str | None = None,
        loglevel: str = "INFO",
        extra_args: Sequence[str] = (),
    ) -> None:
        _require_info(loglevel)
        self.name = name or f"worker{next(_numbers)}"
        self.concurrency = concurrency
        command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker"),
            *("--hostname", f"{self.name}@localhost", "--queues", ",".join(queues)),
            *("--pool", pool, "--concurrency", str(concurrency), "--loglevel", loglevel),
            *("--without-gossip", "--without-mingle", *extra_args),
        ]
        log = folder / f"{self.name}.log"
        super().__init__(command, log=log, cwd=project_dir, env=environment(env))

    def is_ready(self) -> bool:
        """Tell whether the worker consumes its queues."""
        return f"{self.name}@localhost ready." in self.log_text(since_start=True)

    def quit(self, timeout: float = 15.0) -> int | None:
        """Shut down cold (SIGQUIT): running tasks are not waited for."""
        return self.stop(signal.SIGQUIT, timeout)

    def kill_child(self) -> int:
        """Kill one process of the prefork pool with SIGKILL, drawn at random; return its id.

        Raises:
            RuntimeError: when there is none.
        """
        children = self.children()
        if not children:
            raise RuntimeError(f"{self!r} has no pool process to kill: use pool='prefork'.")
        victim = random.choice(children)
        os.kill(victim, signal.SIGKILL)
        return victim


class Beat(ManagedProcess):
    """Celery beat of ``app`` in the folder ``project_dir``; schedule file and log in ``folder``."""

    def __init__(
        self,
        project_dir: Path,
        app: str,
        env: Mapping[str, str],
        *,
        folder: Path,
        name: str | None = None,
        loglevel: str = "INFO",
        extra_args: Sequence[str] = (),
    ) -> None:
        _require_info(loglevel)
        self.name = name or f"beat{next(_numbers)}"
        command = [
            *(sys.executable, "-m", "celery", "-A", app, "beat"),
            *("--schedule", str(folder / f"{self.name}-schedule"), "--pidfile", ""),
            *("--loglevel", loglevel, *extra_args),
        ]
        log = folder / f"{self.name}.log"
        super().__init__(command, log=log, cwd=project_dir, env=environment(env))

    def is_ready(self) -> bool:
        """Tell whether beat has begun to keep its schedule."""
        return "beat: Starting..." in self.log_text(since_start=True)
