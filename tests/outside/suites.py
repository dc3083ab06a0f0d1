"""The suites of other projects, and how each is run; what is tried is a row of ``SUITES``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devservers.worker import environment
from tests.outside.packages import Packages

_INSIDE = Path(__file__).parent / "inside"


@dataclass(frozen=True)
class Suite:
    """The tests that a package's source distribution holds."""

    package: str
    """Its name on PyPI; the installed version is tested."""
    settings: str
    """The module of its own settings for tests."""
    tests: tuple[str, ...]
    """Files and folders with tests, in the source distribution."""
    mails: int
    """The number of mails that pass through the queue, at least."""
    pythonpath: tuple[str, ...] = (".",)
    """Folders of the source distribution from which the tests import."""
    in_ci: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """The tests that fail through the queue only, by name, and why."""

    def exceptions_of(self, tests: Iterable[str]) -> set[str]:
        """Return the ids of the tests that are expected to fail through the queue only."""
        return {test for test in tests if test.rpartition("::")[2] in self.exceptions}


_SRC = ("src", ".")

SUITES = (
    Suite(
        "django-allauth",
        "tests.projects.account_only.settings",
        ("tests/apps/account",),
        mails=100,
        in_ci=True,
        exceptions={
            "test_user_email_unicode_collision": "The mailbox mıke@example.org has a letter that "
            "Django's SMTP backend refuses, with or without the queue; its own tests use locmem."
        },
    ),
    Suite(
        "dj-rest-auth",
        "dj_rest_auth.tests.settings",
        ("dj_rest_auth/tests",),
        mails=9,
        pythonpath=(".", "dj_rest_auth", "dj_rest_auth/tests"),
    ),
    Suite(
        "django-otp",
        "test_project.settings",
        ("src/django_otp/tests.py", "src/django_otp/plugins"),
        mails=15,
        pythonpath=("src", "test"),
        in_ci=True,
    ),
    Suite(
        "django-registration",
        "tests.test_settings",
        ("tests",),
        mails=39,
        pythonpath=_SRC,
        in_ci=True,
    ),
    Suite("django-contact-form", "tests.test_settings", ("tests",), mails=6, pythonpath=_SRC),
    Suite(
        "django-newsletter",
        "test_project.settings",
        ("tests",),
        mails=45,
        pythonpath=(".", "test_project"),
        exceptions={
            "test_delayed_batch_sumbmission": "It looks at the last call of time.sleep in the "
            "process, which is the worker's here."
        },
    ),
)
# Not among them: django-two-factor-auth, whose source distribution lacks what its tests import, and
# django-templated-email, where this is so for one test file, and the others send no mail.


@dataclass(frozen=True)
class Record:
    """What a run of a suite brought."""

    outcomes: Mapping[str, str]
    mails: int
    output: str

    def failures(self) -> set[str]:
        """Return the ids of the tests that neither passed nor were skipped."""
        well = ("passed", "skipped", "setup skipped")
        return {test for test, outcome in self.outcomes.items() if outcome not in well}


def run(
    suite: Suite, packages: Packages, overlay: Mapping[str, str], folder: Path, *, queue: bool
) -> Record:
    """Run a suite, with its own mail settings or through the queue."""
    source = packages.source(suite.package)
    ini, record = folder / "pytest.ini", folder / f"record-{queue}.json"
    ini.write_text(
        "[pytest]\npython_files = tests.py test_*.py\nDJANGO_SETTINGS_MODULE = outside_settings\n"
        f"epica_mail_deliver = {str(queue).lower()}\n"
    )
    paths = [str(source / it) for it in suite.pythonpath]
    env = environment(
        {
            "OUTSIDE_SETTINGS": suite.settings,
            "OUTSIDE_QUEUE": str(int(queue)),
            "OUTSIDE_RECORD": str(record),
            "PYTHONPATH": os.pathsep.join([*overlay.values(), *paths, str(_INSIDE)]),
            "PYTHONWARNINGS": "ignore",
            "PYTHONDEVMODE": "",
        }
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", ini, "--rootdir", source]
    command += ["-p", "outside_recorder", "-p", "no:cacheprovider", "-p", "no:valkey"]
    done = subprocess.run(
        [*command, *suite.tests],
        cwd=source,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not record.exists():
        raise RuntimeError(f"The tests of {suite.package} did not run:\n{done.stdout}")
    found: dict[str, Any] = json.loads(record.read_text())
    return Record(found["outcomes"], found["mails"], done.stdout)
