"""The Celery tasks: their names, their options and what they do."""

from __future__ import annotations

import pytest
from celery import current_app
from celery.app.trace import build_tracer

from devservers.smtp_faults import refuse
from django_epica_mail import tasks
from django_epica_mail.broker import celery_config
from django_epica_mail.models import EmailBatch, EmailLog

TASKS = (
    tasks.deliver_emails,
    tasks.dispatch_due_emails,
    tasks.retry_failed_emails,
    tasks.cleanup_old_email_logs,
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


def test_the_sweep_rescues_and_rings(smtp, queue_mail, rings) -> None:
    queue_mail()
    rings.clear()
    assert tasks.dispatch_due_emails() == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 1}
    assert rings == ["emails"]


def test_failed_mail_is_queued_again_and_old_mail_deleted(
    smtp, queue_mail, epica_mail, travel
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("content", 451, "4.3.0 Later", times=1))
    queue_mail()
    tasks.deliver_emails("emails")
    assert tasks.retry_failed_emails() == 1
    tasks.deliver_emails("emails")
    assert len(smtp.accepted) == 1
    travel(days=8)
    assert tasks.cleanup_old_email_logs() == 0
    assert tasks.cleanup_old_email_logs(days=7) == 1
    assert EmailLog.objects.count() == 0


ENTRY = {"subject": "S", "message": "M", "from_email": None, "recipient_list": ["a@example.com"]}


def run_as_worker(task, *args, **message):
    """Execute a task as a worker does that got it from the broker; return its state and result."""
    message = {"id": "a-task", "task": task.name, "delivery_info": {}, "retries": 0, **message}
    trace = build_tracer(task.name, task, app=current_app._get_current_object())
    done = trace("a-task", list(args), {}, message)
    if done.info is None:
        return "SUCCESS", done.retval
    return done.info.state, done.retval.exception


def embedded(entries) -> dict:
    """Return a call of the bulk task as somebody else writes it into the broker."""
    return {
        "task": tasks.BULK_TASK, "args": [entries], "kwargs": {}, "options": {},
        "subtask_type": None, "immutable": True,
    }  # fmt: skip


def test_entries_that_come_through_the_broker_send_nothing(smtp) -> None:
    state, error = run_as_worker(tasks.send_bulk_emails_task, [ENTRY])
    assert (state, type(error)) == ("FAILURE", PermissionError)
    assert "a@example.com" not in str(error)
    assert not EmailBatch.objects.exists()
    assert not EmailLog.objects.exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("way", ["callbacks", "chain"])
def test_entries_in_a_callback_of_another_message_send_nothing(smtp, epica_mail, way) -> None:
    def attack() -> None:
        run_as_worker(tasks.dispatch_due_emails, **{way: [embedded([ENTRY])]})

    attack()
    assert not EmailBatch.objects.exists()
    epica_mail(BULK_ENTRIES_FROM_BROKER=True)
    attack()
    assert EmailBatch.objects.exists(), "the attack is one"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("celery.map", lambda call: [call, [[ENTRY]]]),
        ("celery.starmap", lambda call: [call, [[[ENTRY]]]]),
    ],
)
def test_entries_for_a_task_of_celery_that_calls_ours_send_nothing(smtp, name, args) -> None:
    state, error = run_as_worker(current_app.tasks[name], *args(embedded([])))
    assert (state, type(error)) == ("FAILURE", PermissionError)
    assert not EmailLog.objects.exists()


def test_a_site_can_trust_its_broker(smtp, epica_mail) -> None:
    epica_mail(BULK_ENTRIES_FROM_BROKER=True)
    assert run_as_worker(tasks.send_bulk_emails_task, [ENTRY])[0] == "SUCCESS"
    assert EmailLog.objects.count() == 1


def test_a_batch_is_expanded_and_a_sites_task_may_call_ours(smtp) -> None:
    batch = tasks.send_bulk_emails_task.s([ENTRY]).apply_async()
    assert run_as_worker(tasks.send_bulk_emails_task, batch.id)[0] == "SUCCESS"

    @current_app.task(name="tests.newsletter")
    def newsletter() -> None:
        tasks.send_bulk_emails_task.delay([ENTRY])
        tasks.send_bulk_emails_task([ENTRY])

    assert run_as_worker(newsletter)[0] == "SUCCESS"
    assert EmailBatch.objects.count() == 3
    assert EmailLog.objects.count() == 2


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
