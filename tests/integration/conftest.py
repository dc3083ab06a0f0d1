"""Provide a mail server, a movable clock, and helpers that queue and deliver mail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import django
import pytest
from django.contrib import admin
from django.core.mail import EmailMessage
from django.urls import include, path
from django.utils import timezone

from devservers.smtp import SMTPServer
from django_epica_mail import clock, outbox
from django_epica_mail.broker import doorbell
from django_epica_mail.delivery import gates, worker
from django_epica_mail.delivery.limits import cached_reading, scan_starts, slowed_domains
from django_epica_mail.models import EmailLog
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

QUEUE_BACKEND = "django_epica_mail.backends.EmailBackend"


@pytest.fixture(scope="session")
def smtp_server() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        yield server


@pytest.fixture
def epica_mail(settings: Any) -> Callable[..., None]:
    """Set keys of EPICA_MAIL in addition to those already set."""

    def set_keys(**keys: Any) -> None:
        settings.EPICA_MAIL = {**getattr(settings, "EPICA_MAIL", {}), **keys}

    return set_keys


@pytest.fixture
def smtp(
    smtp_server: SMTPServer, settings: Any, epica_mail: Callable[..., None], db: None
) -> Iterator[SMTPServer]:
    """Queue mail by default, and deliver it to a real server."""
    options = {"host": "127.0.0.1", "port": smtp_server.port}
    if django.VERSION >= (6, 1):
        settings.MAILERS = {
            "default": {"BACKEND": QUEUE_BACKEND, "OPTIONS": {"transport": "smtp"}},
            "smtp": {
                "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
                "OPTIONS": options,
            },
        }
    else:
        settings.EMAIL_BACKEND = QUEUE_BACKEND
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", smtp_server.port
    epica_mail(REAL_TRANSPORTS_IN_TESTS=True, SEND_TIMEOUT=5)
    yield smtp_server
    connection.close_connections()
    smtp_server.clear()
    smtp_server.listen_again()
    smtp_server.forget()


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Move the queue's clock, as in ``travel(minutes=5)``."""

    def move(**units: float) -> None:
        monkeypatch.setattr(clock, "offset", clock.offset + timedelta(**units))

    return move


@pytest.fixture
def mid_hour(travel: Callable[..., None]) -> None:
    """Move the queue's clock to half past, so that a few minutes later it is the same hour."""
    travel(minutes=(30 - (timezone.now() + clock.offset).minute) % 60)


@pytest.fixture(autouse=True)
def rings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the queues rung instead of publishing to the broker; start with a new bell."""
    rung: list[str] = []

    def publish(app: object, queue: str, **_: object) -> bool:
        rung.append(queue)
        return True

    monkeypatch.setattr(doorbell, "_publish", publish)
    monkeypatch.setattr(doorbell, "_bell", doorbell._Bell())
    return rung


@pytest.fixture(autouse=True)
def evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what earlier tests showed about the transports."""
    monkeypatch.setattr(connection, "_session_limits", connection._SessionLimits())
    monkeypatch.setattr(gates, "evidence", gates.Evidence())
    monkeypatch.setattr(cached_reading, "KEPT_SECONDS", 0.0)
    slowed_domains.forget()
    scan_starts.forget()


@pytest.fixture
def queue_mail(db: None) -> Callable[..., EmailLog]:
    """Queue one mail, as in ``queue_mail("a@example.com", priority=3)``."""

    def queue(*to: str, subject: str = "Subject", **options: Any) -> EmailLog:
        alias = options.pop("transport", "smtp")
        message = EmailMessage(subject, "Body", None, list(to) or ["to@example.com"])
        if alias in transports.aliases():
            return outbox.enqueue(message, transport=alias, **options)
        log = outbox.enqueue(message, transport="smtp", **options)
        EmailLog.objects.filter(pk=log.pk).update(transport=alias)  # configured when it was queued
        log.transport = alias
        return log

    return queue


@pytest.fixture
def deliver() -> Callable[..., int]:
    """Deliver the due mail of a queue; return the number sent."""

    def run(queue: str = "emails") -> int:
        return worker.deliver(queue)

    return run


@pytest.fixture
def site(settings: Any, db: None) -> None:
    """Serve the admin at ``/admin/``."""
    settings.ROOT_URLCONF = (path("admin/", admin.site.urls),)


@pytest.fixture
def public_pages(settings: Any) -> None:
    """Serve the package's public pages at ``/mail/``."""
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
    ]
    settings.STATIC_URL = "/static/"
