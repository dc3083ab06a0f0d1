"""Provide the common base class of the PostgreSQL and MariaDB servers."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from devservers.process import ManagedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class DatabaseServer(ManagedProcess):
    """A database server on 127.0.0.1 that needs no password; its files are in ``data``.

    Subclasses set ``port`` and ``data`` before they call ``__init__``.
    """

    engine: ClassVar[str]
    """The last part of Django's ``ENGINE``."""
    scheme: ClassVar[str]
    """The scheme of its URLs."""
    superuser: ClassVar[str]
    port: int
    data: Path

    def start(self, timeout: float = 60.0) -> None:
        """Create the server's files on first use, start it, and wait until it answers a query."""
        if not self.data.exists():
            self._initialise()
        super().start(timeout)

    def restart(self) -> None:
        """Stop the server and start it again: its connections end, its data stays."""
        self.stop()
        self.start()

    def url(self, name: str) -> str:
        """Return the URL of the database ``name``, over TCP."""
        return f"{self.scheme}://{self.superuser}@127.0.0.1:{self.port}/{quote(name)}"

    def django_settings(self, name: str) -> dict[str, Any]:
        """Return an entry of Django's DATABASES for the database ``name``."""
        return {
            "ENGINE": f"django.db.backends.{self.engine}",
            "NAME": name,
            "USER": self.superuser,
            "PASSWORD": "",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
        }

    def create_database(self, name: str) -> None:
        """Create the empty database ``name``, dropping an existing one first."""
        raise NotImplementedError

    def _initial_command(self) -> Sequence[str | Path]:
        """Return the command that creates the server's files in ``data``."""
        raise NotImplementedError

    def _initialise(self) -> None:
        command = [str(part) for part in self._initial_command()]
        made = subprocess.run(
            command,
            cwd=self.cwd,
            user=self.user,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise RuntimeError(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")
