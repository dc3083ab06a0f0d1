"""Provide the example project on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.acceptance.databases import Databases
from tests.acceptance.site import Site

# A skipped acceptance test proves nothing: these hooks make it fail.
from tests.acceptance.strictness import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class OpenSite(Protocol):
    """Opens the example project on a new database: sqlite or postgresql."""

    def __call__(self, kind: str = "sqlite", **epica_mail: Any) -> Site:
        """Open it with these keys of ``EPICA_MAIL``; it is closed at the end of the test."""


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Provide databases; their server, if needed, runs until the end of the test run."""
    databases = Databases(tmp_path_factory.mktemp("databases"))
    yield databases
    databases.close()


@pytest.fixture
def open_site(databases: Databases, tmp_path: Path) -> Iterator[OpenSite]:
    """Open the example project, and close it at the end of the test."""
    opened: list[Site] = []

    def open_one(kind: str = "sqlite", **epica_mail: Any) -> Site:
        opened.append(Site(databases, kind, tmp_path, epica_mail))
        return opened[-1]

    yield open_one
    for site in opened:
        site.close()
