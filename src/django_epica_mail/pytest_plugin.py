"""The pytest plugin that comes with the package: the fixture ``epica_outbox``.

Imported at the start of every test run of a project that has the package installed, before Django
is set up: so it imports nothing of either.
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
    """The queue and the mailbox of one test; its methods are ``django_epica_mail.testing``'s."""

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
        """Return the mail that waits for a worker, in the order it was queued."""
        from django_epica_mail import lifecycle
        from django_epica_mail.models import EmailLog

        waiting = EmailLog.objects.filter(status__in=lifecycle.CLAIMABLE)
        return list(waiting.order_by("id"))

    @property
    def delivered(self) -> list[EmailMessage]:
        """Return the messages that arrived in Django's ``mail.outbox``."""
        from django.core import mail

        outbox: list[Any] = mail.outbox
        return list(outbox)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option of the ini file."""
    parser.addini(
        "epica_mail_no_real_transports",
        "fail each test that tries to open a real mail transport",
        type="bool",
        default=False,
    )


@pytest.fixture
def epica_outbox(db: None) -> Iterator[EpicaOutbox]:
    """Queue the site's mail in this test, never opening a real transport."""
    from django_epica_mail import testing

    with testing.no_real_transports(), testing.queued_mail():
        yield EpicaOutbox()


@pytest.fixture(autouse=True)
def _no_real_transports(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if request.config.getini("epica_mail_no_real_transports"):
            from django_epica_mail import testing

            stack.enter_context(testing.no_real_transports())
        yield
