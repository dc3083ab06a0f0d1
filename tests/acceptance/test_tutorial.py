"""Follow the tutorial exactly, except for installing packages and the choice of ports."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import django
import pytest

from devservers.process import ManagedProcess, free_port, wait_until
from devservers.redis import RedisServer
from tests.acceptance.places import REPOSITORY

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
INSTALLING = ("python -m venv", ". .venv", "python -m pip")
KEEPS_RUNNING = ("python -m aiosmtpd", "celery ")


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Yield the page's steps in order: ``python`` with a file's text, or ``$`` with a command."""
    for kind, text in re.findall(
        r"^```(python|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    ):
        if kind == "python":
            yield "python", text
        else:
            for line in text.splitlines():
                yield "$", line.removeprefix("$ ")


def is_for_another_django(block: str) -> bool:
    named = re.match(r"# \S+ \(Django ([\d.]+)\)", block)
    ours = "6.1" if django.VERSION >= (6, 1) else "5.2"
    return named is not None and named[1] != ours


def write(block: str, folder: Path) -> None:
    """Append a block to the file that its first line names."""
    name, text = re.fullmatch(r"# (\S+)(?: \(.*?\))?\n(.*)", block, re.DOTALL).groups()
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}")


class Learner:
    """A reader who follows the page in a new folder."""

    def __init__(self, folder: Path, page: str, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        redis = stack.enter_context(RedisServer(folder / "redis"))
        self.page = page.replace("6379", str(redis.port)).replace("1025", str(free_port()))
        self.project = folder / "project"
        self.project.mkdir()
        programs = Path(sys.executable).parent
        site = {"PYTHONUNBUFFERED": "1", "PATH": f"{programs}:{os.environ['PATH']}"}
        dropped = ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONDEVMODE")
        self.env = {k: v for k, v in os.environ.items() if k not in dropped} | site
        self.logs: list[Path] = []
        self.output: dict[str, str] = {}

    def follow(self, wait: Callable[[str], None]) -> None:
        for kind, text in steps(self.page):
            if kind == "python":
                if not is_for_another_django(text):
                    write(text, self.project)
            elif text.startswith(KEEPS_RUNNING):
                self.keep_running(text)
            elif not text.startswith(INSTALLING):
                self.output[text] = self.run(text)
                wait(text)

    def run(self, command: str) -> str:
        ran = subprocess.run(
            shlex.split(command),
            cwd=self.project,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}"
        return ran.stdout

    def keep_running(self, command: str) -> None:
        log = self.folder / f"{len(self.logs)}.log"
        self.logs.append(log)
        self.stack.enter_context(
            ManagedProcess(shlex.split(command), log=log, cwd=self.project, env=self.env)
        )

    def inbox(self) -> list[str]:
        """Return the subjects printed by the inbox."""
        return re.findall(r"^Subject: (.*)$", self.logs[0].read_text(), re.MULTILINE)


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    with ExitStack() as stack:
        yield Learner(tmp_path, TUTORIAL.read_text(encoding="utf-8"), stack)


def test_the_tutorial_ends_with_delivered_mail_and_a_passing_test(learner) -> None:
    expected = {"sendtestemail": 1, "shell": 2}

    def wait(command: str) -> None:
        mails = expected.get(command.split()[2], 0)
        wait_until(
            lambda: not mails or len(learner.inbox()) >= mails,
            timeout=30,
            what=f"the mail of {command!r}",
            details=lambda: "\n".join(log.read_text() for log in learner.logs),
        )

    learner.follow(wait)
    first, second = learner.inbox()
    assert first.startswith("Test email from")
    assert second == "Kept"
    assert "emails" in learner.output["python manage.py epica_mail status"]
    assert "Ran 1 test" in learner.output["python manage.py test shop"]
    assert "OK" in learner.output["python manage.py test shop"]
