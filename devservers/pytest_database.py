"""Start the database that the tests run on, before pytest-django sets Django up.

A pytest plugin, loaded with ``-p devservers.pytest_database``. The environment variable
``EPICA_TEST_DATABASE`` names the database: ``sqlite`` (the default, nothing to start),
``postgresql`` or ``mariadb``. For the latter two ``EPICA_TEST_DATABASE_URL`` is set to a server
that lives as long as the test run; if it is set already, that server is used.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from devservers.mariadb import MariaDBServer
    from devservers.postgres import PostgresServer

KIND = "EPICA_TEST_DATABASE"
URL = "EPICA_TEST_DATABASE_URL"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Start the server that ``EPICA_TEST_DATABASE`` asks for, and stop it with the test run.

    A wrapper, because it runs before every plain hook, that of pytest-django included.
    """
    kind = os.environ.get(KIND, "sqlite")
    if kind not in ("sqlite", *_SERVERS):
        known = ", ".join(("sqlite", *_SERVERS))
        raise pytest.UsageError(f"{KIND}={kind} is not known: use one of {known}.")
    if kind in _SERVERS and URL not in os.environ:
        _start(_SERVERS[kind], early_config)
    return (yield)


def _postgresql(folder: Path) -> PostgresServer:
    from devservers.postgres import PostgresServer

    return PostgresServer(folder)


def _mariadb(folder: Path) -> MariaDBServer:
    from devservers.mariadb import MariaDBServer

    return MariaDBServer(folder)


_SERVERS: dict[str, Callable[[Path], PostgresServer | MariaDBServer]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
}


def _start(make: Callable[[Path], PostgresServer | MariaDBServer], config: pytest.Config) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="epica-mail-tests-"))
        server = make(Path(folder))
        stack.enter_context(server)
        server.create_database("epica_mail")
        stack.callback(os.environ.pop, URL, None)
        os.environ[URL] = server.url("epica_mail")
        config.add_cleanup(stack.pop_all().close)
