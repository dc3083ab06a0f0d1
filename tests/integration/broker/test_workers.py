"""Queries to the running workers: their answers, and their limits in time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from devservers.process import free_port
from devservers.redis import RedisServer
from django_epica_mail.broker import workers


@pytest.fixture
def celery(monkeypatch) -> Any:
    """Make the current app one with this broker."""

    def use(url: str) -> Celery:
        app = Celery("workers-tests", broker=url, set_as_current=False)
        monkeypatch.setattr(workers, "app_or_default", lambda: app)
        return app

    return use


class Inspect:
    """Answers as Celery does, and records how it was asked."""

    def __init__(self, answers: dict[str, Any] | None) -> None:
        self.answers = answers
        self.asked: list[tuple[float, Connection]] = []

    def __call__(self, *, timeout: float, connection: Connection) -> Inspect:
        assert connection.connected
        self.asked.append((timeout, connection))
        return self

    def active_queues(self) -> dict[str, Any] | None:
        return self.answers


def test_each_worker_reports_the_queues_it_consumes(celery, monkeypatch) -> None:
    inspect = Inspect(
        {
            "celery@one": [{"name": "emails", "exchange": {}}, {"name": "bulk_emails"}],
            "celery@two": [],
        }
    )
    monkeypatch.setattr(celery("memory://").control, "inspect", inspect)
    assert workers.consumed() == {"celery@one": ["bulk_emails", "emails"], "celery@two": []}
    ((timeout, connection),) = inspect.asked
    assert timeout == workers.TIME_TO_ANSWER
    assert not connection.connected, "closed when the answers are in"


def test_without_answers_no_queue_is_consumed(celery, monkeypatch) -> None:
    monkeypatch.setattr(celery("memory://").control, "inspect", Inspect(None))
    assert workers.consumed() == {}


def test_without_workers_it_waits_no_longer_than_the_limit(celery, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(workers, "TIME_TO_ANSWER", 0.2)
    with RedisServer(tmp_path) as server:
        celery(server.url())
        started = time.monotonic()
        assert workers.consumed() == {}
        assert 0.2 <= time.monotonic() - started < 2


def test_a_broker_that_is_down_raises_soon(celery) -> None:
    celery(f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    with pytest.raises(OperationalError):
        workers.consumed()
    assert time.monotonic() - started < 3


def test_a_broker_that_hangs_raises_soon(celery, epica_mail, tmp_path) -> None:
    epica_mail(RING_TIMEOUT=0.2)
    with RedisServer(tmp_path) as server:
        celery(server.url())
        server.pause()
        try:
            started = time.monotonic()
            with pytest.raises(OperationalError):
                workers.consumed()
            assert time.monotonic() - started < 5
        finally:
            server.resume()
