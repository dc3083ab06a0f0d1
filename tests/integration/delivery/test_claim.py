"""Which mail a worker claims, in which order, and which it leaves."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from itertools import chain

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from django_epica_mail import outbox
from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.settle import Settler
from django_epica_mail.models import EmailLog


def claimed(queue: str = "emails") -> list[list[object]]:
    batches = []
    while (batch := claims.claim(queue)) is not None:
        batches.append([mail.row.pk for mail in batch.mails])
    return batches


def test_mail_is_claimed_by_priority_then_age(smtp, queue_mail) -> None:
    low, first = queue_mail(priority="low"), queue_mail(priority="urgent")
    normal, second = queue_mail(priority=3), queue_mail(priority=9)
    in_order = [first.pk, second.pk, normal.pk, low.pk]
    assert list(chain.from_iterable(claimed())) == in_order


def test_a_claim_takes_at_most_one_batch(smtp, queue_mail, epica_mail) -> None:
    epica_mail(BATCH_SIZE=2)
    ids = [queue_mail().pk for _ in range(5)]
    assert claimed() == [ids[:2], ids[2:4], ids[4:]]


def test_mail_of_other_queues_and_unknown_transports_waits(smtp, queue_mail) -> None:
    queue_mail(transport="gone")
    queue_mail(queue="bulk_emails")
    assert claimed() == []


def test_paused_queues_and_transports_are_skipped(smtp, queue_mail) -> None:
    log = queue_mail()
    outbox.pause(queue="emails")
    assert claimed() == []
    outbox.resume(queue="emails")
    outbox.pause(transport="smtp")
    assert claimed() == []
    outbox.resume(transport="smtp")
    assert claimed() == [[log.pk]]


def test_pausing_needs_a_queue_or_a_transport() -> None:
    with pytest.raises(ValueError, match="only one"):
        gates.set_paused(True)


def test_a_mail_whose_worker_died_is_claimed_alone(smtp, queue_mail) -> None:
    logs = [queue_mail() for _ in range(4)]
    suspects = [logs[0].pk, logs[2].pk]
    EmailLog.objects.filter(pk__in=suspects).update(failure_kind="worker_lost")
    assert claimed() == [[log.pk] for log in logs]


def test_a_row_changed_by_hand_is_not_claimed_and_blocks_no_other(
    smtp, queue_mail, monkeypatch
) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.2)
    changed, low = queue_mail(), queue_mail(priority="low")
    EmailLog.objects.filter(pk=changed.pk).update(status="sent")
    assert claimed() == [[low.pk]]


def test_a_claim_is_a_lease_that_names_the_worker(smtp, queue_mail) -> None:
    log = queue_mail()
    batch = claims.claim("emails")
    log.refresh_from_db()
    assert log.status == "sending"
    assert log.pending is None
    assert log.lease_token == batch.token
    assert log.lease_until is not None
    assert log.worker == claims.worker_name()


@pytest.mark.django_db(transaction=True)
def test_rows_are_locked_between_reading_and_claiming_them(smtp, queue_mail) -> None:
    """Another worker could otherwise claim, attempt and postpone a mail in between.

    This claim would then send it too early, under the number of the other's attempt, and without
    knowing which recipients had accepted it.
    """
    queue_mail()
    with CaptureQueriesContext(connection) as queries:
        claims.claim("emails")
    statements = [query["sql"].split(maxsplit=1)[0] for query in queries]
    if connection.vendor == "postgresql":
        assert statements[2:] == ["WITH"], "one statement after the gates and the slowed domains"
        assert "FOR NO KEY UPDATE SKIP LOCKED" in queries[-1]["sql"]
        return
    begin = max(index for index, word in enumerate(statements) if word == "BEGIN")
    claim = statements[begin + 1 : statements.index("COMMIT", begin)]
    if connection.vendor == "sqlite":
        # SQLite locks no rows, but allows one writer from a transaction's first write on.
        assert claim == ["UPDATE", "SELECT", "UPDATE"]
    else:
        assert claim == ["SELECT", "UPDATE"]
        assert "FOR " in queries[begin + 1]["sql"]


@pytest.mark.django_db(transaction=True)
def test_many_workers_never_take_the_same_mail(smtp, queue_mail, epica_mail) -> None:
    epica_mail(BATCH_SIZE=7)
    ids = {queue_mail().pk for _ in range(100)}
    taken: list[object] = []

    def work() -> None:
        for batch in claimed():
            taken.extend(batch)
        connections.close_all()

    if connection.vendor == "sqlite":
        # In memory, it belongs to one thread; the acceptance tests use a file and processes.
        taken += [pk for batch in claimed() for pk in batch]
    else:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(taken) == len(ids)
    assert set(taken) == ids


def test_a_spent_budget_claims_nothing_that_became_due_meanwhile(
    smtp, queue_mail, monkeypatch
) -> None:
    """The head was looked for before the mail came, so that nothing was known to be refused."""
    queue_mail()
    monkeypatch.setattr(claims.rate_limits, "allowance", lambda alias: 0)
    monkeypatch.setattr(claims.waiting, "head_cost", lambda *lane: 0)
    assert claims.claim("emails") is None
    assert EmailLog.objects.get().status == "queued"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("part", ["together", "one", "beside a settle"])
def test_what_fails_after_mail_was_taken_leaves_none_of_it_in_doubt(
    smtp, queue_mail, monkeypatch, part
) -> None:
    ids = [queue_mail().pk for _ in range(3)]

    def fail(*args: object, **options: object) -> None:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(claims, "batch_of", fail)
    settle_and = Settler("default").settle_and
    take = {
        "one": lambda: claims.claim_one(ids[0]),
        "together": lambda: claims.claim("emails"),
        "beside a settle": lambda: settle_and(claims.Claiming("emails", "default")),
    }[part]
    with pytest.raises(OverflowError):
        take()
    assert set(EmailLog.objects.values_list("status", "lease_until")) == {("queued", None)}
    assert EmailLog.objects.filter(pending=None).count() == 0
    monkeypatch.undo()
    assert claimed() == [ids]


def test_a_due_time_that_was_never_set_by_a_site_stops_no_claim(smtp, queue_mail, deliver) -> None:
    hurt, other = queue_mail(), queue_mail()
    EmailLog.objects.filter(pk=hurt.pk).update(due_at=datetime(2, 1, 1, tzinfo=timezone.utc))
    assert deliver() == 2
    other.refresh_from_db()
    assert other.status == "sent"
