"""The doctor's findings, each by what makes it speak."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import django
import pytest
from celery import current_app
from django.db import DatabaseError, connection

from devservers.smtp import SMTPServer
from django_epica_mail import maintenance, outbox
from django_epica_mail.models import EmailLog
from django_epica_mail.monitoring import doctor
from django_epica_mail.monitoring.doctor import Finding

pytestmark = pytest.mark.django_db

SMTP = "django.core.mail.backends.smtp.EmailBackend"


@pytest.fixture
def celery_conf(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set keys of Celery's configuration, until the end of the test."""

    def set_keys(**keys: Any) -> None:
        for key, value in keys.items():
            monkeypatch.setitem(current_app.conf, key, value)

    return set_keys


def found(sort: str, **options: Any) -> Finding:
    (finding,) = [it for it in doctor.examine(**options) if it.id == sort]
    assert finding.text
    assert finding.remedy
    return finding


def sorts(**options: Any) -> set[str]:
    return {it.id for it in doctor.examine(**options)}


def test_a_broker_that_is_down_is_found() -> None:
    finding = found("broker")
    assert finding.level == "error"
    assert "OperationalError" in finding.text


def test_no_worker_at_all_is_found() -> None:
    (finding,) = doctor.without_worker({"emails", "bulk_emails"}, set())
    assert (finding.level, finding.id) == ("error", "no-worker")
    assert "-Q celery,bulk_emails,emails" in finding.remedy


def test_a_queue_that_nobody_consumes_is_found() -> None:
    consumed = {"celery", "emails"}
    (finding,) = doctor.without_worker({"emails", "bulk_emails"}, consumed)
    assert (finding.level, finding.id) == ("error", "queue-without-worker")
    assert "the queue bulk_emails" in finding.text
    assert list(doctor.without_worker({"emails"}, consumed)) == []


def test_a_worker_is_wanted_for_what_is_routed_and_what_waits(
    smtp, epica_mail, queue_mail, deliver, celery_conf
) -> None:
    epica_mail(ROUTES=[{"match": {"bulk": True}, "queue": "newsletter"}])
    queue_mail(queue="invoices")
    queue_mail(queue="done")
    deliver("done")
    assert doctor.queues() == {"emails", "bulk_emails", "newsletter", "invoices"}


@pytest.mark.skipif(django.VERSION < (6, 1), reason="OPTIONS are MAILERS', of Django 6.1")
def test_a_worker_is_wanted_for_the_queue_of_an_alias(smtp, settings) -> None:
    queued = {**settings.MAILERS["default"], "OPTIONS": {"transport": "smtp", "queue": "slow"}}
    settings.MAILERS = {**settings.MAILERS, "slow": queued}
    assert "slow" in doctor.queues()


def test_a_beat_that_does_not_beat_is_found(queue_mail, travel, rings) -> None:
    queue_mail()
    assert "no-sweep" not in sorts()  # it has not had the time
    travel(minutes=6)
    assert "The last sweep was never" in found("no-sweep").text
    maintenance.dispatch()
    assert "no-sweep" not in sorts()
    travel(minutes=6)
    assert found("no-sweep").level == "error"


def test_tables_that_are_missing_are_found(transactional_db) -> None:
    def refuse_all(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("epica_mail_emaillog", "no_such_table"), params, many, context)

    with connection.execute_wrapper(refuse_all):
        finding = found("database")
        with pytest.raises(DatabaseError):
            EmailLog.objects.count()
    assert "migrate" in finding.remedy


def test_results_that_are_forgotten_sooner_than_mail_are_found(celery_conf) -> None:
    celery_conf(result_backend=None, result_expires=timedelta(minutes=5))
    assert "result-expires" not in sorts()
    celery_conf(result_backend="cache+memory://")
    finding = found("result-expires")
    assert finding.level == "warning"
    assert "CELERY_RESULT_EXPIRES" in finding.remedy
    celery_conf(result_expires=timedelta(days=1))
    assert found("result-expires").level == "info"
    celery_conf(result_expires=timedelta(days=30))
    assert "result-expires" not in sorts()


def test_results_that_tell_less_than_they_could_are_spoken_of(celery_conf) -> None:
    celery_conf(result_backend="cache+memory://", result_extended=False, task_track_started=False)
    assert found("result-extended").level == found("track-started").level == "info"
    celery_conf(result_extended=True, task_track_started=True)
    assert not sorts() & {"result-extended", "track-started"}


def test_a_redis_that_may_hang_is_spoken_of(celery_conf) -> None:
    assert found("socket-timeout").level == "info"
    celery_conf(broker_transport_options={"socket_timeout": 5})
    assert "socket-timeout" not in sorts()


def test_tasks_that_run_at_once_are_found_and_no_worker_is_asked_for(celery_conf, settings) -> None:
    celery_conf(task_always_eager=True)
    assert found("always-eager").level == "warning"
    assert "broker" not in sorts()
    settings.DEBUG = True
    assert "always-eager" not in sorts()


def test_mail_held_back_is_found(smtp, queue_mail, deliver) -> None:
    outbox.pause(queue="bulk_emails")
    assert found("paused").level == "info"
    smtp.refuse_connections()
    queue_mail()
    deliver()
    assert "transport smtp" in found("out-of-order").text


def test_mail_for_a_transport_that_is_gone_is_found(smtp, queue_mail) -> None:
    queue_mail(transport="yesterdays")
    assert "'yesterdays'" in found("transport-gone").text


def test_send_mail_past_the_queue_is_found(smtp, settings) -> None:
    assert "send-mail-not-queued" not in sorts()
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, "default": settings.MAILERS["smtp"]}
    else:
        settings.EMAIL_BACKEND = SMTP
    assert found("send-mail-not-queued").level == "warning"


def test_a_transport_that_cannot_be_opened_is_found_only_on_request(smtp) -> None:
    smtp.refuse_connections()
    assert "transport" not in sorts()
    assert "ConnectionRefusedError" in found("transport", open_transports=True).text
    smtp.listen_again()
    assert "transport" not in sorts(open_transports=True)
    assert smtp.accepted == []


def test_credentials_that_are_refused_are_found(smtp, settings, epica_mail) -> None:
    with SMTPServer(credentials={"user": "right"}) as server:
        options = {"host": server.host, "port": server.port, "username": "user"}
        for password, is_found in (("mistyped", True), ("right", False)):
            spec = {"BACKEND": SMTP, "OPTIONS": {**options, "password": password}}
            if django.VERSION >= (6, 1):
                settings.MAILERS = {**settings.MAILERS, "smtp": spec}
            else:
                epica_mail(TRANSPORTS={"smtp": spec})
            assert ("credentials" in sorts(open_transports=True)) is is_found
            if is_found:
                finding = found("credentials", open_transports=True)
                assert "535" in finding.text or "5.7.8" in finding.text
                assert "mistyped" not in finding.text + finding.remedy


def test_what_the_checks_know_the_doctor_says_first(smtp, epica_mail, settings) -> None:
    epica_mail(ROUTES=[{"transport": ["gone", "smtp"]}])
    settings.DEFAULT_FROM_EMAIL = "webmaster@localhost"
    first, *_ = doctor.examine()
    assert (first.level, first.id) == ("error", "epica_mail.E004")
    assert first.remedy == "Name a real transport. There are: smtp."
    assert found("epica_mail.W004").level == "warning"


def test_of_a_setting_that_cannot_be_read_nothing_else_is_said(settings) -> None:
    settings.EPICA_MAIL = {"BATCH_SIZE": 0}
    assert sorts() == {"epica_mail.E001"}


def test_it_explains_where_a_mail_would_go(smtp, epica_mail) -> None:
    epica_mail(
        ROUTES=[
            {"match": {"to": "*@gov.tr"}, "queue": "official", "transport": ["ses", "smtp"]},
            {"match": {"bulk": True}, "priority": 1},
            {"match": {"from": "shop@example.com", "category": "order"}, "priority": "low"},
        ]
    )
    official = doctor.explain("A@GOV.TR")
    assert (official["rule"], official["match"]) == (0, {"to": "*@gov.tr"})
    assert (official["queue"], official["queue by"]) == ("official", "ROUTES")
    assert (official["priority"], official["priority by"]) == (9, "default")
    assert official["transports"] == ["ses", "smtp"]
    assert doctor.explain("a@example.com")["rule"] == "none"
    assert doctor.explain("a@example.com", bulk=True)["priority"] == 1
    assert doctor.explain("a@example.com", category="order")["rule"] == 2
