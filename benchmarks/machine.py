"""The servers, environments and processes of a measurement."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from psycopg import sql

from benchmarks.peers import Subject
from devservers.postgres import PostgresServer
from devservers.process import ManagedProcess
from devservers.redis import RedisServer

REPOSITORY = Path(__file__).parent.parent
_ENVIRONMENTS = REPOSITORY / ".tox" / "bench-sites"


class SinkProcess:
    """The sink (``benchmarks.sink``) in a process of its own."""

    def __init__(self, delay: float = 0.0) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink", str(delay)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stdout is not None
        self.port, self._control = map(int, self._popen.stdout.readline().split())

    def ask(self, question: str = "look") -> dict[str, Any]:
        """Return the counts; ``forget`` starts them again first."""
        with socket.create_connection(("127.0.0.1", self._control)) as connection:
            connection.sendall(f"{question}\n".encode())
            answer: dict[str, Any] = json.loads(connection.makefile("rb").read())
        return answer

    def close(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.wait()


class Worker(ManagedProcess):
    """Whatever a subject runs to send what is queued."""

    def __init__(self, command: Sequence[str], ready: str, **options: Any) -> None:
        self._ready = ready
        super().__init__(command, **options)

    def is_ready(self) -> bool:
        """Tell whether its log says so."""
        return self._ready in self.log_text(since_start=True)


class Machine:
    """PostgreSQL, Redis, a folder for logs, and an environment for each subject."""

    def __init__(self, stack: ExitStack) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.postgres = stack.enter_context(PostgresServer(self.folder))
        self.redis = stack.enter_context(RedisServer(self.folder))

    def prepare(self, subject: Subject) -> None:
        """Install what a subject needs, and make its tables, once."""
        python = self._python(subject)
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True, clear=True)
        packages = [it.format(repository=REPOSITORY) for it in subject.packages]
        wanted = [subject.django, "psycopg[binary]", *packages]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        self.postgres.create_database(_database(subject))
        self.run(subject, 0, _database(subject), "migrate")

    def fresh_database(self, subject: Subject) -> str:
        """Return the name of a new database with a subject's tables; Redis is emptied too."""
        with self.postgres.connect() as connection:
            connection.autocommit = True
            connection.execute("DROP DATABASE IF EXISTS measured WITH (FORCE)")
            connection.execute(
                sql.SQL("CREATE DATABASE measured TEMPLATE {}").format(
                    sql.Identifier(_database(subject))
                )
            )
        self.redis.flush()
        return "measured"

    def run(
        self,
        subject: Subject,
        smtp_port: int,
        database: str,
        *action: str,
        broker: str | None = None,
    ) -> dict[str, Any]:
        """Run the driver of a subject's site, and return what it measured.

        ``broker`` stands in place of Redis, as a URL.
        """
        done = subprocess.run(
            [self._python(subject), "-m", "benchmarks.site.driver", *action],
            cwd=REPOSITORY,
            env=self._environment(subject, smtp_port, database, broker),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        measured: dict[str, Any] = json.loads(done.stdout or "{}")
        return measured

    @contextmanager
    def worker(
        self, subject: Subject, smtp_port: int, database: str, processes: int
    ) -> Iterator[ManagedProcess | None]:
        """Run a subject's worker, if it has one."""
        if not subject.worker:
            yield None
            return
        command = [
            str(self._python(subject)),
            *(part.format(processes=processes) for part in subject.worker),
        ]
        worker = Worker(
            command,
            subject.ready,
            log=self.folder / "worker.log",
            cwd=REPOSITORY,
            env=self._environment(subject, smtp_port, database),
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()

    def cpu_seconds(self, worker: ManagedProcess | None) -> float:
        """Return the CPU seconds used so far by the worker, PostgreSQL and Redis."""
        pids = [self.postgres.pid, self.redis.pid, *([worker.pid] if worker else [])]
        return sum(map(_cpu_of_tree, pids))

    def _python(self, subject: Subject) -> Path:
        return _ENVIRONMENTS / _slug(subject) / "bin" / "python"

    def _environment(
        self, subject: Subject, smtp_port: int, database: str, broker: str | None = None
    ) -> dict[str, str]:
        site = {
            "apps": subject.apps,
            "calls": subject.calls,
            "uses_celery": any(it.startswith("celery") for it in subject.packages),
            "settings": subject.settings,
            "database": self.postgres.django_settings(database),
            "broker": broker or self.redis.url(),
            "smtp_port": smtp_port,
        }
        return {
            **os.environ,
            # A worker that is killed leaves its lock file behind.
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(REPOSITORY),
            "DJANGO_SETTINGS_MODULE": "benchmarks.site.settings",
            "BENCH_SITE": json.dumps(site),
        }


def _slug(subject: Subject) -> str:
    return "".join(it if it.isalnum() else "_" for it in subject.name)


def _database(subject: Subject) -> str:
    return f"base_{_slug(subject)}".lower()


def _cpu_of_tree(pid: int) -> float:
    """Add up a process, its living children, and those it has waited for."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += sum((times.user, times.system, times.children_user, times.children_system))
    return total


def memory(worker: ManagedProcess) -> float:
    """Return the resident memory of a worker and its children, in megabytes."""
    main = psutil.Process(worker.pid)
    tree = (main, *main.children(recursive=True))
    return float(sum(process.memory_info().rss for process in tree)) / 1e6
