"""Reports of log lines that are queued: a report causes no further report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django
import pytest
from django.core.mail import mail_admins
from django.dispatch import Signal
from django.utils.log import AdminEmailHandler

from devservers.smtp_faults import refuse
from django_epica_mail import clock, signals
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.tracking import events

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def site(smtp, settings, epica_mail) -> None:
    """Report errors as Django does by default: to ADMINS, where DEBUG is off."""
    is_modern = django.VERSION >= (6, 0)
    settings.ADMINS = ["Admin@example.com"] if is_modern else [("Admin", "Admin@example.com")]
    settings.DEBUG = False
    epica_mail(RUN_SECONDS=1, MAX_RETRIES=0)


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., Any]) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def own_log_mailed() -> Iterator[None]:
    """Mail the package's own errors to ADMINS too, as some sites do."""
    handler = AdminEmailHandler()
    handler.setLevel(logging.ERROR)
    logger = logging.getLogger("django_epica_mail")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def fail(**_: Any) -> None:
    raise KeyError("a fault of the site")


def recipients() -> list[str]:
    return sorted(EmailLog.objects.values_list("recipients__address", flat=True))


def test_a_receiver_that_fails_for_each_mail_is_reported_once_for_each(queue_mail, deliver) -> None:
    with receiving(signals.email_moved, fail):
        queue_mail(), queue_mail()
        deliver()
    assert recipients() == [*2 * ["admin@example.com"], *2 * ["to@example.com"]]
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}


def test_a_receiver_that_lets_no_mail_be_sent_is_reported_once(queue_mail, deliver) -> None:
    with own_log_mailed(), receiving(signals.before_send, fail):
        queue_mail()
        deliver()
    assert recipients() == ["admin@example.com", "to@example.com"]


def test_a_function_that_fails_to_classify_is_reported_once(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(CLASSIFY=f"{__name__}.fail")
    smtp.inject(refuse("rcpt", 550, "5.7.1 No"))
    with own_log_mailed():
        queue_mail()
        deliver()
    assert recipients() == ["admin@example.com", "to@example.com"]


def test_an_event_of_a_report_is_not_reported(
    queue_mail, django_capture_on_commit_callbacks
) -> None:
    logs = [queue_mail("admin@example.com"), queue_mail()]
    with receiving(signals.email_event, fail):
        for log in logs:
            event = EmailEvent(email=log, key=log.pk.hex, kind="delivered", at=log.created_at)
            event.created_at = clock.now()
            with django_capture_on_commit_callbacks(execute=True):
                events.record(event)
    assert recipients() == [*2 * ["admin@example.com"], "to@example.com"]


def test_what_a_receiver_mails_itself_is_queued(queue_mail, deliver) -> None:
    def tell(*, email_id: Any, **_: Any) -> None:
        if email_id == log.pk:
            mail_admins("Sent", "It was sent.")

    log = queue_mail("admin@example.com")
    with receiving(signals.email_moved, tell):
        deliver()
    assert EmailLog.objects.filter(subject__endswith="Sent").count() == 1
