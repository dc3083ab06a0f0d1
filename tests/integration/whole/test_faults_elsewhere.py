"""A fault of one part, or of another process at the same time, spares what it does not concern."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import DataError, OperationalError, connection, connections, transaction

from devservers.smtp_faults import refuse
from django_epica_mail import clock, lifecycle, maintenance, outbox, signals
from django_epica_mail.broker import result_backend
from django_epica_mail.delivery import claim, prepare
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import Settler, settle
from django_epica_mail.models import EmailLog, PendingResult, Suppression
from django_epica_mail.queueing import bulk, compose, enqueue
from django_epica_mail.queueing import draft as drafts
from django_epica_mail.retry import Decision, Failure, Kind
from django_epica_mail.routing import Options
from django_epica_mail.tracking.bounces import incoming

# A settle whose reply was lost.


@pytest.mark.parametrize(
    ("move", "failure"),
    [
        (lifecycle.EXPIRE, None),
        (lifecycle.SUPPRESS, Failure(kind=Kind.SUPPRESSED)),
        (lifecycle.RELEASE, None),
    ],
)
def test_a_repeated_settle_of_a_mail_that_was_not_sent_keeps_the_claim(
    smtp, queue_mail, move: lifecycle.Move, failure: Failure | None
) -> None:
    queue_mail()
    EmailLog.objects.update(failure_kind="transient", attempts=1)
    batch = claim.claim("emails")
    assert batch is not None
    outcome = Outcome(batch.mails[0].row, None, Decision(moves=(move,), failure=failure))
    assert settle([outcome], using=batch.using) == [outcome]
    settler = Settler(batch.using)
    settler.add(outcome)
    settler.flush()
    assert settler.holds_claims


# Too little memory.


def test_a_worker_without_memory_fails_no_mail(smtp, queue_mail, deliver, monkeypatch) -> None:
    log = queue_mail()
    real = prepare._build
    tries = iter([MemoryError()])

    def build(*args: Any) -> Any:
        if error := next(tries, None):
            raise error
        return real(*args)

    monkeypatch.setattr(prepare, "_build", build)
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("retrying", "transient")


@pytest.mark.django_db(transaction=True)
def test_a_worker_without_memory_refuses_no_entry_of_a_bulk_call(smtp, monkeypatch) -> None:
    batch = bulk.submit([{"subject": "Subject", "message": "Text", "recipient_list": ["a@b.test"]}])
    real = compose.compose
    tries = iter([MemoryError()])

    def compose_once(*args: Any) -> Any:
        if error := next(tries, None):
            raise error
        return real(*args)

    monkeypatch.setattr(compose, "compose", compose_once)
    with pytest.raises(MemoryError):
        bulk.expand(batch.pk)
    done = bulk.expand(batch.pk)
    assert (done.accepted, done.refused) == (1, [])


@pytest.mark.django_db(transaction=True)
def test_a_deadlock_after_the_settle_hides_no_move_and_no_refusal(
    smtp, queue_mail, deliver, epica_mail, monkeypatch
) -> None:
    epica_mail(SUPPRESS_REFUSED=True)
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user"))
    logs = [queue_mail(f"{letter}@example.com") for letter in "ab"]
    moved = []

    def note(sender: Any, *, email_id: Any, move: Any, **_: Any) -> None:
        moved.append(email_id)

    errors = iter([OperationalError("deadlock detected")])
    real = incoming.record_refusals

    def record(*args: Any) -> None:
        if error := next(errors, None):
            raise error
        real(*args)

    monkeypatch.setattr(incoming, "record_refusals", record)
    signals.email_moved.connect(note)
    try:
        deliver()
    finally:
        signals.email_moved.disconnect(note)
    assert moved == [log.pk for log in logs]
    assert {it.address for it in Suppression.objects.all()} == {"a@example.com", "b@example.com"}


# The sweep.


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "part", ["rescue", "give_up_overdue", "mirror_results", "_unfinished_batches"]
)
def test_a_part_of_the_sweep_that_fails_costs_no_ring(
    smtp, queue_mail, rings, monkeypatch, part: str
) -> None:
    queue_mail()
    rings.clear()

    def fail(*args: object) -> None:
        raise DataError("numeric value out of range")

    monkeypatch.setattr(maintenance, part, fail)
    with pytest.raises(DataError):
        maintenance.dispatch()
    assert rings == ["emails"]


@pytest.mark.django_db(transaction=True)
def test_a_queue_that_cannot_be_looked_at_keeps_no_other_from_its_ring(
    smtp, queue_mail, rings, monkeypatch
) -> None:
    for queue in ("large", "later"):
        queue_mail(queue=queue)
    rings.clear()
    real = maintenance.has_claimable

    def look(queue: str, using: str) -> bool:
        if queue == "large":
            raise OperationalError("canceling statement due to statement timeout")
        return real(queue, using)

    monkeypatch.setattr(maintenance, "has_claimable", look)
    with pytest.raises(OperationalError):
        maintenance.dispatch()
    assert rings == ["later"]


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_cannot_be_rescued_keeps_no_other(
    smtp, queue_mail, travel, monkeypatch
) -> None:
    for _ in range(2):
        queue_mail()
        assert claim.claim("emails") is not None
    travel(minutes=5)
    real = maintenance._rescue
    tries = iter([DataError("numeric value out of range")])

    def rescue(*args: Any) -> int:
        if error := next(tries, None):
            raise error
        return real(*args)

    monkeypatch.setattr(maintenance, "_rescue", rescue)
    with pytest.raises(DataError):
        maintenance.rescue()
    assert EmailLog.objects.filter(status="sending").count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_sweep_stops_at_once_without_a_database(smtp, monkeypatch) -> None:
    def lose() -> None:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(connections["default"], "is_usable", lambda: False)
    monkeypatch.setattr(maintenance, "rescue", lose)
    monkeypatch.setattr(maintenance, "give_up_overdue", lambda: pytest.fail("asked once more"))
    with pytest.raises(OperationalError):
        maintenance.dispatch()


# A result that is mirrored while a person queues the mail again.


@pytest.mark.parametrize("is_finished_again", [False, True])
def test_the_result_of_a_mail_queued_again_meanwhile_is_still_owed(
    smtp, queue_mail, monkeypatch, is_finished_again: bool
) -> None:
    log = queue_mail(store_result=True)
    EmailLog.objects.update(
        status="failed", pending=None, failure_kind="transient", finished_at=clock.now()
    )

    def store(*args: Any, **options: Any) -> bool:
        assert outbox.requeue([log.pk]) == 1
        if is_finished_again:
            EmailLog.objects.update(
                status="failed", pending=None, finished_at=clock.now(timedelta(seconds=1))
            )
        return True

    monkeypatch.setattr(result_backend, "store", store)
    result_backend.mirror([log.pk], "default")
    assert PendingResult.objects.filter(pk=log.pk).exists()


# Two calls with the same idempotency keys.


def keyed(*keys: str) -> list[drafts.Draft]:
    message = EmailMessage("Subject", "Body", None, ["to@example.com"])
    options = [Options(transport="smtp", idempotency_key=key) for key in keys]
    return [drafts.draft(message, it, of_celery={}) for it in options]


def run(*calls: Callable[[], object]) -> list[BaseException]:
    """Run calls at the same time, each with a connection of its own; return what they raise."""
    raised: list[BaseException] = []

    def catch(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - returned
            raised.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=catch, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("not connection.features.has_select_for_update")
def test_two_calls_with_the_same_keys_in_opposite_order_do_not_deadlock(smtp) -> None:
    keys = [f"key {number}" for number in range(400)]
    both = threading.Barrier(2, timeout=10)

    def insert(order: list[str]) -> None:
        rows = keyed(*order)
        both.wait()
        enqueue.insert_drafts(rows)

    for _ in range(3):
        assert run(lambda: insert(keys), lambda: insert(keys[::-1])) == []
        assert EmailLog.objects.count() == 400
        EmailLog.objects.all().delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor != 'mysql'")
def test_a_key_committed_since_the_transaction_began_is_found_under_repeatable_read(smtp) -> None:
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic():
            assert not EmailLog.objects.exists(), "the snapshot is taken"
            assert run(lambda: enqueue.insert_drafts(keyed("order-7"))) == []
            (found,) = enqueue.insert_drafts(keyed("order-7"))
        assert EmailLog.objects.get() == found
    finally:
        connection.close()
