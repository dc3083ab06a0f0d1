"""A skipped acceptance test fails the test run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.places import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = """
from tests.acceptance.strictness import pytest_make_collect_report, pytest_runtest_makereport
"""


@pytest.mark.parametrize(
    "module",
    [
        "import pytest\n@pytest.mark.skip(reason='no server')\ndef test_it(): pass",
        "import pytest\n@pytest.mark.skipif(True, reason='no server')\ndef test_it(): pass",
        "import pytest\ndef test_it(): pytest.skip('no server')",
        "import pytest\n@pytest.fixture\ndef it(): pytest.skip('no server')\ndef test_it(it): pass",
        "import pytest\n@pytest.mark.xfail(reason='no server')\ndef test_it(): assert False",
        "import pytest\npytest.skip('no server', allow_module_level=True)",
        "import pytest\npytest.importorskip('no_such_module', reason='no server')",
    ],
    ids=["mark", "condition", "call", "fixture", "xfail", "module", "import"],
)
def test_a_skipped_test_fails_the_run_and_says_why(tmp_path: Path, module: str) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "test_module.py").write_text(f"{module}\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (1, 2), run.stdout  # failed tests, errors while collecting
    assert "must not be skipped" in run.stdout
    assert "no server" in run.stdout
