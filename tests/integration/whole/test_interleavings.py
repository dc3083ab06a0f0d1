"""Moves that interleave: each test is one order of events that once lost or doubled mail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import (
    DatabaseError,
    Error,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import clock, lifecycle, maintenance, outbox
from django_epica_mail.broker import doorbell
from django_epica_mail.broker.publisher import Busy
from django_epica_mail.delivery import claim, gates, worker
from django_epica_mail.delivery import settle as settling
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import Settler, settle
from django_epica_mail.exceptions import is_passing
from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailAttachment,
    EmailEvent,
    EmailLog,
    EmailQuerySet,
)
from django_epica_mail.privacy import person as persons
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.queueing import dequeue
from django_epica_mail.retry import Decision, Failure, Kind, Result
from django_epica_mail.tracking import events

PUBLISH = doorbell._publish
ACCEPTED = Result(code=250, seconds=0.1)
REFUSED = Result(failure=Failure(kind=Kind.PERMANENT, code=550, reply="No."), seconds=0.1)


def claimed(count: int = 1) -> Batch:
    batch = claim.claim("emails")
    assert batch is not None
    assert len(batch.mails) == count
    return batch


def succeeded(batch: Batch) -> list[Outcome]:
    decision = Decision(moves=(lifecycle.SUCCEED,))
    return [Outcome(mail.row, ACCEPTED, decision) for mail in batch.mails]


def failed(batch: Batch) -> list[Outcome]:
    decision = Decision(moves=(lifecycle.GIVE_UP,), failure=REFUSED.failure)
    return [Outcome(mail.row, REFUSED, decision) for mail in batch.mails]


def settled(batch: Batch, outcomes: list[Outcome]) -> list[Outcome]:
    return settle(outcomes, using=batch.using)


# A claim that is lost.


def test_losing_one_row_ends_what_the_worker_holds(
    smtp, queue_mail, travel, epica_mail, monkeypatch
) -> None:
    """The database's clock steps ahead while a worker sends what it has claimed."""
    epica_mail(BATCH_SIZE=5)
    for _ in range(12):
        queue_mail(on_unknown="resend")
    real = Settler.settle_and
    held = set[Any]()

    def step_ahead(self: Settler, claiming: Any) -> Any:
        if len(smtp.accepted) == 5 and not held:
            travel(minutes=5)
            maintenance.rescue()
            travel(minutes=60)
            while batch := claim.claim("emails"):  # another worker takes all there is
                held.update(mail.row.pk for mail in batch.mails)
        return real(self, claiming)

    monkeypatch.setattr(Settler, "settle_and", step_ahead)
    worker.deliver("emails")
    assert len(smtp.accepted) == 5
    assert len(held) == 12, "those sent were in doubt, and may be sent once more"
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sending"}


def test_a_deleted_row_does_not_lose_the_outcomes_beside_it(smtp, queue_mail) -> None:
    gone, kept = queue_mail(), queue_mail()
    batch = claimed(2)
    EmailLog.objects.delete_with_content([gone.pk])
    moved = settled(batch, succeeded(batch))
    assert [outcome.mail.pk for outcome in moved] == [kept.pk]
    assert EmailLog.objects.get().status == "sent"
    assert DeliveryAttempt.objects.get().email_id == kept.pk


@pytest.mark.django_db(transaction=True)
def test_an_outcome_that_cannot_be_stored_does_not_lose_the_others(
    smtp, queue_mail, monkeypatch
) -> None:
    bad, good = queue_mail(), queue_mail()
    batch = claimed(2)
    real = settling.settle

    def fail_for_one(outcomes: Any, **options: Any) -> list[Outcome]:
        if any(outcome.mail.pk == bad.pk for outcome in outcomes):
            raise DatabaseError("value too long")
        return real(outcomes, **options)

    monkeypatch.setattr(settling, "settle", fail_for_one)
    settler = Settler(batch.using)
    for outcome in succeeded(batch):
        settler.add(outcome)
    settler.flush()
    assert EmailLog.objects.get(pk=good.pk).status == "sent"
    assert not settler.holds_claims


def test_known_answers_survive_a_breaker_that_cannot_be_written(
    smtp, queue_mail, monkeypatch
) -> None:
    """Two attempts end together; the first reports an outage, and the gate's write fails."""
    queue_mail(), queue_mail()
    run = worker._Run(claimed(2))
    outage = Result(failure=Failure(kind=Kind.OUTAGE, reply="down"), seconds=0.1)
    first, second = succeeded(run._batch)
    decision = Decision(moves=(lifecycle.POSTPONE,), failure=outage.failure)

    def fail(*args: Any, **options: Any) -> None:
        raise DatabaseError("the gate is locked")

    monkeypatch.setattr(gates, "trip", fail)
    with pytest.raises(DatabaseError):
        run._note([Outcome(first.mail, outage, decision), second])
    run._settler.flush()
    assert EmailLog.objects.get(pk=second.mail.pk).status == "sent"


def read_only() -> None:
    """Write in a read-only transaction, as after a switch-over."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        EmailLog.objects.update(worker="x")


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor != 'postgresql'")
def test_a_read_only_server_is_waited_for() -> None:
    with pytest.raises(Error) as caught:
        read_only()
    assert is_passing(caught.value)
    tries = [read_only, lambda: None]
    retry_on_database_errors(lambda: tries.pop(0)(), until=1e12, using="default")
    assert tries == []


# Knowledge that comes late.


@pytest.mark.parametrize("on_unknown", ["resend", "fail"])
def test_a_late_success_counts_until_another_worker_claims(
    smtp, queue_mail, travel, on_unknown
) -> None:
    queue_mail(on_unknown=on_unknown)
    batch = claimed()
    travel(minutes=5)
    maintenance.rescue()
    (outcome,) = settled(batch, succeeded(batch))
    assert outcome.decision.moves == (lifecycle.CONFIRM,)
    assert EmailLog.objects.get().status == "sent"


def test_a_late_refusal_decides_held_mail(smtp, queue_mail, travel) -> None:
    queue_mail(on_unknown="hold")
    batch = claimed()
    travel(minutes=5)
    maintenance.rescue()
    assert EmailLog.objects.get().status == "unknown"
    (outcome,) = settled(batch, failed(batch))
    assert outcome.decision.moves == (lifecycle.WRITE_OFF,)
    log = EmailLog.objects.get()
    assert (log.status, log.failure_code) == ("failed", 550)


@pytest.mark.parametrize(("policy", "tries"), [("hold", 0), ("resend", 1)])
def test_a_late_outage_gives_back_the_try_for_which_nothing_was_resent(
    smtp, queue_mail, travel, policy: str, tries: int
) -> None:
    """An outage uses up no try; the rescue took the worker for dead, which does."""
    queue_mail(on_unknown=policy)
    batch = claimed()
    travel(minutes=5)
    maintenance.rescue()
    failure = Failure(kind=Kind.OUTAGE, reply="down")
    decision = Decision(moves=(lifecycle.POSTPONE,), failure=failure, uses_try=False)
    result = Result(failure=failure, seconds=0.1)
    assert len(settled(batch, [Outcome(batch.mails[0].row, result, decision)])) == 1
    log = EmailLog.objects.get()
    assert (log.status, log.failure_kind, log.tries) == ("retrying", "outage", tries)


def test_a_repeated_settle_reports_what_it_has_moved(smtp, queue_mail) -> None:
    """The reply to the first commit was lost."""
    queue_mail()
    batch = claimed()
    assert len(settled(batch, failed(batch))) == 1
    assert len(settled(batch, failed(batch))) == 1
    assert DeliveryAttempt.objects.count() == 1


@pytest.mark.parametrize("told", ["before the release", "after the release"])
def test_a_mail_known_to_have_arrived_is_not_sent_again(
    smtp, queue_mail, travel, told: str
) -> None:
    """Unknown, retried, claimed, and released because the batch was stopped."""
    log = queue_mail(on_unknown="resend")
    claimed()
    travel(minutes=5)
    maintenance.rescue()
    batch = claimed()
    if told == "before the release":
        events.record(delivered(log))
    Settler(batch.using).release([mail.row for mail in batch.mails])
    if told == "after the release":
        assert EmailLog.objects.get().status == "queued"
        events.record(delivered(log))
    assert EmailLog.objects.get().status == "sent"
    assert worker.deliver("emails") == 0


def test_a_mail_known_to_have_arrived_is_not_sent_again_after_a_limit_refused_it(
    smtp, queue_mail, travel
) -> None:
    """The proof comes while a worker holds the mail, which a rate limit then refuses."""
    log = queue_mail(on_unknown="resend")
    claimed()
    travel(minutes=5)
    maintenance.rescue()
    batch = claimed()
    events.record(delivered(log))
    settler = Settler(batch.using)
    settler.add(Outcome(batch.mails[0].row, None, Decision(moves=(lifecycle.RELEASE,))))
    settler.flush()
    assert EmailLog.objects.get().status == "sent"
    assert worker.deliver("emails") == 0


@pytest.mark.parametrize("on_unknown", ["hold", "resend", "fail"])
def test_proof_for_one_recipient_does_not_lose_another(
    smtp, queue_mail, deliver, travel, on_unknown
) -> None:
    """The server takes a, refuses b for now, and its reply to the content is lost."""
    log = queue_mail("a@example.com", "b@example.com", on_unknown=on_unknown)
    smtp.inject(refuse("rcpt", 450, times=1, recipient=lambda it: it.startswith("b")))
    smtp.inject(drop("content", accepted=True, times=1))
    deliver()
    events.record(delivered(log, "a@example.com"))
    travel(minutes=6)
    deliver()
    assert [message.recipients for message in smtp.accepted] == [
        ("a@example.com",),
        ("b@example.com",),
    ]
    log.refresh_from_db()
    assert log.status == "sent"


def test_proof_for_one_recipient_covers_all_that_were_not_refused(
    smtp, queue_mail, deliver
) -> None:
    log = queue_mail("a@example.com", "b@example.com", on_unknown="hold")
    smtp.inject(drop("content", accepted=True, times=1))
    deliver()
    events.record(delivered(log, "a@example.com"))
    log.refresh_from_db()
    assert log.status == "sent"


def delivered(log: EmailLog, address: str = "to@example.com") -> EmailEvent:
    return EmailEvent(
        email_id=log.pk,
        key="1",
        kind=EmailEvent.Kind.DELIVERED,
        at=timezone.now(),
        created_at=clock.now(),
        source="provider",
        address=address,
    )


# Moves between a SELECT and what follows it.


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act once, just before the next move."""
    real = EmailQuerySet.move
    left = [act]

    def move(rows: EmailQuerySet, *args: Any, **options: Any) -> int:
        if left:
            left.pop()()
        return real(rows, *args, **options)

    monkeypatch.setattr(EmailQuerySet, "move", move)


def test_retry_does_not_override_a_cancellation(smtp, queue_mail, deliver, monkeypatch) -> None:
    log = queue_mail()
    EmailLog.objects.update(
        status="failed", pending=None, failure_kind="transient", finished_at=clock.now()
    )

    def requeue_and_cancel() -> None:
        outbox.requeue([log.pk])
        assert outbox.cancel([log.pk]).cancelled == [log.pk]

    between(monkeypatch, requeue_and_cancel)
    assert maintenance.retry_failed() == 0
    assert EmailLog.objects.get().status == "cancelled"


def test_proof_is_believed_although_the_mail_is_resent_meanwhile(
    smtp, queue_mail, deliver, monkeypatch
) -> None:
    """A person, or the policy, decides between the reading of the mail and its move."""
    log = queue_mail(on_unknown="hold")
    smtp.inject(drop("content", accepted=True, times=1))
    deliver()
    between(monkeypatch, lambda: outbox.decide([log.pk], "resend"))
    events.record(delivered(log))
    log.refresh_from_db()
    assert log.status == "sent"
    deliver()
    assert len(smtp.accepted) == 1


def test_giving_up_takes_no_mail_from_a_worker(smtp, queue_mail, travel, monkeypatch) -> None:
    queue_mail()
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default")
    travel(hours=73)

    def claim_it() -> None:
        EmailLog.objects.update(status="sending", pending=None, lease_until=clock.now(60))

    between(monkeypatch, claim_it)
    assert maintenance.give_up_overdue() == 0
    assert EmailLog.objects.get().status == "sending"


def test_the_clean_up_deletes_no_requeued_mail(smtp, queue_mail, deliver, travel, monkeypatch):
    smtp.inject(refuse("rcpt", 550))
    log = queue_mail()
    deliver()
    travel(days=31)
    real = EmailQuerySet.lock_ids

    def requeue_first(rows: EmailQuerySet, size: int) -> Any:
        monkeypatch.setattr(EmailQuerySet, "lock_ids", real)
        outbox.requeue([log.pk])
        return real(rows, size)

    monkeypatch.setattr(EmailQuerySet, "lock_ids", requeue_first)
    assert maintenance.cleanup() == 0
    log.refresh_from_db()
    assert (log.status, bool(log.envelope)) == ("queued", True)


def test_erasing_does_not_empty_a_requeued_mail(smtp, queue_mail, deliver, monkeypatch) -> None:
    """A person requeues the mail after it was found and before it is erased."""
    smtp.inject(refuse("rcpt", 550))
    log = queue_mail("a@example.com", "b@example.com")
    deliver()
    real = persons.find

    def find_and_requeue(*args: Any) -> Any:
        found = list(real(*args))
        outbox.requeue([log.pk])
        EmailLog.objects.update(status="sending", pending=None, lease_until=clock.now(60))
        return found

    monkeypatch.setattr(persons, "find", find_and_requeue)
    report = erase(Person("a@example.com"))
    log.refresh_from_db()
    assert log.envelope
    assert report["left"] == [str(log.pk)]


# Rows that cannot be changed.


def test_one_unreadable_attachment_does_not_block_the_others(
    smtp, queue_mail, deliver, monkeypatch
) -> None:
    message = EmailMessage("Bad", "Body", None, ["bad@example.com"])
    message.attach("a.bin", b"x" * 10, "application/octet-stream")
    bad = outbox.enqueue(message, transport="smtp")
    others = [queue_mail() for _ in range(5)]
    monkeypatch.setattr(
        "django_epica_mail.delivery.prepare.EmailAttachment.objects.using", unreadable_blobs
    )
    deliver()
    bad.refresh_from_db()
    assert (bad.status, bad.failure_kind) == ("retrying", "transient")
    assert {log.status for log in EmailLog.objects.filter(pk__in=[it.pk for it in others])} == {
        "sent"
    }


def unreadable_blobs(using: str) -> Any:
    class Rows:
        def in_bulk(self, ids: object) -> Any:
            raise DatabaseError("could not read block 7")

        def filter(self, **_: object) -> Rows:
            return self

        def delete(self) -> None:
            """Delete nothing."""

    return Rows()


def test_failover_skips_what_cannot_move_and_moves_nothing_back(
    smtp, queue_mail, settings, epica_mail, monkeypatch
) -> None:
    monkeypatch.setattr(gates, "_CHUNK", 2)
    epica_mail(ROUTES=[{"transport": ["smtp", "second", "third"]}])
    for _ in range(5):
        queue_mail()
    EmailLog.objects.update(fallbacks=["third"])
    movable = [queue_mail() for _ in range(3)]
    EmailLog.objects.filter(pk__in=[log.pk for log in movable]).update(fallbacks=["second"])
    monkeypatch.setattr(gates.transports, "aliases", lambda: ("smtp", "second", "third"))
    down = Failure(kind=Kind.OUTAGE, reply="down")
    gates.trip("smtp", down, "default")
    gates.trip("third", down, "default")
    DeliveryGate.objects.update(open_until=clock.now(-1))  # both are due for a probe
    assert gates.reroute("smtp", "default") == 3
    assert gates.reroute("third", "default") == 0
    assert EmailLog.objects.filter(transport="second").count() == 3


@pytest.mark.parametrize("name", ["second", "zwölf%"])
def test_a_backlog_that_no_usable_transport_may_take_is_not_read(
    smtp, queue_mail, settings, epica_mail, monkeypatch, name: str
) -> None:
    """Two transports are out of order, a third is not: each sweep read all that waited."""
    epica_mail(ROUTES=[{"transport": ["smtp", name]}])
    for _ in range(3):
        queue_mail()
    EmailLog.objects.update(fallbacks=[name])
    monkeypatch.setattr(gates.transports, "aliases", lambda: ("smtp", name, "third"))
    for alias in ("smtp", name):
        gates.trip(alias, Failure(kind=Kind.OUTAGE, reply="down"), "default")
    read = []
    move = gates._move_to_fallback

    def note(mails: list[EmailLog], *args: Any) -> int:
        read.append(len(mails))
        return move(mails, *args)

    monkeypatch.setattr(gates, "_move_to_fallback", note)
    assert (gates.reroute("smtp", "default"), read) == (0, [])
    gates.reset(name, "default")
    assert (gates.reroute("smtp", "default"), read) == (3, [3])


def test_a_row_changed_by_hand_does_not_stop_the_sweep(smtp, queue_mail, travel) -> None:
    stuck, overdue = queue_mail(), queue_mail()
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default")
    EmailLog.objects.filter(pk=stuck.pk).update(status="sent")  # and still pending
    travel(hours=73)
    assert maintenance.give_up_overdue() == 1
    overdue.refresh_from_db()
    assert overdue.status == "failed"


def test_a_probe_that_finds_no_mail_is_returned(smtp, queue_mail, monkeypatch) -> None:
    queue_mail()
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default")
    DeliveryGate.objects.update(open_until=clock.now(-1))
    monkeypatch.setattr(dequeue, "take", lambda *args, **options: [])
    assert claim.claim("emails") is None
    assert gates.take_probe("smtp", "default")


def test_a_busy_pool_of_producers_is_no_dead_broker(monkeypatch, settings) -> None:
    class BusyPublisher:
        def publish(self, send: object) -> None:
            raise Busy

    bell = doorbell._Bell()
    monkeypatch.setattr(doorbell, "_bell", bell)
    monkeypatch.setattr(doorbell, "_publisher", lambda app: BusyPublisher())
    assert PUBLISH(doorbell.app_or_default(), "emails") is False
    assert bell.silent_until == 0


# A shared attachment.


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("not connection.features.has_select_for_update")
def test_the_last_two_users_of_an_attachment_delete_it(smtp) -> None:
    """Two transactions delete the last two links of an attachment at the same time."""
    messages = []
    for name in ("a", "b"):
        message = EmailMessage("Shared", "Body", None, [f"{name}@example.com"])
        message.attach("a.bin", b"x" * 10, "application/octet-stream")
        messages.append(message)
    outbox.enqueue_many(messages, transport="smtp")
    ids = list(EmailLog.objects.order_by("pk").values_list("pk", flat=True))
    both_deleted, failures = threading.Barrier(2, timeout=10), []

    def forget(pk: Any) -> None:
        try:
            with transaction.atomic():
                EmailLog.objects.select_for_update().get(pk=pk)
                both_deleted.wait()
                EmailLog.objects.forget_content([pk])
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=forget, args=(pk,)) for pk in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not EmailAttachment.objects.exists()


def test_the_clean_up_sweeps_orphaned_attachments(db, travel, monkeypatch) -> None:
    old = EmailAttachment(digest="0" * 64, mimetype="text/plain", size=1, content=b"x")
    old.pk = clock.lowest_id_at(timezone.now() - clock.timedelta(days=2))
    old.save(force_insert=True)
    EmailAttachment.objects.create(digest="1" * 64, mimetype="text/plain", size=1, content=b"y")
    maintenance.cleanup()
    assert [row.digest[0] for row in EmailAttachment.objects.all()] == ["1"]


# A settle together with the next claim.


def test_a_mail_whose_outcome_is_known_is_not_claimed_again(smtp, queue_mail, travel) -> None:
    """The lease ends and the sweep makes the mail due, before the worker settles and claims."""
    for _ in range(3):
        queue_mail()
    batch = claimed(3)
    travel(minutes=5)
    assert maintenance.rescue() == 3
    settler = Settler(batch.using)
    for outcome in succeeded(batch):
        settler.add(outcome)
    assert settler.settle_and(claim.Claiming("emails", "default")) is None
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_fails_costs_no_outcome(smtp, queue_mail, monkeypatch) -> None:
    for _ in range(4):
        queue_mail()
    batch = claim.claim_one(EmailLog.objects.first().pk)
    assert batch is not None
    monkeypatch.setattr("django_epica_mail.delivery.settle.PATIENCE", 0.1)

    def fail(*args: Any, **options: Any) -> Any:
        raise OperationalError("canceling statement due to statement timeout")

    monkeypatch.setattr(dequeue, "take", fail)
    monkeypatch.setattr(dequeue, "settle_and_take", fail)
    settler = Settler(batch.using)
    settler.add(succeeded(batch)[0])
    with pytest.raises(OperationalError):
        settler.settle_and(claim.Claiming("emails", "default"))
    assert EmailLog.objects.get(pk=batch.mails[0].row.pk).status == "sent"


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_reply_was_lost_is_found_again_with_the_age_it_has(
    smtp, queue_mail, monkeypatch
) -> None:
    queue_mail()
    claiming = claim.Claiming("emails", "default")
    first = claiming()
    again = claiming()  # as after a commit whose reply was lost
    assert first is not None
    assert again is not None
    assert [mail.row.pk for mail in again.mails] == [mail.row.pk for mail in first.mails]
    assert abs(again.claimed_at - first.claimed_at) < 0.05


def test_what_follows_a_claim_and_fails_releases_it(smtp, queue_mail, monkeypatch) -> None:
    for _ in range(3):
        queue_mail()
    batch = claim.claim_one(EmailLog.objects.order_by("due_at").first().pk)
    assert batch is not None

    def fail(*args: Any) -> None:
        raise DatabaseError("the events cannot be read")

    monkeypatch.setattr(settling, "announce", fail)
    settler = Settler(batch.using)
    settler.add(succeeded(batch)[0])
    with pytest.raises(DatabaseError):
        settler.settle_and(claim.Claiming("emails", "default"))
    assert not EmailLog.objects.filter(status="sending").exists()
