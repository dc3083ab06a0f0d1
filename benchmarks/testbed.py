"""The servers, environments and processes that measurements need."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
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


class SinkProcess(ManagedProcess):
    """The sink (``benchmarks.sink``) in a process of its own."""

    port: int

    def __init__(self, folder: Path, delay: float) -> None:
        command = [sys.executable, "-m", "benchmarks.sink", str(delay)]
        super().__init__(command, log=folder / "sink.log", cwd=REPOSITORY)

    def start(self, timeout: float = 30.0) -> None:
        """Start the process, and read its ports from what it prints."""
        super().start(timeout)
        self.port, self._control_port = map(int, self.log_text(since_start=True).split())

    def is_ready(self) -> bool:
        """Return whether it has printed its ports."""
        return self.log_text(since_start=True).endswith("\n")

    def counts(self) -> dict[str, Any]:
        """Return the counts of accepted mail so far."""
        with socket.create_connection(("127.0.0.1", self._control_port)) as connection:
            answer: dict[str, Any] = json.loads(connection.makefile("rb").read())
        return answer


class Testbed:
    """PostgreSQL, Redis, a folder for logs, and an environment for each subject.

    ``durable`` is PostgreSQL's default: a commit returns when it is on the disk.
    """

    def __init__(self, stack: ExitStack, *, durable: bool = True) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.postgres = stack.enter_context(PostgresServer(self.folder, durable=durable))
        self.redis = stack.enter_context(RedisServer(self.folder))

    def prepare(self, subject: Subject) -> None:
        """Install a subject's packages and create its tables; needed once per subject."""
        python = self._python(subject)
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True, clear=True)
        packages = [it.format(repository=REPOSITORY) for it in subject.packages]
        wanted = [subject.django, "psycopg[binary]", *packages]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        self.postgres.create_database(_database(subject))
        self.run(subject, 0, _database(subject), "migrate")

    def sink(self, delay: float = 0.0) -> SinkProcess:
        """Return a sink, not yet started, that replies ``delay`` seconds late."""
        return SinkProcess(self.folder, delay)

    def fresh_database(self, subject: Subject) -> str:
        """Create a database with a subject's tables, empty Redis, and return the name."""
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

        ``broker`` is the URL of a broker to use instead of Redis.
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
        """Run a subject's worker, if any, for the length of the ``with`` block."""
        if not subject.worker:
            yield None
            return
        command = [
            str(self._python(subject)),
            *(part.format(processes=processes) for part in subject.worker),
        ]
        worker = ManagedProcess(
            command,
            log=self.folder / "worker.log",
            cwd=REPOSITORY,
            env=self._environment(subject, smtp_port, database),
            ready_line=subject.ready,
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()

    @contextmanager
    def held_snapshot(self, database: str) -> Iterator[None]:
        """Keep a transaction open that may still read what every row was, as a report or dump."""
        with self.postgres.connect(database) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM pg_class")
            yield
            connection.execute("ROLLBACK")

    def size(self, database: str) -> int:
        """Return the bytes that a database takes on the disk."""
        with self.postgres.connect(database) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(row[0]) if row else 0

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
            # A killed worker leaves its lock file behind; here it is deleted with the folder.
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
    """Return the CPU seconds of a process, its live descendants, and those it has waited for."""
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
