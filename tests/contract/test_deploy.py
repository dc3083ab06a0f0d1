"""Test that the deployment files and their documentation match the code."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_epica_mail import conf, routing
from django_epica_mail.management.commands.epica_mail import Command

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "example_project" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
ACTIONS = ("worker", "beat", "flower")
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text().replace("\\\n", " "))
    return parser


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def command_lines() -> list[list[str]]:
    """Return every Celery command line in the units and the compose file."""
    lines = [shlex.split(unit(path)["Service"]["ExecStart"]) for path in UNITS]
    lines += [service.get("command", []) for service in compose()["services"].values()]
    return [line for line in lines if line and line[0].endswith("celery")]


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_celery_knows_every_option_of_a_command_line(line: list[str]) -> None:
    (action,) = [word for word in line if word in ACTIONS]
    if action == "flower":  # a separate package
        return
    shown = subprocess.run(
        [sys.executable, "-m", "celery", action, "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for option in line[line.index(action) + 1 :]:
        assert option.partition("=")[0] in shown


def test_the_workers_consume_all_queues() -> None:
    queues = {
        queue
        for line in command_lines()
        for option in line
        if option.startswith("--queues=") and "$" not in option
        for queue in option.partition("=")[2].split(",")
    }
    assert queues == {"celery", routing.QUEUE, routing.BULK_QUEUE}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_as_deploy_restarts_and_logs(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["User"] == "deploy"
    if service["Type"] != "oneshot":
        assert service["Restart"] == "always"
        assert "--logfile=/var/log/shop/" in service["ExecStart"]


def test_a_stopping_worker_has_time_to_finish_its_mail() -> None:
    longest = conf.Settings().send_timeout + 10  # to settle and release
    for path in DEPLOY.glob("shop-worker-*.service"):
        worker = unit(path)["Service"]
        assert int(worker["TimeoutStopSec"]) > longest
        assert (worker["KillSignal"], worker["KillMode"]) == ("SIGTERM", "mixed")
    for name, service in compose()["services"].items():
        if name.startswith("worker"):
            assert int(service["stop_grace_period"].removesuffix("s")) > longest


def test_the_compose_file_contains_no_secret() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    for line in text.splitlines():
        if "PASSWORD" in line or "AUTH" in line or "TOKEN" in line:
            assert "${" in line or line.lstrip().startswith("#")


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_every_command_action_in_the_docs_exists(path: Path) -> None:
    parser = Command().create_parser("manage.py", "epica_mail")
    (actions,) = [action for action in parser._actions if action.dest == "action"]
    text = path.read_text(encoding="utf-8")
    for named in re.findall(r"manage\.py epica_mail ([a-z][a-z-]+)", text):
        assert named in (actions.choices or {})


def test_the_workflow_runs_the_same_script_as_elsewhere() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert [shlex.split(command)[-1] for command in commands] == [".ci/run"]
    (pythons,) = [
        step["with"]["python-version"].split() for step in job["steps"] if "3.10" in str(step)
    ]
    classifiers = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", classifiers)
    assert pythons == named
