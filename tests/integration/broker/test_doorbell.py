"""The doorbell: once per window, in bounded time, and silent while the broker is down."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timedelta
from datetime import timezone as utc_zone
from typing import Any

import pytest
from celery import Celery
from django.db import transaction
from django.utils import timezone
from kombu import Queue

from devservers.process import free_port
from devservers.redis import RedisServer
from django_epica_mail import maintenance, signals, tasks
from django_epica_mail.broker import doorbell
from django_epica_mail.models import EmailLog

PUBLISH = doorbell._publish


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def bell(monkeypatch) -> doorbell._Bell:
    """The real bell, new."""
    bell = doorbell._Bell()
    monkeypatch.setattr(doorbell, "_bell", bell)
    monkeypatch.setattr(doorbell, "_publish", PUBLISH)
    return bell


@pytest.fixture
def celery(monkeypatch) -> Any:
    """Make the current app one with this broker."""

    def use(url: str, **conf: Any) -> Celery:
        app = Celery("doorbell-tests", broker=url, set_as_current=False)
        app.conf.update(conf)
        monkeypatch.setattr(doorbell, "app_or_default", lambda: app)
        return app

    return use


def test_a_ring_carries_only_its_queue_and_time(redis, bell, celery) -> None:
    celery(redis.url())
    doorbell._ring_unless_covered("emails")
    with redis.client() as client:
        (raw,) = client.lrange("emails", 0, -1)
        assert b"deliver_emails" in raw
    assert len(raw) < 1500


def test_a_ring_ahead_of_its_time_says_when_it_is_due(redis, bell, celery) -> None:
    celery(redis.url())
    assert doorbell.ring("emails", after=30.0)
    with redis.client() as client:
        (raw,) = client.lrange("emails", 0, -1)
    eta = datetime.fromisoformat(json.loads(raw)["headers"]["eta"])
    assert 25 < (eta - datetime.now(utc_zone.utc)).total_seconds() <= 30
    celery("memory://", task_always_eager=True)
    assert not doorbell.ring("emails", after=30.0), "nobody would hear it"


def test_a_queue_is_rung_for_once_within_the_window(redis, bell, celery) -> None:
    celery(redis.url())
    for _ in range(20):
        doorbell._ring_unless_covered("emails")
    doorbell._ring_unless_covered("bulk_emails")
    with redis.client() as client:
        assert client.llen("emails") <= 2
        assert client.llen("bulk_emails") == 1


def test_a_refused_ring_unstamps_the_window_and_silences_the_bell(bell, celery, caplog) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        doorbell._ring_unless_covered("emails")
        for _ in range(50):
            doorbell._ring_unless_covered("emails")
    assert time.monotonic() - started < 1.5
    assert bell.rung_at == {}
    assert bell.silent_until > time.monotonic()
    assert len(caplog.records) == 1


def test_a_broker_that_hangs_costs_one_time_out(redis, bell, celery) -> None:
    celery(redis.url())
    redis.pause()
    try:
        started = time.monotonic()
        for _ in range(50):
            doorbell._ring_unless_covered("emails")
        assert 0.3 < time.monotonic() - started < 2
    finally:
        redis.resume()


def test_a_broker_out_of_memory_raises_nothing(redis, bell, celery) -> None:
    celery(redis.url())
    with redis.client() as client:
        client.config_set("maxmemory", "1")
    assert doorbell.ring("emails") is False


def test_a_queue_that_the_broker_refuses_silences_no_other(redis, bell, celery, caplog) -> None:
    celery(redis.url())
    with redis.client() as client:
        client.sadd("_kombu.binding.x", "a key that is no list, as kombu's own are")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert doorbell.ring("_kombu.binding.x") is False, "each sweep rings for it first"
            assert doorbell.ring("emails") is True
    assert len(caplog.records) == 1
    bell.refused_until["_kombu.binding.x"] = bell.silent_until = time.monotonic() - 0.001
    assert doorbell.ring("_kombu.binding.x") is False
    assert doorbell.ring("emails") is True
    assert len(caplog.records) == 2


def test_after_the_pause_a_ring_finds_the_broker_back(redis, bell, celery) -> None:
    celery(redis.url())
    redis.kill()
    assert doorbell.ring("emails") is False
    redis.start()
    assert doorbell.ring("emails") is False, "too early to ask again"
    bell.silent_until = time.monotonic() - 0.001
    assert doorbell.ring("emails") is True
    assert bell.silent_until == 0


def test_the_sites_celery_settings_are_unchanged(redis, bell, celery) -> None:
    app = celery(redis.url())
    assert app.conf.task_always_eager is False
    before = dict(app.conf.changes)
    assert doorbell.ring("emails")
    assert dict(app.conf.changes) == before
    assert app.conf.broker_transport_options == {}


@pytest.mark.parametrize(("age", "needed"), [(0, True), (1, True), (1.1, False), (3600, False)])
def test_only_a_fresh_ring_may_cover_mail_committed_after_it(age, needed) -> None:
    assert doorbell.needs_second_look(time.time() - age) is needed


def test_a_ring_without_a_time_covers_nothing_later() -> None:
    assert doorbell.needs_second_look(None) is False


def test_a_forked_child_starts_with_its_own_bell(bell) -> None:
    bell.rung_at["emails"] = time.monotonic()
    doorbell._forget_after_fork()
    assert doorbell._bell.rung_at == {}


@pytest.mark.django_db(transaction=True)
def test_an_eager_site_delivers_on_commit(smtp, bell, celery, queue_mail) -> None:
    celery("memory://", task_always_eager=True)
    with transaction.atomic():
        queue_mail()
        assert smtp.accepted == []
    assert EmailLog.objects.get().status == "sent"
    assert len(smtp.accepted) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("debug", [True, False])
def test_in_development_the_process_that_commits_may_deliver(
    smtp, bell, celery, queue_mail, epica_mail, settings, debug
) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0")
    epica_mail(DELIVER_IN_PROCESS=True)
    settings.DEBUG = debug
    with transaction.atomic():
        queue_mail()
        assert smtp.accepted == []
    assert EmailLog.objects.get().status == ("sent" if debug else "queued")
    assert len(smtp.accepted) == int(debug)


@pytest.mark.django_db(transaction=True)
def test_in_development_a_bulk_call_needs_no_worker(
    smtp, bell, celery, epica_mail, settings
) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0")
    epica_mail(DELIVER_IN_PROCESS=True)
    settings.DEBUG = True
    with transaction.atomic():
        tasks.send_bulk_emails_task.delay(
            [
                {"subject": "S", "message": "B", "from_email": None, "recipient_list": [address]}
                for address in ("a@example.com", "b@example.com")
            ]
        )
        assert smtp.accepted == []
    assert sorted(it.recipients[0] for it in smtp.accepted) == ["a@example.com", "b@example.com"]


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_rolled_back_discards_its_ring(queue_mail, rings) -> None:
    with transaction.atomic():
        try:
            with transaction.atomic():
                queue_mail(queue="undone")
                raise RuntimeError
        except RuntimeError:
            pass
        queue_mail(queue="kept")
    assert rings == ["kept"]


@pytest.mark.django_db(transaction=True)
def test_without_a_transaction_the_bell_is_rung_at_once(queue_mail, rings) -> None:
    queue_mail()
    assert rings == ["emails"]


@pytest.mark.django_db(transaction=True)
def test_an_error_of_the_bell_does_not_reach_the_caller(queue_mail, monkeypatch) -> None:
    def explode(queue: str) -> None:
        raise RuntimeError("bell")

    monkeypatch.setattr(doorbell, "_ring_unless_covered", explode)
    assert queue_mail().status == "queued"


def test_a_queue_that_is_not_configured_silences_no_other(redis, bell, celery, caplog) -> None:
    queues = [Queue("celery"), Queue("emails")]
    celery(redis.url(), task_create_missing_queues=False, task_queues=queues)
    with caplog.at_level(logging.WARNING):
        assert [doorbell.ring("typo") for _ in range(3)] == [False] * 3
    assert doorbell.ring("emails") is True
    (record,) = caplog.records
    assert "The queue typo is not in CELERY_TASK_QUEUES" in record.getMessage()


def test_after_the_pause_a_queue_that_is_not_configured_silences_no_other(
    redis, bell, celery
) -> None:
    queues = [Queue("celery"), Queue("emails")]
    celery(redis.url(), task_create_missing_queues=False, task_queues=queues)
    bell.silent_until = time.monotonic() - 0.001
    assert doorbell.ring("a typo") is False, "each sweep rings for it first"
    assert doorbell.ring("emails") is True
    assert bell.silent_until == 0


def test_a_ring_reaches_the_broker_that_is_alive(redis, bell, celery) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0;{redis.url()}")
    assert doorbell.ring("emails") is True
    with redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert doorbell.ring("emails") is True, "over a new connection"
    with redis.client() as client:
        assert client.llen("emails") == 2


def test_a_ring_needs_no_result_backend(redis, bell, celery) -> None:
    celery(redis.url(), result_backend="no.such.module:Backend")
    assert doorbell.ring("emails") is True


@pytest.mark.django_db(transaction=True)
def test_nested_rings_of_an_eager_site_ask_no_broker(
    smtp, bell, celery, queue_mail, epica_mail, caplog
) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0", task_always_eager=True)
    epica_mail(BATCH_SIZE=1)  # a full batch calls for help
    with caplog.at_level(logging.INFO), transaction.atomic():
        for _ in range(8):
            queue_mail()
    assert len(smtp.accepted) == 8
    assert [it for it in caplog.records if it.name == doorbell.__name__] == []


@pytest.mark.django_db(transaction=True)
def test_the_sweep_of_an_eager_site_delivers(smtp, bell, celery, queue_mail, travel) -> None:
    celery("memory://", task_always_eager=True)
    queue_mail(send_at=timezone.now() + timedelta(minutes=5))
    assert smtp.accepted == []
    travel(minutes=6)
    maintenance.dispatch()
    assert len(smtp.accepted) == 1


@pytest.mark.django_db(transaction=True)
def test_mail_that_a_delivery_queues_is_sent_by_an_eager_site(
    smtp, bell, celery, queue_mail, monkeypatch
) -> None:
    celery("memory://", task_always_eager=True)

    def receipt(sender: Any, email: EmailLog, **_: Any) -> None:
        if email.subject != "Receipt":
            queue_mail(subject="Receipt", queue="receipts")

    signals.before_send.connect(receipt)
    try:
        queue_mail()
    finally:
        signals.before_send.disconnect(receipt)
    assert len(smtp.accepted) == 2
