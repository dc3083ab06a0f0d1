"""Failover: a route's next transport takes mail that the first certainly did not accept."""

from __future__ import annotations

from typing import Any

import django
import pytest
from django.core.mail import EmailMessage

from devservers.smtp import SMTPServer
from devservers.smtp_faults import drop
from django_epica_mail import maintenance, outbox
from django_epica_mail.models import EmailLog


@pytest.fixture
def two(smtp: SMTPServer, settings: Any, epica_mail: Any) -> SMTPServer:
    """Route mail to a transport that is down, with the server as the fallback."""
    backend = "django.core.mail.backends.smtp.EmailBackend"
    specs = {
        "ses": {"BACKEND": backend, "OPTIONS": {"host": "127.0.0.1", "port": 1}},
        "smtp": {"BACKEND": backend, "OPTIONS": {"host": "127.0.0.1", "port": smtp.port}},
    }
    routes = [{"match": {"category": "x"}, "transport": ["ses", "smtp"]}]
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, **specs}
        epica_mail(ROUTES=routes)
    else:
        epica_mail(ROUTES=routes, TRANSPORTS=specs, DEFAULT_TRANSPORT="smtp")
    return smtp


def queue(**options: Any) -> EmailLog:
    return outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"]), **options)


def test_mail_of_a_tripped_transport_fails_over_at_once(two, deliver) -> None:
    logs = [queue(category="x") for _ in range(5)]
    assert {(log.transport, tuple(log.fallbacks)) for log in logs} == {("ses", ("smtp",))}
    assert deliver() == 6  # five, and the attempt that found the outage
    assert len(two.accepted) == 5
    rows = EmailLog.objects.values_list("status", "transport", "fallbacks", "tries")
    assert {(s, t, tuple(f), n) for s, t, f, n in rows} == {("sent", "smtp", ("ses",), 1)}


def test_mail_without_another_transport_waits(two, deliver) -> None:
    log = queue(transport="ses")
    deliver()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "ses")
    assert maintenance.dispatch()["rerouted"] == 0


def test_the_sweep_reroutes_mail_queued_while_the_breaker_is_open(two, deliver) -> None:
    queue(category="x")
    deliver()
    late = [queue(category="x") for _ in range(3)]
    assert maintenance.dispatch()["rerouted"] == 3
    assert maintenance.dispatch()["rerouted"] == 0
    deliver()
    assert set(EmailLog.objects.filter(pk__in=[x.pk for x in late]).values_list("status")) == {
        ("sent",)
    }


def test_mail_that_may_have_been_accepted_does_not_fail_over(two, deliver, epica_mail) -> None:
    epica_mail(ROUTES=[{"match": {"category": "y"}, "transport": ["smtp", "ses"]}])
    two.inject(drop("content", times=1))
    log = queue(category="y")
    deliver()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "smtp")
    assert log.failure_kind == "unknown"


def test_nothing_fails_over_while_every_transport_is_tripped(two, deliver, epica_mail) -> None:
    two.refuse_connections()
    logs = [queue(category="x") for _ in range(2)]
    deliver()
    assert maintenance.dispatch()["rerouted"] == 0
    assert {row.status for row in EmailLog.objects.all()} <= {"queued", "retrying"}
    assert EmailLog.objects.count() == len(logs)
