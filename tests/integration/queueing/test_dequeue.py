"""Which rows a claim takes, whatever the database does it with."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.queueing import dequeue
from django_epica_mail.queueing.dequeue import Accepted, Lease

LANE = ("smtp", 9)
USING = "default"


def take(lanes=(LANE,), limit=10, token=None, **options):
    lease = Lease(token or uuid.uuid4(), 60.0, "host:1")
    return dequeue.take("emails", list(lanes), limit, lease, using=USING, **options)


@pytest.fixture
def settle_and_take():
    if not dequeue.lanes_together("default"):
        pytest.skip("only where one statement does both")

    def run(rows, **changes):
        accepted = [
            Accepted(
                uuid.uuid4(), it.pk, it.lease_token, it.attempts + 1, it.transport, it.worker,
                0.1, 250, "2.0.0 Ok", "",
            )._replace(**changes)
            for it in rows
        ]  # fmt: skip
        lease = Lease(uuid.uuid4(), 60.0, "host:1")
        return dequeue.settle_and_take(accepted, "emails", [LANE], 10, lease, using=USING)

    return run


def test_rows_are_marked_as_held(smtp, queue_mail) -> None:
    token = uuid.uuid4()
    log = queue_mail()
    (row,) = take(token=token)
    log.refresh_from_db()
    assert (row.pk, row.lease_token, row.worker) == (log.pk, token, "host:1")
    assert (log.status, log.pending, log.lease_token) == ("sending", None, token)
    assert [it.pk for it in dequeue.held(token, "default")] == [log.pk]


def test_what_was_true_at_the_claim_comes_with_the_rows(smtp, queue_mail, travel) -> None:
    queue_mail(expires_at=timezone.now() + timedelta(minutes=1))
    queue_mail()
    travel(minutes=2)
    rows = take()
    assert [bool(row.is_expired) for row in rows] == [True, False]
    assert not any(row.too_old or row.has_suppressions or row.has_attachments for row in rows)


def test_the_first_lane_that_has_mail_decides_the_transport(smtp, queue_mail) -> None:
    second, first = queue_mail(transport="b"), queue_mail(transport="a")
    lanes = [("none", 9), ("a", 9), ("b", 9)]
    assert [row.pk for row in take(lanes)] == [first.pk]
    assert [row.pk for row in take(lanes)] == [second.pk]


def test_mail_that_is_not_due_waits(smtp, queue_mail) -> None:
    queue_mail(send_at=timezone.now() + timedelta(hours=1))
    assert take() == []


def test_a_bound_skips_what_is_due_earlier(smtp, queue_mail) -> None:
    early, late = queue_mail(), queue_mail()
    EmailLog.objects.filter(pk=early.pk).update(due_at=timezone.now() - timedelta(minutes=1))
    bounds = {LANE: timezone.now() - timedelta(seconds=30)}
    assert [row.pk for row in take(bounds=bounds)] == [late.pk]
    assert [row.pk for row in take()] == [early.pk]


def test_a_row_changed_by_hand_blocks_no_other(smtp, queue_mail) -> None:
    changed, other = queue_mail(), queue_mail()
    EmailLog.objects.filter(pk=changed.pk).update(status="sent")
    assert [row.pk for row in take(limit=1)] == [other.pk]


def test_the_next_are_claimed_with_the_settle_of_the_last(
    smtp, queue_mail, settle_and_take, django_assert_num_queries
) -> None:
    first, second = queue_mail(), queue_mail()
    rows = take(limit=1)
    with django_assert_num_queries(1):
        settled, taken = settle_and_take(rows)
    assert (settled, [row.pk for row in taken]) == ({first.pk}, [second.pk])
    first.refresh_from_db()
    assert (first.status, first.attempts, first.lease_until) == ("sent", 1, None)
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.email_id, attempt.number, attempt.reply) == (first.pk, 1, "2.0.0 Ok")


def test_a_settle_without_mail_to_follow_tells_what_it_settled(
    smtp, queue_mail, settle_and_take
) -> None:
    log = queue_mail()
    assert settle_and_take(take()) == ({log.pk}, [])


def test_rows_lost_or_deleted_are_not_settled(smtp, queue_mail, settle_and_take) -> None:
    lost, deleted, kept = queue_mail(), queue_mail(), queue_mail()
    rows = take()
    EmailLog.objects.filter(pk=lost.pk).update(lease_token=uuid.uuid4())
    EmailLog.objects.delete_with_content([deleted.pk])
    settled, _ = settle_and_take(rows)
    assert settled == {kept.pk}
    assert [it.email_id for it in DeliveryAttempt.objects.all()] == [kept.pk]


def test_the_same_settle_twice_settles_once(smtp, queue_mail, settle_and_take) -> None:
    queue_mail()
    rows = take()
    settle_and_take(rows)
    assert settle_and_take(rows) == (set(), [])
    assert DeliveryAttempt.objects.count() == 1


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "NULL",
        "null",
        "{}",
        '"',
        "\\",
        'a"b\\',
        "a,b",
        "{a,{b}}",
        "%s",
        "it's ü €",
        " both ",
        "a\tb",
    ],
)
def test_whatever_a_server_says_is_stored_as_it_is(
    smtp, queue_mail, settle_and_take, reply
) -> None:
    queue_mail()
    settle_and_take(take(), reply=reply, provider_id=reply[::-1])
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.reply, attempt.provider_id) == (reply, reply[::-1])


def test_what_a_transport_did_not_tell_is_stored_as_unknown(
    smtp, queue_mail, settle_and_take
) -> None:
    queue_mail()
    settle_and_take(take(), code=None, seconds=None)
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.code, attempt.seconds, attempt.reply) == (None, None, "2.0.0 Ok")


@pytest.mark.parametrize("queue", ['a "queue"', "back\\slash", "{braces}", "NULL"])
def test_a_queue_may_have_any_name(smtp, queue_mail, queue) -> None:
    log = queue_mail(queue=queue)
    lease = Lease(uuid.uuid4(), 60.0, "host:1")
    (row,) = dequeue.take(queue, [LANE], 10, lease, using=USING)
    assert row.pk == log.pk


def test_a_suspect_is_claimed_alone_and_the_others_are_released(smtp, queue_mail) -> None:
    logs = [queue_mail() for _ in range(3)]
    EmailLog.objects.filter(pk=logs[1].pk).update(failure_kind="worker_lost")
    assert [row.pk for row in take()] == [logs[0].pk]
    assert EmailLog.objects.filter(status="queued").count() == 2


def test_statistics_of_an_empty_queue_mislead_no_claim(smtp, queue_mail) -> None:
    """With statistics of a time when nothing waited, another index once sorted the backlog."""
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL's planner")
    with connection.cursor() as cursor:
        for _ in range(20):
            queue_mail()
        EmailLog.objects.update(status="sent", pending=None)
        cursor.execute("ANALYZE epica_mail_emaillog")
    for _ in range(50):
        queue_mail()
    plans: list[str] = []

    def explain(execute, sql, params, many, context):
        if "picked" in sql and not sql.startswith("EXPLAIN"):
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {sql}", params)
                plans.append("\n".join(line for (line,) in cursor.fetchall()))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        assert len(take()) == 10
    (plan,) = plans
    assert "epica_mail_give_up" not in plan


def test_a_paused_queue_is_no_matter_of_the_rows(smtp, queue_mail) -> None:
    """Which lanes may go is decided by the claim, in one place."""
    queue_mail()
    outbox.pause(queue="emails")
    assert len(take()) == 1
