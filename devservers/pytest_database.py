"""Start the database that the tests run on, before pytest-django sets Django up.

A pytest plugin, loaded with ``-p devservers.pytest_database``. The environment variable
``EPICA_TEST_DATABASE`` names the database: ``sqlite`` (the default, nothing to start) or
``postgresql``. For the latter ``EPICA_TEST_DATABASE_URL`` is set to a server that lives as long as
the test run; if it is set already, that server is used.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

KIND = "EPICA_TEST_DATABASE"
URL = "EPICA_TEST_DATABASE_URL"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Start the server that ``EPICA_TEST_DATABASE`` asks for, and stop it with the test run.

    A wrapper, because it runs before every plain hook, that of pytest-django included.
    """
    kind = os.environ.get(KIND, "sqlite")
    if kind not in ("sqlite", "postgresql"):
        raise pytest.UsageError(f"{KIND}={kind} is not known: use sqlite or postgresql.")
    if kind == "postgresql" and URL not in os.environ:
        _start_postgresql(early_config)
    return (yield)


def _start_postgresql(config: pytest.Config) -> None:
    from devservers.postgres import PostgresServer

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="epica-mail-tests-"))
        server = stack.enter_context(PostgresServer(Path(folder)))
        server.create_database("epica_mail")
        stack.callback(os.environ.pop, URL, None)
        os.environ[URL] = server.url("epica_mail")
        config.add_cleanup(stack.pop_all().close)
