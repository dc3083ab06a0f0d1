"""The handles of mails: the states and results that they report from the rows."""

from __future__ import annotations

from typing import Any

import pytest
from celery import current_app
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from devservers.smtp_faults import refuse
from django_epica_mail import outbox, results
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.models import EmailLog, PendingResult
from django_epica_mail.tasks import send_email_async, send_email_task

pytestmark = pytest.mark.filterwarnings("ignore:get.. waits for a mail:RuntimeWarning")


def send(**options: Any) -> results.EmailResult:
    return send_email_async("Subject", "Text", None, ["to@example.com"], **options)


def test_a_handle_is_an_async_result_with_the_rows_id(smtp) -> None:
    result = send()
    assert isinstance(result, AsyncResult)
    assert result.id == str(EmailLog.objects.get().pk)
    assert (result.status, result.ready(), result.result) == ("PENDING", False, None)


def test_sent_mail_is_a_success_with_its_message_id(smtp, deliver) -> None:
    result = send()
    deliver()
    log = EmailLog.objects.get()
    assert result.get(timeout=1) == {"status": "sent", "message_id": log.message_id}
    assert (result.status, result.successful()) == ("SUCCESS", True)
    assert result.date_done == log.finished_at


def test_refused_mail_raises_the_reason_without_an_address(smtp, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 no to@example.com here"))
    result = send()
    deliver()
    with pytest.raises(DeliveryFailed) as caught:
        result.get(timeout=1)
    assert (caught.value.kind, caught.value.code) == ("permanent", 550)
    assert caught.value.enhanced_code == "5.1.1"
    assert str(caught.value) == "permanent (550 5.1.1)"
    assert "@" not in str(caught.value) + repr(caught.value)
    assert isinstance(result.get(propagate=False), DeliveryFailed)


def test_mail_to_be_retried_is_in_state_retry_until_sent(smtp, deliver, travel) -> None:
    smtp.inject(refuse("rcpt", 451, "4.7.1 later", times=1))
    result = send()
    deliver()
    assert result.status == "RETRY"
    assert PendingResult.objects.exists()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0)
    travel(seconds=331)
    deliver()
    assert result.status == "SUCCESS"


def test_cancelled_mail_is_revoked(smtp) -> None:
    result = send()
    outbox.cancel([EmailLog.objects.get().pk])
    assert result.status == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get(timeout=1)


def test_mail_on_hold_is_a_failure_until_a_person_decides(smtp, deliver) -> None:
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


def test_handles_work_without_a_result_backend(smtp, deliver) -> None:
    assert isinstance(current_app.backend, DisabledBackend)
    result = send()
    deliver()
    assert result.get(timeout=1)["status"] == "sent"
    assert not PendingResult.objects.exists()


@pytest.mark.filterwarnings("default")
def test_waiting_inside_the_callers_transaction_warns(smtp, deliver) -> None:
    result = send()
    deliver()
    with pytest.warns(RuntimeWarning, match="sent only after the commit"):
        result.get(timeout=1)


def test_send_email_task_delivers_only_its_mail(smtp, queue_mail, travel) -> None:
    other, wanted = queue_mail(), queue_mail(priority=0)
    assert send_email_task(str(wanted.pk)) == 1
    assert send_email_task(str(wanted.pk)) == 0
    other.refresh_from_db()
    assert (other.status, len(smtp.accepted)) == ("queued", 1)
    outbox.pause(transport="smtp")
    assert send_email_task(str(other.pk)) == 0
