"""Create migrated databases for the example project as quick copies of one template."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg

from devservers.postgres import PostgresServer
from tests.acceptance.places import EXAMPLE_PROJECT

if TYPE_CHECKING:
    from pathlib import Path

_TEMPLATE = "template_shop"


class Databases:
    """A factory of databases; it creates server and templates when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)

    def fresh(self, kind: str) -> str:
        """Create a migrated database of the ``kind`` sqlite or postgresql; return its URL."""
        name = f"shop{next(self._numbers)}"
        if kind == "sqlite":
            path = self._folder / f"{name}.sqlite3"
            shutil.copy(self._sqlite_template, path)
            return f"sqlite://{path}"
        if kind == "postgresql":
            with self._postgres.connect() as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
            return self._postgres.url(name)
        raise ValueError(f"The kind of database must be sqlite or postgresql, not {kind!r}.")

    def drop(self, url: str) -> None:
        """Drop a database created by ``fresh``."""
        parts = urlsplit(url)
        if parts.scheme == "sqlite":
            for path in self._folder.glob(f"{parts.path.rpartition('/')[2]}*"):
                path.unlink()
        else:
            self._postgres.drop_database(parts.path.lstrip("/"))

    def close(self) -> None:
        """Stop the server, if it was started."""
        if "_postgres" in vars(self):
            self._postgres.close()

    @cached_property
    def _sqlite_template(self) -> Path:
        path = self._folder / "template.sqlite3"
        migrate(f"sqlite://{path}")
        return path

    @cached_property
    def _postgres(self) -> PostgresServer:
        server = PostgresServer(self._folder)
        server.start()
        server.create_database(_TEMPLATE)
        migrate(server.url(_TEMPLATE))
        return server


def fetch(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, run over a new connection."""
    if url.startswith("sqlite://"):
        with closing(sqlite3.connect(urlsplit(url).path, timeout=20)) as connection:
            return connection.execute(sql).fetchall()
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


def migrate(url: str) -> None:
    """Create the example project's tables in a database."""
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=EXAMPLE_PROJECT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "shopsite.settings", "SHOP_DATABASE_URL": url},
        check=True,
    )
