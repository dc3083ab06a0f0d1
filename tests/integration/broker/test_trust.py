"""Whoever can write to the broker sends no mail of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, current_app
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.worker.request import create_request_cls
from kombu import Connection, Message
from kombu.utils.imports import symbol_by_name
from redis import Redis
from redis.exceptions import NoPermissionError

from devservers.redis import RedisServer
from django_epica_mail import conf, tasks
from django_epica_mail.broker import result_backend
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk, enqueue

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "production.md"

ENTRY = {"subject": "S", "message": "M", "from_email": None, "recipient_list": ["a@example.com"]}


def run_as_worker(task, *args, call_id="a-task", **message):
    """Execute a task as a worker does that got it from the broker; return its state and result."""
    message = {"id": call_id, "task": task.name, "delivery_info": {}, "retries": 0, **message}
    trace = build_tracer(task.name, task, app=current_app._get_current_object())
    done = trace(call_id, list(args), {}, message)
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


def test_a_task_of_celery_that_calls_ours_by_name_sends_nothing(smtp) -> None:
    name = current_app.tasks["celery.map"]
    state, error = run_as_worker(name, tasks.BULK_TASK, [[ENTRY]])
    assert (state, type(error)) == ("FAILURE", PermissionError)
    assert not EmailBatch.objects.exists()


def test_a_message_that_says_it_is_eager_sends_nothing(smtp) -> None:
    state, error = run_as_worker(tasks.send_bulk_emails_task, [ENTRY], is_eager=True)
    assert (state, type(error)) == ("FAILURE", PermissionError)
    assert not EmailBatch.objects.exists()
    assert tasks.send_bulk_emails_task.apply(([ENTRY],)).state == "SUCCESS"


def test_a_callback_that_the_workers_main_process_calls_sends_nothing(smtp) -> None:
    """As after a hard time limit; no task is executing there."""
    whole = {"delivery_info": {}, "headers": {}, "stamps": {}, "args": [], "kwargs": {}}
    request = Context(id="x", task="own", errbacks=[embedded([ENTRY])], root_id="x", **whole)
    with pytest.raises(PermissionError):
        current_app.backend._call_task_errbacks(request, ValueError("the limit"), None)
    assert not EmailBatch.objects.exists()


def test_a_site_can_trust_its_broker(smtp, epica_mail) -> None:
    epica_mail(BULK_ENTRIES_FROM_BROKER=True)
    assert run_as_worker(tasks.send_bulk_emails_task, [ENTRY])[0] == "SUCCESS"
    assert EmailLog.objects.count() == 1


def test_the_last_ring_reports_to_the_caller_of_a_call_that_takes_longer_than_a_task(
    smtp, epica_mail, rings, monkeypatch
) -> None:
    epica_mail(BULK_ENTRIES_FROM_BROKER=True, RUN_SECONDS=0.001)
    monkeypatch.setattr(enqueue, "CHUNK", 2)
    reports: dict[str, Any] = {}
    monkeypatch.setattr(
        result_backend, "store", lambda key, state, report, *_: reports.update({key: report})
    )
    call = str(uuid4())
    for done in (2, 4, 5):
        assert not reports
        argument = call if EmailBatch.objects.exists() else [ENTRY] * 5
        run_as_worker(tasks.send_bulk_emails_task, argument, call_id=call)
        assert EmailLog.objects.count() == done
    assert len(rings) == 2
    assert reports[call]["accepted"] == 5


def test_a_call_of_another_project_that_comes_twice_sends_its_mail_once(smtp, epica_mail) -> None:
    epica_mail(BULK_ENTRIES_FROM_BROKER=True)
    call = str(uuid4())
    states = [run_as_worker(tasks.send_bulk_emails_task, [ENTRY], call_id=call) for _ in range(2)]
    assert [state for state, _ in states] == ["SUCCESS", "FAILURE"]
    assert "in use" in str(states[1][1])
    assert EmailLog.objects.count() == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("is_trusted", [True, False])
def test_files_of_a_worker_are_read_for_nobody_who_can_write_to_the_broker(
    smtp, epica_mail, tmp_path, is_trusted
) -> None:
    epica_mail(BULK_ENTRIES_FROM_BROKER=is_trusted)
    (tmp_path / "secret.txt").write_text("a secret of the host")
    entry = {**ENTRY, "attachments": [str(tmp_path / "secret.txt")]}
    run_as_worker(tasks.send_bulk_emails_task, [entry])
    run_as_worker(tasks.dispatch_due_emails, callbacks=[embedded([entry])])
    for batch in EmailBatch.objects.all():
        bulk.expand(batch.pk)
    assert not EmailLog.objects.exists()

    @current_app.task(name=f"tests.own_newsletter.{is_trusted}")
    def newsletter() -> None:
        tasks.send_bulk_emails_task([entry])

    assert run_as_worker(newsletter)[0] == "SUCCESS"
    assert EmailLog.objects.get().attachments.get().data == b"a secret of the host"


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


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with the users of the documentation, whose passwords are their names."""
    server = RedisServer(tmp_path)
    server.start()
    for name, rules in re.findall(
        r"^user (web|worker) (.+)$", PAGE.read_text("utf-8"), re.MULTILINE
    ):
        words = re.sub(r">\S+", f">{name}", rules).split()
        server.client().execute_command("ACL", "SETUSER", name, *words)
    yield server
    server.kill()


def test_the_documented_users_of_redis_can_ring_and_work_and_the_web_can_do_no_more(redis) -> None:
    web, worker = (f"redis://{it}:{it}@127.0.0.1:{redis.port}/0" for it in ("web", "worker"))
    app = Celery("site", broker=web, set_as_current=False)
    app.send_task("django_epica_mail.tasks.deliver_emails", ["emails"], queue="emails", retry=False)
    with Connection(worker) as connection:
        message = connection.SimpleQueue("emails").get(timeout=10)
        assert message.headers["task"] == "django_epica_mail.tasks.deliver_emails"
        message.ack()
    attacker = Redis.from_url(web)
    for command in (
        "RPOP emails", "LRANGE emails 0 -1", "DEL emails", "FLUSHALL", "KEYS *", "CONFIG GET *",
        "PUBLISH /0.celery.pidbox x", "GET celery-task-meta-x", "LPUSH other x",
    ):  # fmt: skip
        with pytest.raises(NoPermissionError):
            attacker.execute_command(*command.split())


@pytest.mark.parametrize("limits", [[0.1, None], [None, 0.1], "soon", [1, 2, 3], None])
@pytest.mark.parametrize(
    ("name", "to_record"),
    [("deliver_emails", 0), ("send_email_task", 0), ("send_bulk_emails_task", 30)],
)
def test_no_time_limit_of_a_message_interrupts_a_mail(name, to_record, limits) -> None:
    task = getattr(tasks, name)
    seen: list[Any] = []

    class Pool:
        def apply_async(self, *_args: object, **options: Any) -> None:
            seen.append((options["timeout"], options["soft_timeout"]))

    headers = {"id": "a-task", "task": task.name, "timelimit": limits}
    made = create_request_cls(symbol_by_name(task.Request), task, Pool(), "host", None)
    request = made(
        Message(body="", headers=headers), app=current_app, headers=headers, body=((), {}, {}),
        decoded=True,
    )  # fmt: skip
    request.execute_using_pool(Pool())
    seconds = conf.get().task_seconds
    assert seen == [(seconds + to_record, seconds)]
