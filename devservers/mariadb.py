"""Run a private MariaDB server."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from devservers.database_server import DatabaseServer
from devservers.process import free_port
from devservers.programs import find_program

if TYPE_CHECKING:
    from pathlib import Path

# Debian installs servers in folders that are not on every user's PATH.
_FOLDERS = ("/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin")


def find_mariadb_program(*names: str) -> Path:
    """Return the first of the programs ``names`` found on PATH or in the folders of servers.

    Raises:
        RuntimeError: if none is found; the message says what to install.
    """
    if found := find_program(*names, folders=_FOLDERS):
        return found
    raise RuntimeError(
        f"No {names[0]} found. Install MariaDB 10.6 or later (for instance "
        "`apt-get install mariadb-server`) and the package mysqlclient from PyPI."
    )


class MariaDBServer(DatabaseServer):
    """A MariaDB server on 127.0.0.1, without a password; its data is in ``folder``."""

    engine = "mysql"
    scheme = "mysql"
    superuser = "root"

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self.data = folder / f"mariadb-{self.port}"
        self.socket = self.data / "socket"
        command: list[str | Path] = [
            find_mariadb_program("mariadbd", "mysqld"),
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

    def is_ready(self) -> bool:
        """Return whether the server answers a query."""
        return self.query("SELECT 1").returncode == 0

    def create_database(self, name: str) -> None:
        """Create the empty database ``name``, dropping an existing one first."""
        made = self.query(f"DROP DATABASE IF EXISTS `{name}`; CREATE DATABASE `{name}`")
        if made.returncode:
            raise RuntimeError(f"MariaDB did not create {name!r}: {made.stderr}")

    def query(self, statement: str) -> subprocess.CompletedProcess[str]:
        """Run ``statement`` with MariaDB's client, and return the finished process."""
        client = find_mariadb_program("mariadb", "mysql")
        login = ["--no-defaults", f"--socket={self.socket}", "-u", self.superuser]
        return subprocess.run(
            [client, *login, "-e", statement], capture_output=True, text=True, check=False
        )

    def _initial_command(self) -> list[str | Path]:
        return [
            find_mariadb_program("mariadb-install-db", "mysql_install_db"),
            "--no-defaults",
            f"--datadir={self.data}",
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
