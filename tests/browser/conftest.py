"""Fixtures of the browser tests: the example project with web server and worker, and Chromium."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devservers.process import wait_until
from devservers.web import Web
from tests.acceptance.databases import Databases
from tests.acceptance.places import EXAMPLE_PROJECT
from tests.acceptance.site import Site
from tests.acceptance.strictness import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from tests.browser import inside
from tests.browser.chrome import TIMEOUT, Chrome
from tests.browser.web import Stranger


class Shop(Site):
    """The example project, with helpers for the browser tests."""

    web: Web

    def status_of(self, mail: str) -> str:
        """Return the status of a mail."""
        hexadecimal = mail.replace("-", "")
        return str(
            self.fetch(f"SELECT status FROM epica_mail_emaillog WHERE id = '{hexadecimal}'")[0][0]
        )

    def wait_until_it_is(self, mail: str, status: str) -> None:
        """Wait until a mail has a status."""
        wait_until(
            lambda: self.status_of(mail) == status,
            timeout=TIMEOUT,
            what=f"{mail} to be {status}",
            details=lambda: (
                f"It is {self.status_of(mail)}. Gates (scope, name, paused): {self.gates()}. "
                f"The worker:\n{self.celery[0].log_tail()}"
            ),
        )

    def gates(self) -> list[tuple[Any, ...]]:
        """Return scope, name and pause of each gate."""
        return self.fetch("SELECT scope, name, paused FROM epica_mail_deliverygate")

    def wait_for_gates(self) -> None:
        """Wait until the worker reads the gates anew, which it does once a second."""
        time.sleep(1.1)

    def deliver(self, *arguments: Any, **options: Any) -> str:
        """Queue a mail as ``inside.send`` does, and wait until it is sent."""
        mail = self.call(inside.send, *arguments, **options)
        self.wait_until_it_is(mail, "sent")
        return mail


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Run the example project once for all tests, with a worker and a web server."""
    folder = tmp_path_factory.mktemp("shop")
    databases = Databases(folder)
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.browser.settings",
        "SHOP_RESULT_BACKEND": "django-db",
    }
    site = Shop(databases, "sqlite", folder, {}, env)
    try:
        site.call(inside.set_up)
        site.web = Web(EXAMPLE_PROJECT, site.env, folder=folder, insecure=True)
        with site.web:
            site.start_worker(concurrency=1)
            yield site
    finally:
        site.close()
        databases.close()


@pytest.fixture(scope="session")
def past(shop: Shop) -> None:
    """Store totals for a day in which mail was sent."""
    shop.call(inside.make_history)


@pytest.fixture(scope="session")
def pictures() -> Path | None:
    """Return the folder for screenshots, if EPICA_SCREENSHOTS names one."""
    wanted = os.environ.get("EPICA_SCREENSHOTS")
    if wanted:
        Path(wanted).mkdir(parents=True, exist_ok=True)
    return Path(wanted) if wanted else None


@pytest.fixture(scope="session")
def chromium(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory, pictures: Path | None
) -> Iterator[Chrome]:
    """Start the browser once for all tests."""
    browser = Chrome(tmp_path_factory.mktemp("chromium"), shop.web.url(), pictures)
    yield browser
    browser.quit()


@pytest.fixture(params=["en", "tr"])
def language(request: pytest.FixtureRequest) -> str:
    """Run a test in each language of the site."""
    return str(request.param)


@pytest.fixture
def chrome(chromium: Chrome, language: str) -> Iterator[Chrome]:
    """Log in the superuser; errors in the browser's console fail the test."""
    chromium.visit_as("root", language, inside.PASSWORD)
    yield chromium
    assert chromium.console() == []


@pytest.fixture
def english(chromium: Chrome) -> Chrome:
    """Log in the superuser in English, for tests that depend on no language."""
    chromium.visit_as("root", "en", inside.PASSWORD)
    return chromium


@pytest.fixture
def viewer(chromium: Chrome) -> Iterator[Chrome]:
    """Log in a user who may view e-mails, but neither read nor operate on them."""
    chromium.visit_as("viewer", "en", inside.PASSWORD)
    yield chromium
    assert chromium.console() == []


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Start a web server of a third party that wants to know who reads mail."""
    with Stranger() as server:
        yield server
