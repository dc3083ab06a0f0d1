"""Start the database for the tests before pytest-django sets up Django.

A pytest plugin, loaded with ``-p devservers.pytest_database``. The environment variable
``EPICA_TEST_DATABASE`` names the database: ``sqlite`` (the default; nothing is started),
``postgresql`` or ``mariadb``. For the latter two, ``EPICA_TEST_DATABASE_URL`` is set to the URL of
a server that runs until the end of the test run; if it is already set, that server is used.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devservers.databases import DATABASES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from devservers.database_server import DatabaseServer

KIND = "EPICA_TEST_DATABASE"
URL = "EPICA_TEST_DATABASE_URL"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Start the server that ``EPICA_TEST_DATABASE`` names; it stops at the end of the test run.

    A wrapper, because wrappers run before all plain hooks, including pytest-django's.
    """
    kind = os.environ.get(KIND, "sqlite")
    if kind not in ("sqlite", *DATABASES):
        known = ", ".join(("sqlite", *DATABASES))
        raise pytest.UsageError(f"{KIND}={kind} is unknown: use one of {known}.")
    if kind in DATABASES and URL not in os.environ:
        _start(DATABASES[kind], early_config)
    return (yield)


def _start(make: Callable[[Path], DatabaseServer], config: pytest.Config) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="epica-mail-tests-"))
        server = make(Path(folder))
        stack.enter_context(server)
        server.create_database("epica_mail")
        stack.callback(os.environ.pop, URL, None)
        os.environ[URL] = server.url("epica_mail")
        config.add_cleanup(stack.pop_all().close)
