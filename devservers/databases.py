"""Choose a database server by name; only the chosen one's driver is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devservers.database_server import DatabaseServer


def _postgresql(folder: Path) -> DatabaseServer:
    from devservers.postgres import PostgresServer

    return PostgresServer(folder)


def _mariadb(folder: Path) -> DatabaseServer:
    from devservers.mariadb import MariaDBServer

    return MariaDBServer(folder)


DATABASES: dict[str, Callable[[Path], DatabaseServer]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
}
"""Makes a server, not yet started, with its log (and MariaDB's data) in a folder."""
