"""The database of a run, on a server of its own that faults may hit."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from devservers.mariadb import MariaDBServer
from devservers.postgres import PostgresServer
from tests.acceptance.databases import migrate

NAME = "shop"


class Database(Protocol):
    """What faults do to a database, and what is asked of it at the end."""

    def fresh(self, kind: str) -> str:
        """Make the database, migrated, and return its URL."""

    def drop(self, url: str) -> None:
        """Stop the server."""

    def restart(self) -> None:
        """Stop and start the server; what was committed stays."""

    def crash(self) -> None:
        """Kill and start the server; what was committed stays."""

    def cut(self) -> None:
        """End every connection from the server's side."""

    def pause(self) -> None:
        """Let the server answer nothing."""

    def resume(self) -> None:
        """Let the server go on."""

    def connections(self) -> int:
        """Return how many clients are connected to the site's database."""

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""

    def refuse_inserts(self) -> None:
        """Let every insert of a mail fail, as on a full disk."""

    def accept_inserts(self) -> None:
        """Let inserts through again."""


class Postgres(PostgresServer):
    """PostgreSQL; ``isolation`` is the transactions' default level."""

    def __init__(self, folder: Path, isolation: str = "read committed") -> None:
        # Without synchronous_commit a killed server would forget what it said was committed.
        super().__init__(folder, config={"synchronous_commit": "on"})
        self.isolation = isolation

    def fresh(self, kind: str) -> str:
        """Make the database, migrated, and return its URL."""
        self.start()
        self.create_database(NAME)
        migrate(self.url(NAME))
        self.execute(
            f"ALTER DATABASE {NAME} SET default_transaction_isolation = '{self.isolation}'"
        )
        return self.url(NAME)

    def drop(self, url: str) -> None:
        """Stop the server."""
        self.close()

    def crash(self) -> None:
        """Kill and start the server; what was committed stays."""
        self.kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.start()

    def cut(self) -> None:
        """End every connection from the server's side."""
        self.cut_connections(NAME)

    def connections(self) -> int:
        """Return how many clients are connected to the site's database."""
        with self.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, [NAME]).fetchone()
        return int(row[0]) if row else 0

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""
        with self.connect(NAME) as connection:
            connection.execute(statement.encode())

    def refuse_inserts(self) -> None:
        """Let every insert of a mail fail, as on a full disk."""
        self.execute(
            "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
        )
        self.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON epica_mail_emaillog "
            "FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"
        )

    def accept_inserts(self) -> None:
        """Let inserts through again."""
        self.execute("DROP TRIGGER full_disk ON epica_mail_emaillog")


class MariaDB(MariaDBServer):
    """MariaDB."""

    def fresh(self, kind: str) -> str:
        """Make the database, migrated, and return its URL."""
        self.start()
        self.create_database(NAME)
        migrate(self.url(NAME))
        return self.url(NAME)

    def drop(self, url: str) -> None:
        """Stop the server."""
        self.kill()

    def restart(self) -> None:
        """Stop and start the server; what was committed stays."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill and start the server; what was committed stays."""
        self.kill()
        self.start()

    def cut(self) -> None:
        """End every connection from the server's side."""
        for number in self._clients():
            self.query(f"KILL {number}")

    def connections(self) -> int:
        """Return how many clients are connected to the site's database."""
        return len(self._clients())

    def execute(self, statement: str) -> None:
        """Run a statement in the site's database."""
        done = self.query(f"USE {NAME}; {statement}")
        if done.returncode:
            raise RuntimeError(f"MariaDB refused {statement!r}: {done.stderr}")

    def refuse_inserts(self) -> None:
        """Let every insert of a mail fail, as on a full disk."""
        self.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON epica_mail_emaillog FOR EACH ROW "
            "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = 'the table is full'"
        )

    def accept_inserts(self) -> None:
        """Let inserts through again."""
        self.execute("DROP TRIGGER full_disk")

    def _clients(self) -> list[int]:
        query = f"SELECT id FROM information_schema.processlist WHERE db = '{NAME}'"
        return [int(line) for line in self.query(query).stdout.split() if line.isdigit()]
