"""The demo may be stopped at any moment, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "options", "code"),
    [
        ("Starting an SMTP inbox", [], 0),
        ("Starting a Celery worker", ["--once"], 128 + signal.SIGINT),
    ],
)
def test_ctrl_c_ends_the_demo_and_removes_what_it_started(
    tmp_path: Path, line: str, options: list[str], code: int
) -> None:
    paths = (ROOT, ROOT / "example_project")
    env = {
        **{name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "demo", *options]
    with subprocess.Popen(
        command, cwd=paths[1], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        try:
            assert demo.stdout is not None
            said = ""
            while line not in said:
                said += demo.stdout.readline()
                assert demo.poll() is None, said
            demo.send_signal(signal.SIGINT)
            demo.send_signal(signal.SIGINT)  # of somebody who has no patience
            said += demo.communicate(timeout=60)[0]
        finally:
            demo.kill()
    assert "Traceback" not in said
    assert demo.returncode == code, said
    assert list(tmp_path.iterdir()) == []
    left = [it for it in psutil.process_iter(["cwd", "environ"]) if _is_of(it, tmp_path)]
    assert left == []


def _is_of(process: psutil.Process, folder: Path) -> bool:
    return (process.info["environ"] or {}).get("TMPDIR") == str(folder)
