"""The mirror in Celery's result backend: what is stored, when, and how long that may take."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery, current_app
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError

from devservers.redis import RedisServer
from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox
from django_epica_mail.broker import result_backend
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.models import EmailLog, PendingResult
from django_epica_mail.results import EmailResult
from django_epica_mail.tasks import send_email_async, send_email_task

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
"""Celery's Redis backend calls it."""


class Backend:
    """A result backend that keeps what it is given, or raises."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, str, Any, Any]] = []
        self.error: Exception | None = None

    def store_result(self, task_id: str, result: Any, state: str, request: Any) -> None:
        if self.error is not None:
            raise self.error
        self.stored.append((task_id, state, result, request))

    @property
    def states(self) -> list[str]:
        return [state for _, state, *_ in self.stored]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> result_backend._Mirror:
    """This process's state of the mirror, new."""
    mirror = result_backend._Mirror()
    monkeypatch.setattr(result_backend, "_mirror", mirror)
    return mirror


@pytest.fixture
def backend(mirror: result_backend._Mirror, monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend()
    monkeypatch.setattr(result_backend, "_bounded_backend", lambda: backend)
    return backend


def send(**options: Any) -> EmailResult:
    return send_email_async("Subject", "Text", None, ["to@example.com"], **options)


def test_a_sent_mail_is_stored_as_a_success(smtp, deliver, backend) -> None:
    result = send()
    deliver()
    ((task_id, state, value, request),) = backend.stored
    assert (task_id, state, value) == (result.id, "SUCCESS", result.result)
    assert (request.task, request.args) == (send_email_task.name, [result.id])
    assert (request.hostname, request.delivery_info) == (
        EmailLog.objects.get().worker,
        {"routing_key": "emails"},
    )
    assert not PendingResult.objects.exists()


def test_a_refused_mail_is_stored_as_a_failure_without_its_address(smtp, deliver, backend) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 no to@example.com here"))
    send()
    deliver()
    ((_, state, value, _),) = backend.stored
    assert state == "FAILURE"
    assert isinstance(value, DeliveryFailed)
    assert "@" not in repr(value)


def test_a_mail_tried_again_is_stored_as_a_retry_and_then_a_success(
    smtp, deliver, travel, backend
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.7.1 later", times=1))
    send()
    deliver()
    assert PendingResult.objects.exists()
    travel(seconds=331)
    deliver()
    assert backend.states == ["RETRY", "SUCCESS"]
    assert not PendingResult.objects.exists()


def test_the_sweep_stores_a_cancelled_mail_as_revoked(smtp, backend) -> None:
    send()
    outbox.cancel([EmailLog.objects.get().pk])
    maintenance.dispatch()
    ((_, state, value, _),) = backend.stored
    assert state == "REVOKED"
    assert isinstance(value, TaskRevokedError)
    assert not PendingResult.objects.exists()


def test_a_backend_that_is_down_stops_no_mail_and_is_written_later(
    smtp, deliver, backend, mirror, caplog
) -> None:
    backend.error = ConnectionError("refused")
    one, two = send(), send()
    assert deliver() == 2
    assert (one.status, two.status) == ("SUCCESS", "SUCCESS")
    assert "The result backend did not accept a result (ConnectionError)" in caplog.text
    assert PendingResult.objects.count() == 2
    backend.error = None
    assert maintenance.mirror_results() == 0  # left alone for a while
    mirror.silent_until = 0
    assert maintenance.mirror_results() == 2
    assert {task_id for task_id, *_ in backend.stored} == {one.id, two.id}
    assert not PendingResult.objects.exists()


def test_a_result_that_is_refused_each_time_holds_up_no_other(smtp, backend, mirror) -> None:
    refused, *others = [send() for _ in range(3)]
    outbox.cancel(list(EmailLog.objects.values_list("pk", flat=True)))
    store = backend.store_result

    def refuse_one(task_id: str, *args: Any, **kwargs: Any) -> None:
        if task_id == refused.id:
            raise ValueError("The value is too long.")
        store(task_id, *args, **kwargs)

    backend.store_result = refuse_one  # type: ignore[method-assign]
    for _ in range(2):
        mirror.silent_until = 0
        maintenance.mirror_results()
    assert {task_id for task_id, *_ in backend.stored} == {it.id for it in others}
    assert str(PendingResult.objects.get().pk) == refused.id


def test_a_backend_that_fails_midway_keeps_what_it_has(smtp, backend, mirror, db) -> None:
    logs = [EmailLog.objects.get(pk=send().id) for _ in range(3)]
    EmailLog.objects.update(status="sent")
    store = backend.store_result

    def fail_at_the_second(*args: Any, **kwargs: Any) -> None:
        if backend.stored:
            raise ConnectionError("gone")
        store(*args, **kwargs)

    backend.store_result = fail_at_the_second  # type: ignore[method-assign]
    ids = [log.pk for log in logs]
    assert result_backend.mirror(ids, "default") == 1
    assert PendingResult.objects.count() == 2
    assert mirror.silent_until > time.monotonic()


def test_mail_that_waits_or_is_being_sent_is_not_stored_yet(smtp, backend) -> None:
    ids = [send().id, send().id]
    EmailLog.objects.filter(pk=ids[1]).update(status="sending")
    assert result_backend.mirror(ids, "default") == 0
    assert backend.stored == []
    assert PendingResult.objects.count() == 2


def test_a_mail_held_in_doubt_is_done_until_someone_decides(smtp, backend) -> None:
    send()
    EmailLog.objects.update(status="unknown")
    pk = EmailLog.objects.get().pk
    assert result_backend.mirror([pk], "default") == 1
    assert (backend.states, PendingResult.objects.count()) == (["FAILURE"], 0)
    assert outbox.decide([pk], "arrived") == 1
    assert PendingResult.objects.count() == 1


def test_plain_mail_and_mail_that_opts_out_is_not_stored(
    smtp, deliver, backend, queue_mail
) -> None:
    queue_mail()
    send(store_result=False)
    assert deliver() == 2
    assert backend.stored == []


def test_only_mail_with_a_result_is_scheduled_and_only_once(smtp, queue_mail) -> None:
    plain, wanted = queue_mail(), EmailLog.objects.get(pk=send().id)
    PendingResult.objects.all().delete()
    for _ in range(2):
        result_backend.expect([plain.pk, wanted.pk], "default")
    pending = PendingResult.objects.get()
    assert (pending.email_id, pending.due_at) == (wanted.pk, wanted.due_at)


def test_nothing_to_mirror_costs_no_query(mirror, db, django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        assert result_backend.mirror([], "default") == 0


def test_without_a_result_backend_nothing_is_stored(mirror) -> None:
    assert isinstance(current_app.backend, DisabledBackend)
    assert result_backend.store("id", "SUCCESS", {}, send_email_task.name) is True
    assert mirror.silent_until == 0


def test_a_forked_child_connects_anew(mirror) -> None:
    mirror.backends[1] = object()
    mirror.silent_until = time.monotonic() + 60
    result_backend._forget_after_fork()
    assert (result_backend._mirror.backends, result_backend._mirror.silent_until) == ({}, 0)


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def app(redis, mirror, monkeypatch) -> Celery:
    """The current app, with its result backend on Redis."""
    app = Celery("results-tests", broker="memory://", backend=redis.url(), set_as_current=False)
    monkeypatch.setattr(result_backend, "app_or_default", lambda: app)
    return app


def test_a_stored_result_is_found_by_its_id(app) -> None:
    assert result_backend.store("7", "SUCCESS", {"status": "sent"}, send_email_task.name)
    result = app.AsyncResult("7")
    assert (result.state, result.result) == ("SUCCESS", {"status": "sent"})


def test_a_backend_that_hangs_costs_one_time_out(app, redis, epica_mail) -> None:
    epica_mail(RING_TIMEOUT=0.3)
    assert result_backend.store("1", "SUCCESS", None, send_email_task.name)
    redis.pause()
    try:
        started = time.monotonic()
        assert not result_backend.store("2", "SUCCESS", None, send_email_task.name)
        assert time.monotonic() - started < 2
    finally:
        redis.resume()


def test_the_sites_own_backend_keeps_its_time_outs(app) -> None:
    before = dict(app.backend.connparams)
    ours = result_backend._bounded_backend()
    assert ours is result_backend._bounded_backend()
    assert ours is not app.backend
    assert ours.connparams["socket_timeout"] == 0.5
    assert app.backend.connparams == before
