"""Downloads and servers for these tests, and the table of what was tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.databases import Databases

# A skipped test proves nothing: these hooks make it fail.
from tests.acceptance.strictness import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from tests.outside.packages import Packages


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option that adds what takes long."""
    parser.addoption("--all", action="store_true", help="every suite and every site")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long."""
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("not_in_ci")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Provide downloads, in a folder that ``OUTSIDE_DOWNLOADS`` may name to keep them."""
    folder = os.environ.get("OUTSIDE_DOWNLOADS")
    return Packages(Path(folder) if folder else tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Provide databases; their server runs until the end of the test run."""
    databases = Databases(tmp_path_factory.mktemp("databases"))
    yield databases
    databases.close()
