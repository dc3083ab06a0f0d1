"""The connections of a worker process to its transports."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage

from devservers.process import wait_until
from devservers.smtp_faults import drop, refuse
from django_epica_mail import tasks
from django_epica_mail.delivery import worker
from django_epica_mail.retry import Failure, Kind, Stage
from django_epica_mail.transports import connection as transport_connection


def message() -> EmailMessage:
    return EmailMessage("Subject", "Body", None, ["to@example.com"])


def send() -> Kind | None:
    with transport_connection.connection("smtp") as connection:
        result = connection.send(message())
    return result.failure.kind if result.failure else None


def test_a_connection_is_kept_for_the_next_batch(smtp) -> None:
    before = smtp.connections.opened
    assert [send() for _ in range(3)] == [None] * 3
    assert smtp.connections.opened == before + 1


def test_a_connection_is_replaced_after_its_maximum_of_mails(smtp, epica_mail) -> None:
    epica_mail(CONNECTION_MAX_MAILS=2)
    before = smtp.connections.opened
    assert [send() for _ in range(4)] == [None] * 4
    assert smtp.connections.opened == before + 2


def test_a_connection_idle_for_too_long_is_not_reused(smtp, epica_mail) -> None:
    epica_mail(CONNECTION_MAX_IDLE=0)
    before = smtp.connections.opened
    send()
    send()
    assert smtp.connections.opened == before + 2


def test_a_failed_connection_is_not_reused(smtp) -> None:
    smtp.inject(refuse("content", 451, "4.3.0", times=1))
    before = smtp.connections.opened
    assert send() is Kind.TRANSIENT
    assert send() is None
    assert smtp.connections.opened == before + 2


def test_a_dropped_idle_connection_gets_a_second_attempt(smtp) -> None:
    assert send() is None
    smtp.cut_connections()
    assert send() is None
    assert len(smtp.accepted) == 2


def test_there_is_no_second_attempt_after_content_was_sent(smtp) -> None:
    assert send() is None
    smtp.inject(drop("content", accepted=True, times=1))
    assert send() is Kind.UNKNOWN
    assert len(smtp.accepted) == 2


def test_two_concurrent_tasks_use_two_connections(smtp) -> None:
    before = smtp.connections.opened
    with (
        transport_connection.connection("smtp") as one,
        transport_connection.connection("smtp") as other,
    ):
        one.send(message())
        other.send(message())
    assert smtp.connections.opened == before + 2


def test_connections_are_closed_when_the_worker_stops(smtp) -> None:
    send()
    tasks._close_connections()
    assert smtp.commands["QUIT"] == 1


def test_a_forked_child_does_not_use_its_parents_connections(smtp) -> None:
    send()
    with mock.patch.object(transport_connection, "_pool", transport_connection._pool):
        transport_connection._forget_connections()
        before = smtp.connections.opened
        send()
        assert smtp.connections.opened == before + 1
        transport_connection.close_connections()
    assert send() is None
    assert smtp.connections.opened == before + 1


@pytest.mark.parametrize("silent", [True, False])
def test_fail_silently_cannot_hide_a_failure(smtp, settings, silent) -> None:
    spec = {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {"host": "127.0.0.1", "port": smtp.port, "fail_silently": silent},
    }
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, "smtp": spec}
    else:
        settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": {"smtp": spec}}
    smtp.inject(refuse("rcpt", 550, "5.1.1"))
    assert send() is Kind.PERMANENT


def test_under_a_test_runner_mail_goes_to_the_outbox(smtp, epica_mail, queue_mail) -> None:
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    queue_mail()
    assert worker.deliver("emails") == 1
    assert smtp.accepted == []
    assert len(mail.outbox) == 1


def classify_quota(error: Exception, stage: Stage) -> Failure | None:
    """Classify an error that only this site recognises."""
    if "quota" in str(error):
        return Failure(kind=Kind.THROTTLED, reply="quota", retry_after=3600)
    return None


@pytest.mark.parametrize(
    ("words", "kind"), [("5.7.1 quota", "throttled"), ("5.1.1 no", "permanent")]
)
def test_a_sites_own_classification_takes_precedence(
    smtp, queue_mail, deliver, epica_mail, words: str, kind: str
) -> None:
    epica_mail(CLASSIFY=f"{__name__}.classify_quota")
    smtp.inject(refuse("mail", 550, words))
    log = queue_mail()
    deliver()
    log.refresh_from_db()
    assert log.failure_kind == kind
    if kind == "throttled":
        assert log.due_at - log.created_at > timedelta(minutes=59)


def test_a_probe_leaves_no_connection_open(smtp) -> None:
    assert transport_connection.probe("smtp") is None
    smtp.inject(refuse("ehlo", 421, "4.3.2 Shutting down"))
    failure = transport_connection.probe("smtp")
    assert failure is not None
    assert failure.kind == Kind.OUTAGE
    wait_until(
        lambda: smtp.connections.open_now == 0, timeout=10, what="the server to see the disconnects"
    )
