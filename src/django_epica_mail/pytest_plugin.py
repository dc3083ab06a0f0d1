"""The package's pytest plugin: the fixture ``epica_outbox``, and options for all tests.

pytest imports it at the start of every test run where the package is installed, before Django is
set up. So it imports neither Django nor the package at module level.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from django_epica_mail.models import EmailLog


class EpicaOutbox:
    """The queue and the mailbox of one test, with the helpers of ``django_epica_mail.testing``."""

    def __init__(self) -> None:
        from django_epica_mail import testing

        self.assert_queued = testing.assert_email_queued
        self.assert_none_queued = testing.assert_no_email_queued
        self.drain = testing.drain_email_queue
        self.fail = testing.fail_delivery
        self.travel = testing.travel
        self.travel_to = testing.travel_to

    @property
    def queued(self) -> list[EmailLog]:
        """The mail that waits for a worker, in the order it was queued."""
        from django_epica_mail import lifecycle
        from django_epica_mail.models import EmailLog

        waiting = EmailLog.objects.filter(status__in=lifecycle.CLAIMABLE)
        return list(waiting.order_by("id"))

    @property
    def delivered(self) -> list[EmailMessage]:
        """The messages that arrived in Django's ``mail.outbox``."""
        from django.core import mail

        outbox: list[Any] = mail.outbox
        return list(outbox)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    parser.getgroup("epica_mail").addoption(
        "--epica-mail-update-snapshots",
        action="store_true",
        help="write the snapshots of mail that tests compare, instead of comparing them",
    )
    parser.addini(
        "epica_mail_no_real_transports",
        "fail each test that tries to open a real mail transport",
        type="bool",
        default=False,
    )
    parser.addini(
        "epica_mail_deliver",
        "queue the mail of each test that may use the database, and deliver it at once",
        type="bool",
        default=False,
    )


@pytest.fixture(autouse=True, scope="session")
def _update_snapshots(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--epica-mail-update-snapshots"):
            patch.setenv("EPICA_MAIL_UPDATE_SNAPSHOTS", "1")
        yield


@pytest.fixture
def epica_outbox(db: None) -> Iterator[EpicaOutbox]:
    """Queue the site's mail in this test, and refuse to open a real transport."""
    from django_epica_mail import testing

    with testing.no_real_transports(), testing.queued_mail():
        yield EpicaOutbox()


@pytest.fixture(autouse=True)
def _deliver(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if request.config.getini("epica_mail_deliver") and _has_database(request):
            from django_epica_mail import testing

            stack.enter_context(testing.queued_mail(deliver=True))
        yield


def _has_database(request: pytest.FixtureRequest) -> bool:
    """Return whether a test may use the database, by its class, its fixtures or its mark."""
    from django.test import SimpleTestCase

    if request.cls is not None and issubclass(request.cls, SimpleTestCase):
        return bool(request.cls.databases)
    is_marked = request.node.get_closest_marker("django_db") is not None
    return is_marked or not {"db", "transactional_db"}.isdisjoint(request.fixturenames)


@pytest.fixture(autouse=True)
def _no_real_transports(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if request.config.getini("epica_mail_no_real_transports"):
            from django_epica_mail import testing

            stack.enter_context(testing.no_real_transports())
        yield
