"""The Celery tasks: their names, their options and what they do."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta

import pytest
from celery import current_app
from celery.app.trace import trace_task
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.db import connection
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox, tasks
from django_epica_mail.broker import celery_config
from django_epica_mail.models import EmailLog

TASKS = (
    tasks.deliver_emails,
    tasks.dispatch_due_emails,
    tasks.retry_failed_emails,
    tasks.cleanup_old_email_logs,
    tasks.read_bounces,
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_task_is_named_by_its_path_and_stores_no_result(task) -> None:
    assert task.name == f"django_epica_mail.tasks.{task.__name__}"
    assert current_app.tasks[task.name].name == task.name
    assert task.ignore_result is True
    assert task.acks_late is False, "the row is the queue, so redelivery by the broker is useless"
    assert task.max_retries == 0


def test_the_doorbell_rings_the_delivery_task() -> None:
    assert tasks.deliver_emails.name == celery_config.TASK


def test_a_ring_delivers_only_the_due_mail_of_its_queue(smtp, queue_mail) -> None:
    queue_mail()
    queue_mail(queue="bulk_emails")
    assert tasks.deliver_emails("emails") == 1
    assert tasks.deliver_emails("emails") == 0, "a repeated ring finds nothing to send"
    assert tasks.deliver_emails("bulk_emails", rung_at=0.0) == 1
    assert len(smtp.accepted) == 2


def test_only_a_message_to_a_worker_drops_old_connections(transactional_db, monkeypatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(
        connection, "close_if_unusable_or_obsolete", lambda: dropped.append(connection.alias)
    )
    tasks.deliver_emails("emails")
    tasks.deliver_emails.apply(args=("emails",))
    assert dropped == [], "the caller goes on using its connection"
    task = current_app.tasks[tasks.deliver_emails.name]
    trace_task(task, "1", ("emails",), {}, request={"id": "1"}, app=task.app)
    assert dropped == ["default"]


def test_a_broken_connection_is_dropped_in_the_callers_process_too(
    transactional_db, monkeypatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(connection, "close", lambda: closed.append(connection.alias))
    monkeypatch.setattr(connection, "is_usable", lambda: False)
    tasks.retry_failed_emails()
    assert closed == []
    monkeypatch.setattr(connection, "errors_occurred", True)
    tasks.retry_failed_emails()
    assert closed == ["default"], "a scheduler that calls the function goes on after an outage"


def test_the_sweep_rescues_and_rings(smtp, queue_mail, rings) -> None:
    queue_mail()
    rings.clear()
    assert tasks.dispatch_due_emails() == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 1}
    assert rings == ["emails"]


def test_a_worker_sweeps_once_at_a_time(db, monkeypatch) -> None:
    """With a slow database, a sweep took longer than its interval, and soon every process."""
    swept: list[dict[str, int]] = []

    def rescue() -> int:
        if not swept:
            swept.append({})
            swept.append(tasks.dispatch_due_emails())
            if (child := os.fork()) == 0:  # a pool process of the same worker
                os._exit(tasks._sweep_mark.begin())
            assert os.waitpid(child, 0)[1] == 0
            raise RuntimeError
        return 7

    monkeypatch.setattr(maintenance, "rescue", rescue)
    with pytest.raises(RuntimeError):
        tasks.dispatch_due_emails()
    assert swept[1:] == [{"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 0}]
    assert tasks.dispatch_due_emails()["rescued"] == 7, "the one before has ended, with an error"


def test_a_sweep_that_was_killed_keeps_no_other_for_long(db, monkeypatch) -> None:
    assert tasks._sweep_mark.begin()
    monkeypatch.setattr(maintenance, "rescue", lambda: 7)
    assert tasks.dispatch_due_emails()["rescued"] == 0
    monkeypatch.setattr(tasks, "_LONGEST_SWEEP", 0.0)
    assert tasks.dispatch_due_emails()["rescued"] == 7


def test_failed_mail_is_queued_again_and_old_mail_deleted(
    smtp, queue_mail, epica_mail, travel
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("content", 451, "4.3.0 Later", times=1))
    queue_mail()
    tasks.deliver_emails("emails")
    assert tasks.retry_failed_emails() == 0, "a message in a loop has no server asked in a loop"
    travel(minutes=2)
    assert tasks.retry_failed_emails() == 1
    tasks.deliver_emails("emails")
    assert len(smtp.accepted) == 1
    travel(days=8)
    assert tasks.cleanup_old_email_logs() == 0
    assert tasks.cleanup_old_email_logs(days=7) == 1
    assert EmailLog.objects.count() == 0


@pytest.mark.parametrize("days", [0, -1, True, 0.5, "1"])
def test_a_message_cannot_empty_the_log(smtp, queue_mail, deliver, travel, days) -> None:
    queue_mail()
    deliver()
    travel(hours=2)
    with pytest.raises(ValueError, match="CLEANUP_MIN_DAYS"):
        tasks.cleanup_old_email_logs(days)
    assert EmailLog.objects.exists()


def test_the_fewest_days_of_the_clean_up_are_a_setting(smtp, epica_mail) -> None:
    epica_mail(CLEANUP_MIN_DAYS=7)
    with pytest.raises(ValueError, match="7 or more"):
        tasks.cleanup_old_email_logs(6)
    assert tasks.cleanup_old_email_logs(7) == 0
    assert tasks.cleanup_old_email_logs() == 0


DJANGOS = (ValidationError, ObjectDoesNotExist)
ODD = [None, -1, 2**70, float("nan"), "", "x" * 10**6, [], ["emails"], {}, "held", "\u0130", True]


@pytest.mark.parametrize(
    "task",
    [*TASKS, tasks.send_email_task, tasks.send_bulk_emails_task],
    ids=lambda task: task.__name__,
)
def test_no_message_sends_or_changes_what_is_not_due(task, smtp, queue_mail) -> None:
    later = timezone.now() + timedelta(days=1)
    mails = [queue_mail(send_at=later), queue_mail(queue="held")]
    outbox.pause(queue="held")
    before = list(EmailLog.objects.values())
    for value in [*ODD, *(str(mail.pk) for mail in mails)]:
        if task is tasks.send_bulk_emails_task and isinstance(value, list):
            continue  # a call in this process
        with contextlib.suppress(TypeError, ValueError, OverflowError, *DJANGOS):
            task(value)
    assert list(EmailLog.objects.values()) == before
    assert smtp.accepted == []
