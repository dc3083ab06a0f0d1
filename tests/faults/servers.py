"""Control the database of a run, on its own server."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from devservers.database_server import DatabaseServer
from devservers.mariadb import MariaDBServer
from devservers.postgres import PostgresServer
from tests.acceptance.databases import migrate

NAME = "shop"


class Database(Protocol):
    """The operations on a run's database."""

    def fresh(self, kind: str) -> str:
        """Start the server and create the migrated database; return its URL."""

    def drop(self, url: str) -> None:
        """Stop the server."""

    def restart(self) -> None:
        """Restart the server; committed data stays."""

    def crash(self) -> None:
        """Kill the server and start it again; committed data stays."""

    def cut(self) -> None:
        """Terminate every connection to the site's database."""

    def pause(self) -> None:
        """Pause the server, so that it answers nothing."""

    def resume(self) -> None:
        """Resume the server."""

    def connections(self) -> int:
        """Return the number of connections to the site's database."""

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""

    def refuse_inserts(self) -> None:
        """Make every insert of a mail fail, as on a full disk."""

    def accept_inserts(self) -> None:
        """Allow inserts again."""


def _start_with_tables(server: DatabaseServer) -> str:
    server.start()
    server.create_database(NAME)
    url = server.url(NAME)
    migrate(url)
    return url


class Postgres(PostgresServer):
    """PostgreSQL; ``isolation`` is the default level of transactions."""

    def __init__(self, folder: Path, isolation: str = "read committed") -> None:
        # Without synchronous_commit a killed server would lose transactions it reported committed.
        super().__init__(folder, config={"synchronous_commit": "on"})
        self.isolation = isolation

    def fresh(self, kind: str) -> str:
        """Start the server and create the migrated database; return its URL."""
        url = _start_with_tables(self)
        self.execute(
            f"ALTER DATABASE {NAME} SET default_transaction_isolation = '{self.isolation}'"
        )
        return url

    def drop(self, url: str) -> None:
        """Stop the server."""
        self.close()

    def crash(self) -> None:
        """Kill the server and start it again; committed data stays."""
        self.kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.start()

    def cut(self) -> None:
        """Terminate every connection to the site's database."""
        self.cut_connections(NAME)

    def connections(self) -> int:
        """Return the number of connections to the site's database."""
        with self.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, [NAME]).fetchone()
        return int(row[0]) if row else 0

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""
        with self.connect(NAME) as connection:
            connection.execute(statement.encode())

    def refuse_inserts(self) -> None:
        """Make every insert of a mail fail, as on a full disk."""
        self.execute(
            "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
        )
        self.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON epica_mail_emaillog "
            "FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"
        )

    def accept_inserts(self) -> None:
        """Allow inserts again."""
        self.execute("DROP TRIGGER full_disk ON epica_mail_emaillog")


class MariaDB(MariaDBServer):
    """MariaDB."""

    def fresh(self, kind: str) -> str:
        """Start the server and create the migrated database; return its URL."""
        return _start_with_tables(self)

    def drop(self, url: str) -> None:
        """Stop the server."""
        self.close()

    def crash(self) -> None:
        """Kill the server and start it again; committed data stays."""
        self.kill()
        self.start()

    def cut(self) -> None:
        """Terminate every connection to the site's database."""
        for number in self._clients():
            self.query(f"KILL {number}")

    def connections(self) -> int:
        """Return the number of connections to the site's database."""
        return len(self._clients())

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""
        done = self.query(f"USE {NAME}; {statement}")
        if done.returncode:
            raise RuntimeError(f"MariaDB refused {statement!r}: {done.stderr}")

    def refuse_inserts(self) -> None:
        """Make every insert of a mail fail, as on a full disk."""
        self.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON epica_mail_emaillog FOR EACH ROW "
            "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = 'the table is full'"
        )

    def accept_inserts(self) -> None:
        """Allow inserts again."""
        self.execute("DROP TRIGGER full_disk")

    def _clients(self) -> list[int]:
        query = f"SELECT id FROM information_schema.processlist WHERE db = '{NAME}'"
        return [int(line) for line in self.query(query).stdout.split() if line.isdigit()]
