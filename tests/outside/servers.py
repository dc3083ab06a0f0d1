"""Servers that only these sites use: pgbouncer, gunicorn and uvicorn."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from devservers.process import ManagedProcess, free_port
from devservers.programs import find_program
from devservers.web import WebProcess
from tests.acceptance.places import EXAMPLE_PROJECT

_UNPRIVILEGED = "nobody"
"""The user that runs pgbouncer for root, whom it refuses."""


class PgBouncer(ManagedProcess):
    """A pgbouncer on 127.0.0.1 that gives a server connection for one transaction at a time."""

    def __init__(self, folder: Path, *, postgres: int, connections: int = 4) -> None:
        program = find_program("pgbouncer") or find_program("/usr/sbin/pgbouncer")
        if program is None:
            raise RuntimeError("No pgbouncer found: install it (apt-get install pgbouncer).")
        self.port = free_port()
        user = _UNPRIVILEGED if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        users, ini = self.home / "users", self.home / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        ini.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {connections}\n"
        )
        if user:
            for path in (self.home, users, ini):
                shutil.chown(path, user)
        super().__init__([program, ini], log=folder / "pgbouncer.log", cwd=self.home, user=user)

    def is_ready(self) -> bool:
        """Return whether it passes a query on."""
        try:
            url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        """Kill it, and delete its files."""
        super().close()
        shutil.rmtree(self.home, ignore_errors=True)


class WebServer(WebProcess):
    """The example project on another web server than Django's.

    ``command`` is what follows ``python``; ``{port}`` stands for the port.
    """

    ready_path = "/"

    def __init__(self, command: Sequence[str], env: Mapping[str, str], *, folder: Path) -> None:
        self.port = free_port()
        words = [word.format(port=self.port) for word in command]
        super().__init__([sys.executable, *words], EXAMPLE_PROJECT, env, folder=folder, name="web")
