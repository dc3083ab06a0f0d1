"""Backends of a site's own: whatever they do, a mail gets an answer and its worker lives."""

from __future__ import annotations

import copy
import functools
import smtplib
from typing import Any

import django
import pytest
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend
from django.core.mail.message import EmailMessage

from devservers.smtp_faults import drop, refuse
from django_epica_mail.backends import EmailBackend as QueueBackend
from django_epica_mail.models import DeliveryGate, EmailLog
from django_epica_mail.transports.smtp import opens_itself


class OwnConnection(EmailBackend):
    """The usual recipe for OAuth or a private CA: a client made in ``open()``."""

    def open(self) -> bool:
        if self.connection:
            return False
        self.connection = smtplib.SMTP(self.host, self.port)
        self.connection.ehlo()
        return True


class SaysNothing(OwnConnection):
    def open(self) -> None:  # type: ignore[override]
        if not self.connection:
            self.connection = smtplib.SMTP(self.host, self.port)


class AlwaysNew(OwnConnection):
    def open(self) -> bool:
        self.close()
        return super().open()


class Partial(EmailBackend):
    connection_class = staticmethod(functools.partial(smtplib.SMTP))  # type: ignore[assignment]


class SuperFirst(EmailBackend):
    def open(self) -> bool | None:
        return super().open()


class Final(type):
    def __new__(mcs, name: str, bases: Any, names: dict[str, Any]) -> Any:
        if any(isinstance(base, mcs) for base in bases):
            raise TypeError("This class has no subclasses.")
        return super().__new__(mcs, name, bases, names)


class Sealed(EmailBackend, metaclass=Final):
    pass


class Plain(BaseEmailBackend):
    """A backend that is not built on Django's for SMTP."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        super().__init__(**({"alias": options["alias"]} if django.VERSION >= (6, 1) else {}))
        self.address = host, port

    def send_messages(self, email_messages: list[EmailMessage]) -> int | None:  # type: ignore[override]
        for message in email_messages:
            with smtplib.SMTP(*self.address) as client:
                client.sendmail(message.from_email, message.recipients(), "Subject: S\n\nB")
        return None


class Broken(Plain):
    def send_messages(self, email_messages: list[EmailMessage]) -> int:
        raise RuntimeError("broken \x1b[31m")

    def close(self) -> None:
        raise RuntimeError("broken too")


class Unopenable(Plain):
    def open(self) -> None:
        raise RecursionError


class Lazy(Plain):
    def send_messages(self, email_messages: list[EmailMessage]) -> int:
        return 0


class Unreadable(EmailBackend):
    """Its ``connection`` cannot be read once the mail is sent."""

    is_sent = False

    @property
    def connection(self) -> Any:
        if self.is_sent:
            raise RuntimeError("no connection")
        return vars(self).get("_connection")

    @connection.setter
    def connection(self, value: Any) -> None:
        vars(self)["_connection"] = value

    def send_messages(self, email_messages: Any) -> int:
        sent = super().send_messages(email_messages)
        self.connection.close()
        self.is_sent = True
        return sent or 0


class BackToTheQueue(Plain):
    """What ``get_connection()`` makes of a backend that means to wrap another one."""

    def send_messages(self, email_messages: list[EmailMessage]) -> int:
        return QueueBackend(transport="smtp").send_messages(map(copy.copy, email_messages))


class AlsoQueuesItsOwn(Plain):
    def send_messages(self, email_messages: list[EmailMessage]) -> int | None:  # type: ignore[override]
        if email_messages[0].subject != "Sent":
            note = EmailMessage("Sent", "B", "shop@example.com", ["audit@example.com"])
            QueueBackend(transport="smtp").send_messages([note])
        return super().send_messages(email_messages)


@pytest.fixture
def use(smtp, settings):
    def configure(backend: type[BaseEmailBackend]) -> None:
        path = f"{__name__}.{backend.__name__}"
        spec = {"smtp": {"BACKEND": path, "OPTIONS": {"host": smtp.host, "port": smtp.port}}}
        if django.VERSION >= (6, 1):
            settings.MAILERS = {**settings.MAILERS, **spec}
        else:
            settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": spec}

    return configure


WORKING = [OwnConnection, AlwaysNew, Partial, SuperFirst, Sealed, Plain]


@pytest.mark.parametrize("backend", WORKING)
def test_any_backend_sends(smtp, use, queue_mail, deliver, backend) -> None:
    use(backend)
    logs = [queue_mail("a@example.com", "b@example.com") for _ in range(3)]
    assert deliver() == 3
    assert [len(message.recipients) for message in smtp.accepted] == [2, 2, 2]
    for log in logs:
        log.refresh_from_db()
        assert (log.status, log.failure_kind) == ("sent", "")


@pytest.mark.parametrize("backend", WORKING)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (refuse("rcpt", 550, "5.1.1 Gone"), ("failed", "permanent")),
        (refuse("mail", 451, "4.3.0 Later"), ("retrying", "transient")),
        (refuse("content", 554, "5.7.1 Spam"), ("failed", "permanent")),
        (drop("content", accepted=True), ("retrying", "unknown")),
    ],
)
def test_any_backend_reports_a_failure(
    smtp, use, queue_mail, deliver, backend, rule, expected
) -> None:
    use(backend)
    smtp.inject(type(rule)(rule.stage, rule.action, rule.when))
    log = queue_mail()
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == expected, log.reply
    assert EmailLog.objects.exclude(lease_until=None).count() == 0


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (Broken, "unknown"),
        (Unopenable, "outage"),
        (Lazy, "message"),
        (SaysNothing, "message"),
        (Unreadable, "unknown"),
    ],
)
def test_a_backend_that_fails_does_not_lose_its_worker(
    smtp, use, queue_mail, deliver, travel, backend, kind
) -> None:
    use(backend)
    log = queue_mail(on_unknown="hold")
    assert deliver() == 1
    log.refresh_from_db()
    assert log.failure_kind == kind
    assert log.lease_until is None
    assert "\x1b" not in log.reply


def test_a_transport_that_gives_its_mail_to_the_queue_again_is_out_of_order(
    use, queue_mail, deliver
) -> None:
    use(BackToTheQueue)
    log = queue_mail()
    assert deliver() == 1
    log = EmailLog.objects.get()
    assert (log.status, log.failure_kind) == ("retrying", "outage")
    assert "back to the queue" in log.reply
    assert DeliveryGate.objects.get().tripped_at is not None


def test_a_backend_may_queue_other_mail_while_it_sends(smtp, use, queue_mail, deliver) -> None:
    use(AlsoQueuesItsOwn)
    queue_mail()
    assert deliver() == 2
    assert len(smtp.accepted) == 2


def fail(*_: object) -> None:
    raise RuntimeError("the site's own function fails")


def test_a_classification_that_fails_is_left_to_the_package(
    smtp, queue_mail, deliver, epica_mail, caplog
) -> None:
    epica_mail(CLASSIFY=f"{__name__}.fail")
    smtp.inject(refuse("rcpt", 550, "5.1.1 Gone"))
    log = queue_mail()
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("failed", "permanent")
    assert "CLASSIFY" in caplog.text
    assert "@" not in caplog.text


@pytest.mark.parametrize(
    ("backend", "is_own"),
    [
        (OwnConnection, True),
        (SaysNothing, True),
        (SuperFirst, False),
        (Partial, False),
        (Plain, False),
        (EmailBackend, False),
    ],
)
def test_a_backend_that_makes_its_own_connection_is_recognised(backend, is_own) -> None:
    assert opens_itself(backend) is is_own
