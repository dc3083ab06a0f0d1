"""What a handle answers, and what the result backend is told."""

from __future__ import annotations

from typing import Any

import pytest
from celery import current_app
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox, results
from django_epica_mail.broker import result_backend
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.models import EmailLog, PendingResult
from django_epica_mail.tasks import send_email_async, send_email_task

pytestmark = pytest.mark.filterwarnings("ignore:get.. waits for a mail:RuntimeWarning")


class Backend:
    """A result backend that keeps what it is told, or raises."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Any, Any]] = []
        self.error: Exception | None = None

    def store_result(self, task_id: str, result: Any, state: str, request: Any) -> None:
        if self.error is not None:
            raise self.error
        self.told.append((task_id, state, result, request))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend()
    monkeypatch.setattr(result_backend, "_mirror", result_backend._Mirror())
    monkeypatch.setattr(result_backend, "_bounded_backend", lambda: backend)
    return backend


def send(**options: Any) -> results.EmailResult:
    return send_email_async("Subject", "Text", None, ["to@example.com"], **options)


def test_a_handle_is_celerys_and_its_id_is_the_row(smtp) -> None:
    result = send()
    assert isinstance(result, AsyncResult)
    assert result.id == str(EmailLog.objects.get().pk)
    assert (result.status, result.ready(), result.result) == ("PENDING", False, None)


def test_a_mail_that_was_sent_is_a_success_with_its_message_id(smtp, deliver, backend) -> None:
    result = send()
    deliver()
    log = EmailLog.objects.get()
    assert result.get(timeout=1) == {"status": "sent", "message_id": log.message_id}
    assert (result.status, result.successful()) == ("SUCCESS", True)
    assert result.date_done == log.finished_at
    ((told, state, value, request),) = backend.told
    assert (told, state, value) == (result.id, "SUCCESS", result.result)
    assert (request.task, request.args) == (send_email_task.name, [result.id])
    assert not PendingResult.objects.exists()


def test_a_mail_that_was_refused_raises_the_reason_and_no_address(smtp, deliver, backend) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 no to@example.com here"))
    result = send()
    deliver()
    with pytest.raises(DeliveryFailed) as caught:
        result.get(timeout=1)
    assert (caught.value.kind, caught.value.code) == ("permanent", 550)
    assert "@" not in str(caught.value) + repr(caught.value)
    assert isinstance(result.get(propagate=False), DeliveryFailed)
    assert backend.told[0][1] == "FAILURE"


def test_a_mail_that_is_tried_again_is_in_retry_until_it_is_sent(
    smtp, deliver, travel, backend
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.7.1 later", times=1))
    result = send()
    deliver()
    assert result.status == "RETRY"
    assert PendingResult.objects.exists()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0)
    travel(seconds=301)
    deliver()
    assert result.status == "SUCCESS"
    assert [state for _, state, *_ in backend.told] == ["RETRY", "SUCCESS"]


def test_a_cancelled_mail_is_revoked_and_the_sweep_tells_so(smtp, backend) -> None:
    result = send()
    outbox.cancel([EmailLog.objects.get().pk])
    assert result.status == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get(timeout=1)
    maintenance.dispatch()
    assert [state for _, state, *_ in backend.told] == ["REVOKED"]
    assert not PendingResult.objects.exists()


def test_a_mail_held_in_doubt_is_a_failure_until_a_person_decides(smtp, deliver, backend) -> None:
    from devservers.smtp_faults import drop

    smtp.inject(drop("content", times=1))
    result = send(on_unknown="hold")
    deliver()
    assert EmailLog.objects.get().status == "unknown"
    with pytest.raises(DeliveryFailed, match="unknown"):
        result.get(timeout=1)
    outbox.requeue([EmailLog.objects.get().pk])
    assert result.status == "PENDING"
    assert PendingResult.objects.exists()
    deliver()
    assert result.status == "SUCCESS"


def test_a_result_backend_that_is_down_stops_no_mail_and_is_told_later(
    smtp, deliver, backend, caplog
) -> None:
    backend.error = ConnectionError("refused")
    one, two = send(), send()
    assert deliver() == 2
    assert (one.status, two.status) == ("SUCCESS", "SUCCESS")
    assert "The result backend took no result (ConnectionError)" in caplog.text
    assert PendingResult.objects.count() == 2
    backend.error = None
    assert maintenance.mirror_results() == 0  # left alone for a while
    result_backend._mirror.silent_until = 0
    assert maintenance.mirror_results() == 2
    assert {told for told, *_ in backend.told} == {one.id, two.id}
    assert not PendingResult.objects.exists()


def test_without_a_result_backend_handles_tell_the_truth_all_the_same(smtp, deliver) -> None:
    assert isinstance(current_app.backend, DisabledBackend)
    result = send()
    deliver()
    assert result.get(timeout=1)["status"] == "sent"
    assert not PendingResult.objects.exists()


def test_plain_mail_and_mail_that_says_so_is_not_told_of(
    smtp, deliver, backend, queue_mail
) -> None:
    queue_mail()
    send(store_result=False)
    assert deliver() == 2
    assert backend.told == []


@pytest.mark.filterwarnings("default")
def test_waiting_for_ones_own_commit_warns(smtp, deliver) -> None:
    result = send()
    deliver()
    with pytest.warns(RuntimeWarning, match="sent only after the commit"):
        result.get(timeout=1)


def test_this_one_mail_is_delivered_now(smtp, queue_mail, travel) -> None:
    other, wanted = queue_mail(), queue_mail(priority=0)
    assert send_email_task(str(wanted.pk)) == 1
    assert send_email_task(str(wanted.pk)) == 0
    other.refresh_from_db()
    assert (other.status, len(smtp.accepted)) == ("queued", 1)
    outbox.pause(transport="smtp")
    assert send_email_task(str(other.pk)) == 0
