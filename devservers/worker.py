"""Run a Celery worker and Celery beat in processes of their own."""

from __future__ import annotations

import os
import random
import signal
import sys
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from devservers.process import ManagedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_numbers = count(1)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, with unbuffered output, overridden by ``env``.

    The settings module of the test run is left out: the project in the other process has its own.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    return {**inherited, "PYTHONUNBUFFERED": "1", **env}


def celery_command(app: str, program: str, *arguments: str) -> list[str]:
    """Return the command that runs one of Celery's programs for ``app``."""
    return [sys.executable, "-m", "celery", "-A", app, program, *arguments]


class _CeleryProcess(ManagedProcess):
    """A Celery program for ``app`` (as in ``celery -A app``) in the folder ``project_dir``.

    ``env`` is added to this process's environment. The log is ``folder/<name>.log``.
    """

    program: ClassVar[str]

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
        if loglevel.upper() not in ("DEBUG", "INFO"):
            raise ValueError(
                f"loglevel {loglevel!r} hides the line that says that Celery is ready: "
                "use 'INFO' or 'DEBUG'."
            )
        self.name = name or f"{self.program}{next(_numbers)}"
        options = [*self._options(folder), "--loglevel", loglevel, *extra_args]
        super().__init__(
            celery_command(app, self.program, *options),
            log=folder / f"{self.name}.log",
            cwd=project_dir,
            env=environment(env),
            ready_line=self._ready_line(),
        )

    def _options(self, folder: Path) -> list[str]:
        raise NotImplementedError

    def _ready_line(self) -> str:
        raise NotImplementedError


class Worker(_CeleryProcess):
    """A Celery worker, ready once it consumes its queues."""

    program = "worker"

    def __init__(
        self,
        *args: Any,
        queues: Sequence[str] = ("celery", "emails", "bulk_emails"),
        pool: str = "prefork",
        concurrency: int = 2,
        **options: Any,
    ) -> None:
        self.queues = queues
        self.pool = pool
        self.concurrency = concurrency
        super().__init__(*args, **options)

    def quit(self, timeout: float = 15.0) -> int | None:
        """Shut down cold (SIGQUIT), without waiting for running tasks."""
        return self.stop(signal.SIGQUIT, timeout)

    def kill_child(self) -> int:
        """Kill a random process of the prefork pool with SIGKILL; return its id.

        Raises:
            RuntimeError: if the pool has no processes.
        """
        children = self.children()
        if not children:
            raise RuntimeError(f"{self!r} has no pool process to kill: use pool='prefork'.")
        victim = random.choice(children)
        os.kill(victim, signal.SIGKILL)
        return victim

    def _options(self, folder: Path) -> list[str]:
        return [
            *("--hostname", f"{self.name}@localhost", "--queues", ",".join(self.queues)),
            *("--pool", self.pool, "--concurrency", str(self.concurrency)),
            *("--without-gossip", "--without-mingle"),
        ]

    def _ready_line(self) -> str:
        return f"{self.name}@localhost ready."


class Beat(_CeleryProcess):
    """Celery beat, ready once it keeps its schedule; its schedule file is in ``folder``."""

    program = "beat"

    def _options(self, folder: Path) -> list[str]:
        return ["--schedule", str(folder / f"{self.name}-schedule"), "--pidfile", ""]

    def _ready_line(self) -> str:
        return "beat: Starting..."
