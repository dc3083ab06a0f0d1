"""Test that a skipped acceptance test fails the test run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.acceptance.places import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = """
from tests.acceptance.strictness import pytest_make_collect_report, pytest_runtest_makereport
"""

WAYS_TO_SKIP = {
    "mark": "@pytest.mark.skip(reason='by mark')\ndef test_it(): pass",
    "condition": "@pytest.mark.skipif(True, reason='by condition')\ndef test_it(): pass",
    "call": "def test_it(): pytest.skip('by call')",
    "fixture": "@pytest.fixture\ndef it(): pytest.skip('by fixture')\ndef test_it(it): pass",
    "failure": "@pytest.mark.xfail(reason='by failure')\ndef test_it(): assert False",
    "module": "pytest.skip('by module', allow_module_level=True)",
    "import": "pytest.importorskip('no_such_module', reason='by import')",
}


def test_a_skipped_test_fails_the_run_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(HOOKS)
    for way, code in WAYS_TO_SKIP.items():
        (tmp_path / f"test_{way}.py").write_text(f"import pytest\n{code}\n")
    options = ["-p", "no:django", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "2 failed, 5 errors" in run.stdout, run.stdout
    for way in WAYS_TO_SKIP:
        assert any(
            "must not be skipped" in line and f"by {way}" in line
            for line in run.stdout.splitlines()
        ), run.stdout
