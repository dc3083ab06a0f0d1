"""The findings about Celery: its settings, its results, and queues without a worker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import django
import pytest
from celery import Celery, current_app

from devservers.redis import RedisServer
from django_epica_mail import maintenance
from django_epica_mail.broker import celery_config, workers
from django_epica_mail.monitoring import celery_findings, doctor
from django_epica_mail.monitoring.celery_findings import Finding
from django_epica_mail.schedule import SCHEDULE

pytestmark = pytest.mark.django_db

MAIL = {"emails": "its mail is not sent", "bulk_emails": "its mail is not sent"}


@pytest.fixture
def celery_conf(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set keys of Celery's configuration until the end of the test."""

    def set_keys(**keys: Any) -> None:
        for key, value in keys.items():
            monkeypatch.setitem(current_app.conf, key, value)

    return set_keys


def found(name: str) -> Finding:
    (finding,) = [it for it in doctor.examine() if it.id == name]
    assert finding.text
    assert finding.remedy
    return finding


def ids() -> set[str]:
    return {it.id for it in doctor.examine()}


def test_a_broker_that_is_down_is_found() -> None:
    finding = found("broker")
    assert finding.level == "error"
    assert "OperationalError" in finding.text


def test_a_missing_worker_is_found() -> None:
    (finding,) = celery_findings.without_worker(MAIL, set())
    assert (finding.level, finding.id) == ("error", "no-worker")
    assert "-Q celery,bulk_emails,emails" in finding.remedy


def test_a_queue_without_a_worker_is_found() -> None:
    consumed = {"celery", "emails"}
    (finding,) = celery_findings.without_worker(MAIL, consumed)
    assert (finding.level, finding.id) == ("error", "queue-without-worker")
    assert "the queue bulk_emails" in finding.text
    assert list(celery_findings.without_worker({"emails": ""}, consumed)) == []


def test_a_rate_limit_of_notifications_is_found(monkeypatch) -> None:
    assert "task-rate-limit" not in ids()
    monkeypatch.setattr(current_app.tasks[celery_config.TASK], "rate_limit", "10/m")
    finding = found("task-rate-limit")
    assert finding.level == "warning"
    assert f"{celery_config.TASK} at most 10/m" in finding.text


def test_routed_queues_and_queues_with_mail_need_a_worker(
    smtp, epica_mail, queue_mail, deliver, celery_conf
) -> None:
    epica_mail(ROUTES=[{"match": {"bulk": True}, "queue": "newsletter"}])
    queue_mail(queue="invoices")
    queue_mail(queue="done")
    deliver("done")
    assert celery_findings.queues("default") == {"emails", "bulk_emails", "newsletter", "invoices"}


@pytest.mark.skipif(django.VERSION < (6, 1), reason="OPTIONS are MAILERS', of Django 6.1")
def test_the_queue_of_an_alias_needs_a_worker(smtp, settings) -> None:
    queued = {**settings.MAILERS["default"], "OPTIONS": {"transport": "smtp", "queue": "slow"}}
    settings.MAILERS = {**settings.MAILERS, "slow": queued}
    assert "slow" in celery_findings.queues("default")


def test_the_periodic_tasks_need_a_worker_of_their_queue(celery_conf, monkeypatch) -> None:
    celery_conf(task_default_queue="shop", beat_schedule={**SCHEDULE})
    consumed = {"celery@one": ["celery", "emails", "bulk_emails"]}
    monkeypatch.setattr(celery_findings.workers, "consumed", lambda: consumed)
    finding = found("queue-without-worker")
    assert "the queue shop: beat's tasks do not run there (cleanup_old_email_logs, disp" in (
        finding.text
    )
    consumed["celery@two"] = ["shop"]
    assert "queue-without-worker" not in ids()


def test_an_entry_of_beat_may_name_another_queue(celery_conf) -> None:
    sweep = {**SCHEDULE["dispatch-due-emails"], "options": {"queue": "emails"}}
    celery_conf(beat_schedule={"sweep": sweep, "own": {"task": "shop.report", "schedule": 60}})
    assert celery_findings.periodic_queues() == {"emails": {"dispatch_due_emails"}}
    assert celery_findings.sweep_queue() == "emails"


def test_without_beat_no_worker_of_the_default_queue_is_needed(celery_conf, monkeypatch) -> None:
    celery_conf(task_default_queue="shop", beat_schedule={})
    monkeypatch.setattr(
        celery_findings.workers, "consumed", lambda: {"celery@one": ["emails", "bulk_emails"]}
    )
    assert "queue-without-worker" not in ids()


def test_remedies_name_the_default_queue_of_the_site(celery_conf, queue_mail, travel) -> None:
    celery_conf(task_default_queue="shop")
    (finding,) = celery_findings.without_worker(MAIL, set())
    assert "-Q shop,bulk_emails,emails" in finding.remedy
    queue_mail()
    travel(minutes=6)
    assert "a worker of the queue shop" in found("no-sweep").remedy


def test_results_that_expire_before_mail_are_found(celery_conf) -> None:
    celery_conf(result_backend=None, result_expires=timedelta(minutes=5))
    assert "result-expires" not in ids()
    celery_conf(result_backend="cache+memory://")
    finding = found("result-expires")
    assert finding.level == "warning"
    assert "CELERY_RESULT_EXPIRES" in finding.remedy
    celery_conf(result_expires=timedelta(days=1))
    assert found("result-expires").level == "info"
    celery_conf(result_expires=timedelta(days=30))
    assert "result-expires" not in ids()


def test_incomplete_results_are_found(celery_conf) -> None:
    celery_conf(result_backend="cache+memory://", result_extended=False, task_track_started=False)
    assert found("result-extended").level == found("track-started").level == "info"
    celery_conf(result_extended=True, task_track_started=True)
    assert not ids() & {"result-extended", "track-started"}


def test_a_redis_without_a_timeout_is_found(celery_conf) -> None:
    assert found("socket-timeout").level == "info"
    celery_conf(broker_transport_options={"socket_timeout": 5})
    assert "socket-timeout" not in ids()


def test_eager_tasks_are_found_and_no_worker_is_required(celery_conf, settings) -> None:
    celery_conf(task_always_eager=True)
    assert found("always-eager").level == "warning"
    assert "broker" not in ids()
    settings.DEBUG = True
    assert "always-eager" not in ids()


def test_a_site_that_delivers_in_process_needs_no_worker(settings, epica_mail) -> None:
    epica_mail(DELIVER_IN_PROCESS=True)
    settings.DEBUG = True
    assert not {"broker", "no-worker", "socket-timeout"} & set(ids())


def test_workers_without_remote_control_are_judged_by_what_they_did(
    smtp, celery_conf, monkeypatch, queue_mail, deliver, travel
) -> None:
    monkeypatch.setattr(celery_findings.workers, "consumed", dict)
    assert found("no-worker").level == "error", "nothing shows that one runs"
    queue_mail()
    deliver()
    silent = found("workers-silent")
    assert silent.level == "info"
    assert (
        "remote control is off, or the broker does not let workers answer. The last attempt was"
    ) in silent.text
    queue_mail()
    travel(minutes=10)
    assert found("no-worker").level == "error"
    celery_conf(worker_enable_remote_control=False)
    assert found("no-worker").level == "error", "mail is due, and nobody sends it"


def test_workers_that_the_site_has_made_silent_are_not_asked(celery_conf, monkeypatch) -> None:
    celery_conf(worker_enable_remote_control=False)
    monkeypatch.setattr(celery_findings.workers, "consumed", lambda: pytest.fail("asked"))
    assert "No worker has had anything to do." in found("workers-silent").text


@pytest.mark.parametrize(
    "rights",
    [
        # The web processes' line in "Production".
        "resetchannels ~emails* ~bulk_emails* ~celery* ~_kombu.binding* -@all +multi +exec +lpush "
        "+llen +sadd +smembers +ping +select",
        "~* &* +@all -publish",
        "~* resetchannels +@all",
    ],
)
def test_a_broker_that_does_not_let_its_user_ask_is_not_down(
    celery_conf, monkeypatch, tmp_path, queue_mail, travel, rights
) -> None:
    with RedisServer(tmp_path, config={"user": f"web on >secret {rights}"}) as redis:
        app = Celery("asking", set_as_current=False)
        app.conf.broker_url = f"redis://web:secret@127.0.0.1:{redis.port}/0"
        monkeypatch.setattr(workers, "app_or_default", lambda: app)
        findings = {it.id: it for it in doctor.examine()}
        assert "broker" not in findings
        refusal = findings["workers-not-asked"]
        assert refusal.level == "warning"
        assert "permission" in refusal.text
        assert "secret" not in refusal.text
        assert "none was asked" in findings["workers-silent"].text
        queue_mail()
        travel(minutes=10)
        assert found("no-worker").level == "error", "mail is due, and nobody sends it"


def test_a_silent_worker_among_others_that_answer_is_known_by_its_work(
    smtp, celery_conf, monkeypatch, queue_mail, deliver, travel
) -> None:
    celery_conf(beat_schedule={**SCHEDULE})
    answers = {"celery@one": ["bulk_emails"]}
    monkeypatch.setattr(celery_findings.workers, "consumed", lambda: answers)
    queue_mail()
    assert without_answer() == {"emails": "error", "celery": "error"}
    deliver()
    assert without_answer() == {"emails": "info", "celery": "error"}
    maintenance.dispatch()
    assert without_answer() == {"emails": "info", "celery": "info"}
    travel(minutes=3)  # past HEALTH_NO_WORKER, but not past HEALTH_LAST_SWEEP
    assert without_answer() == {"emails": "error", "celery": "info"}
    answers["celery@one"] += ["celery", "emails"]
    assert without_answer() == {}


def without_answer() -> dict[str, str]:
    """Return the levels of the findings about queues that no answering worker consumes."""
    levels = {}
    for it in doctor.examine():
        if it.id in ("queue-without-worker", "workers-silent"):
            assert "No worker that answers consumes the queue" in it.text
            levels[it.text.split("the queue ")[1].split(",")[0].split(":")[0]] = it.level
    return levels


def test_the_work_of_one_queue_does_not_speak_for_another(
    smtp, monkeypatch, queue_mail, deliver
) -> None:
    monkeypatch.setattr(celery_findings.workers, "consumed", lambda: {"celery@one": ["celery"]})
    queue_mail()
    deliver()
    assert without_answer() == {"bulk_emails": "error", "emails": "info"}
