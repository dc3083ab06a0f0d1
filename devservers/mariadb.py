"""Run a real MariaDB server of one's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from devservers.process import ManagedProcess, free_port

_PROGRAMS = ("/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin")


def find_program(*names: str) -> Path:
    """Return the first of the programs ``names`` found on PATH or where Debian puts servers.

    Raises:
        RuntimeError: when there is none, naming what to install.
    """
    for name in names:
        if found := shutil.which(name) or shutil.which(name, path=":".join(_PROGRAMS)):
            return Path(found)
    raise RuntimeError(
        f"No {names[0]} found. Install MariaDB 10.6 or later (for instance "
        "`apt-get install mariadb-server`) and the package mysqlclient from PyPI."
    )


class MariaDBServer(ManagedProcess):
    """A MariaDB server on 127.0.0.1, without password, its data in ``folder``."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self.data = folder / f"mariadb-{self.port}"
        self.socket = self.data / "socket"
        command: list[str | Path] = [
            find_program("mariadbd", "mysqld"),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--socket={self.socket}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--innodb-flush-log-at-trx-commit=2",
            "--character-set-server=utf8mb4",
            "--max-allowed-packet=64M",
            "--user=root",
        ]
        super().__init__(command, log=folder / f"mariadb-{self.port}.log")

    def start(self, timeout: float = 60.0) -> None:
        """Start the server, its tables made before, and wait until it answers."""
        if not self.data.exists():
            self._make_tables()
        super().start(timeout)

    def is_ready(self) -> bool:
        """Tell whether the server answers a query."""
        return self.query("SELECT 1").returncode == 0

    def url(self, name: str) -> str:
        """Return the URL of the database ``name``."""
        return f"mysql://root@127.0.0.1:{self.port}/{quote(name)}"

    def create_database(self, name: str) -> None:
        """Create the empty database ``name``; one that exists is dropped first."""
        made = self.query(f"DROP DATABASE IF EXISTS `{name}`; CREATE DATABASE `{name}`")
        if made.returncode:
            raise RuntimeError(f"MariaDB did not create {name!r}: {made.stderr}")

    def django_settings(self, name: str) -> dict[str, Any]:
        """Return an entry for Django's DATABASES for the database ``name``."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": name,
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }

    def query(self, statement: str) -> subprocess.CompletedProcess[str]:
        client = find_program("mariadb", "mysql")
        return subprocess.run(
            [client, "--no-defaults", f"--socket={self.socket}", "-u", "root", "-e", statement],
            capture_output=True,
            text=True,
            check=False,
        )

    def _make_tables(self) -> None:
        program = find_program("mariadb-install-db", "mysql_install_db")
        made = subprocess.run(
            [
                program,
                "--no-defaults",
                f"--datadir={self.data}",
                "--user=root",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"{program} failed:\n{made.stdout}{made.stderr}")
