"""The package's pytest plugin: the fixture, the ini option, and the documentation's examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.testing.mails import send, tomorrow

pytest_plugins = ("pytester",)

ROOT = Path(__file__).parents[2]
CARELESS_TEST = """
from django.core import mail
from django.core.mail.backends.smtp import EmailBackend

def test_of_a_site():
    named = {"alias": "smtp"} if hasattr(mail, "mailers") else {}
    try:
        EmailBackend(host="127.0.0.1", port=1, **named).open()
    except (AssertionError, OSError):
        pass
"""


def run(pytester: pytest.Pytester, ini: str = "[pytest]\n") -> pytest.RunResult:
    """Run the tests written so far as a project with the example project's settings does."""
    pytester.makeini(f"{ini}pythonpath = {ROOT}/example_project\n")
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--ds=shopsite.settings")


def test_the_fixture_offers_every_helper(epica_outbox) -> None:
    send()
    (log,) = epica_outbox.queued
    assert epica_outbox.assert_queued(1, subject="Order") == [log]
    with epica_outbox.fail(1, reply=(451, "4.3.0 Try again later")):
        assert epica_outbox.drain() == []
        with epica_outbox.travel(minutes=6):
            assert epica_outbox.drain() == epica_outbox.delivered
    with epica_outbox.travel_to(tomorrow()):
        epica_outbox.assert_none_queued()
    assert len(epica_outbox.delivered) == 1


def test_the_examples_of_the_docs_pass_and_the_option_works(pytester) -> None:
    page = (ROOT / "docs" / "how-to" / "testing.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    pytester.makepyfile(**{f"test_block_{number}": block for number, block in enumerate(found)})
    pytester.makepyfile(test_careless=CARELESS_TEST)
    *_, option = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ran = run(pytester, option)
    ran.assert_outcomes(passed=9, errors=1)
    ran.stdout.fnmatch_lines(["*RealTransportOpened: The test tried to open *smtp.EmailBackend*"])


def test_real_transports_are_allowed_by_default(pytester) -> None:
    pytester.makepyfile(test_careless=CARELESS_TEST)
    run(pytester).assert_outcomes(passed=1)


def test_the_fixture_refuses_real_transports_by_default(pytester) -> None:
    pytester.makepyfile(test_careless=CARELESS_TEST.replace("site()", "site(epica_outbox)"))
    run(pytester).assert_outcomes(passed=1, errors=1)


OLD_SUITE = """
import pytest
from django.core import mail
from django.core.mail import send_mail
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from django_epica_mail.models import EmailLog

def send():
    send_mail("Order", "Thank you.", None, ["ali@example.com"])
    assert [it.subject for it in mail.outbox] == ["Order"]

def send_and_look():
    send()
    assert EmailLog.objects.filter(status="sent").count() == QUEUED

class Tests(TestCase):
    def test_mail(self):
        send_and_look()

class TransactionTests(TransactionTestCase):
    def test_mail(self):
        send_and_look()

class SimpleTests(SimpleTestCase):
    def test_mail_without_a_database(self):
        send()

def test_by_fixture(db):
    send_and_look()

@pytest.mark.django_db
def test_by_mark():
    send_and_look()

def test_without_a_database():
    send()

def test_of_the_queue_itself(epica_outbox):
    send_mail("Order", "Thank you.", None, ["ali@example.com"])
    epica_outbox.assert_queued(1)
    assert mail.outbox == []
"""


@pytest.mark.parametrize("is_on", [True, False])
def test_an_old_suite_runs_through_the_queue_by_one_line(pytester, is_on) -> None:
    pytester.makepyfile(test_old=OLD_SUITE.replace("QUEUED", str(int(is_on))))
    option = "epica_mail_deliver = true\n" if is_on else ""
    run(pytester, f"[pytest]\n{option}").assert_outcomes(passed=7)


def test_the_runner_of_the_docs_does_so_for_django(tmp_path) -> None:
    page = (ROOT / "docs" / "how-to" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (runner,) = (it for it in blocks if "DiscoverRunner" in it)
    (tmp_path / "runners.py").write_text(runner)
    suite = OLD_SUITE.partition("class SimpleTests")[0].replace("import pytest\n", "")
    (tmp_path / "test_old.py").write_text(suite.replace("QUEUED", "1"))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "django", "test", "test_old"),
            *("--settings=shopsite.settings", "--testrunner=runners.ThroughTheQueue"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/example_project:{ROOT}/src:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Ran 2 tests" in ran.stderr
    assert ran.returncode == 0, ran.stderr


def test_importing_the_plugin_imports_no_django() -> None:
    code = (
        "import sys, django_epica_mail.pytest_plugin as plugin\n"
        "ours = {'django_epica_mail', plugin.__name__}\n"
        "print([it for it in sys.modules if it not in ours and it.startswith('django')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_an_option_writes_the_snapshots_that_are_compared_otherwise(pytester) -> None:
    pytester.makepyfile(
        test_snapshot="""
from pathlib import Path
from django_epica_mail.testing import assert_mail_renders

def test_notification():
    folder = Path(__file__).parent / "snapshots"
    assert_mail_renders("emails/notification", snapshots=folder)
"""
    )
    run(pytester).assert_outcomes(failed=1)
    run(pytester, "[pytest]\naddopts = --epica-mail-update-snapshots\n").assert_outcomes(passed=1)
    run(pytester).assert_outcomes(passed=1)
    written = (pytester.path / "snapshots" / "emails").iterdir()
    assert sorted(it.name for it in written) == ["notification.en.txt", "notification.tr.txt"]
