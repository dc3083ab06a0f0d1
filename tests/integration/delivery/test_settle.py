"""Settling the outcomes of a claim: whose result counts, and repeated settles."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from django_epica_mail import clock, conf, lifecycle, maintenance, outbox
from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import db_retry, gates
from django_epica_mail.delivery import settle as settling
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.delivery.limits import cached_reading, slowed_domains
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import Settler, settle
from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailEvent,
    EmailLog,
    SlowedDomain,
)
from django_epica_mail.retry import Decision, Failure, Kind, Result


def success(batch: Batch) -> list[Outcome]:
    decision = Decision(moves=(lifecycle.SUCCEED,))
    return [Outcome(mail.row, Result(code=250, seconds=0.1), decision) for mail in batch.mails]


@pytest.fixture
def batch(smtp, queue_mail) -> Batch:
    queue_mail(on_unknown="hold")
    claim = claims.claim("emails")
    assert claim is not None
    return claim


def test_settling_twice_changes_nothing(batch) -> None:
    for _ in range(2):
        assert len(settle(success(batch), using=batch.using)) == 1
    log = EmailLog.objects.get()
    assert (log.status, log.attempts) == ("sent", 1)
    assert DeliveryAttempt.objects.count() == 1


def test_a_late_result_decides_unknown_mail(batch, travel) -> None:
    travel(minutes=5)
    assert maintenance.rescue() == 1
    assert EmailLog.objects.get().status == "unknown"
    assert len(settle(success(batch), using=batch.using)) == 1
    assert EmailLog.objects.get().status == "sent"


def test_a_late_result_replaces_what_the_rescue_took_for_the_attempts_end(batch, travel) -> None:
    travel(minutes=5)
    maintenance.rescue()
    assert DeliveryAttempt.objects.get().failure_kind == "worker_lost"
    (outcome,) = success(batch)
    late = Result(code=250, reply="OK", seconds=0.1, provider_id="p-1")
    event = EmailEvent(provider_id="p-1", key="k", kind="delivered", address="to@example.com")
    event.at = event.created_at = clock.now()
    event.save()
    settler = Settler(batch.using)
    settler.add(replace(outcome, result=late))
    settler.flush()
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.number, attempt.failure_kind, attempt.code) == (1, "", 250)
    assert (attempt.seconds, attempt.reply, attempt.provider_id) == (0.1, "OK", "p-1")
    assert EmailEvent.objects.get().email == EmailLog.objects.get(), "it came before its mail"


def test_mail_of_a_late_refusal_is_in_doubt_no_longer(batch, travel) -> None:
    travel(minutes=5)
    maintenance.rescue()
    refusal = Failure(kind=Kind.TRANSIENT, code=451, reply="4.3.0 Later")
    decision = Decision(moves=(lifecycle.POSTPONE,), failure=refusal)
    late = Outcome(batch.mails[0].row, Result(failure=refusal, seconds=0.1), decision)
    assert not EmailLog.objects.surely_not_accepted().exists()
    assert len(settle([late], using=batch.using)) == 1
    assert EmailLog.objects.surely_not_accepted().get().status == "retrying"


def test_the_result_of_a_replaced_worker_is_ignored(batch, travel, smtp) -> None:
    EmailLog.objects.update(on_unknown="resend")
    for mail in batch.mails:
        mail.row.on_unknown = "resend"
    travel(minutes=5)
    maintenance.rescue()
    second = claims.claim("emails")
    assert second is not None
    assert settle(success(batch), using=batch.using) == []
    log = EmailLog.objects.get()
    assert (log.status, log.lease_token) == ("sending", second.token)


def _decided_to_resend(pk: UUID) -> None:
    assert outbox.decide([pk], "resend") == 1


def _requeued(pk: UUID) -> None:
    assert outbox.requeue([pk]) == 1


def _written_off(pk: UUID) -> None:
    assert outbox.decide([pk], "write_off") == 1


def _cancelled(pk: UUID) -> None:
    assert outbox.cancel([pk]).cancelled == [pk]


def _claimed_and_released(pk: UUID) -> None:
    _requeued(pk)
    taken = claims.claim("emails")
    assert taken is not None
    Settler(taken.using).release([mail.row for mail in taken.mails])


@pytest.mark.parametrize(
    "moved", [_decided_to_resend, _requeued, _written_off, _cancelled, _claimed_and_released]
)
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_late_success_counts_whatever_was_done_with_the_mail_but_a_second_attempt(
    batch, travel, moved: Callable[[UUID], None], earlier: int
) -> None:
    (mail,) = batch.mails
    mail.row.attempts = earlier  # with one, the outcome is not written together with others
    EmailLog.objects.update(attempts=earlier)
    travel(minutes=5)
    assert maintenance.rescue() == 1
    moved(mail.row.pk)
    for _ in range(2):  # the reply to the first commit may be lost
        assert len(settle(success(batch), using=batch.using)) == 1
    log = EmailLog.objects.get()
    assert (log.status, log.attempts, log.pending) == ("sent", earlier + 1, None)
    assert claims.claim("emails") is None
    (recipient,) = log.recipients.all()
    assert recipient.outcome in ("", "accepted")


def test_a_late_success_is_ignored_after_another_attempt_or_an_erasure(batch, travel) -> None:
    travel(minutes=5)
    assert maintenance.rescue() == 1
    (mail,) = batch.mails
    _requeued(mail.row.pk)
    for changed in ({"attempts": 2}, {"attempts": 1, "lease_token": None}):
        EmailLog.objects.update(**changed)
        assert settle(success(batch), using=batch.using) == []
        assert EmailLog.objects.get().status == "queued"


def test_a_settle_is_repeated_while_the_database_fails(batch, monkeypatch) -> None:
    real, failures = settling.settle, [OperationalError("gone"), OperationalError("gone")]

    def fail_twice(*args, **kwargs):
        if failures:
            raise failures.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(settling, "settle", fail_twice)
    monkeypatch.setattr(db_retry, "connections", _OutsideTransactions())
    settler = Settler(batch.using)
    for outcome in success(batch):
        settler.add(outcome)
    settler.flush()
    assert settler.settled == 1
    assert EmailLog.objects.get().status == "sent"


@pytest.mark.django_db(transaction=True)
def test_a_claim_in_the_transaction_of_a_settle_uses_the_reading_before_it(
    smtp, queue_mail, monkeypatch, django_assert_num_queries
) -> None:
    monkeypatch.setattr(cached_reading, "KEPT_SECONDS", 60.0)
    gates.forget()
    slowed_domains.forget()
    for _ in range(2):
        queue_mail()
    settler, starts = Settler("default"), claims.ScanStarts()
    refused = Failure(kind=Kind.PERMANENT, code=550)
    decision = Decision(moves=(lifecycle.GIVE_UP,), failure=refused)
    batch = settler.settle_and(claims.Claiming("emails", "default", limit=1, starts=starts))
    assert batch is not None
    settler.add(Outcome(batch.mails[0].row, Result(failure=refused, seconds=0.1), decision))
    with CaptureQueriesContext(connection) as queries:
        following = settler.settle_and(claims.Claiming("emails", "default", starts=starts))
    assert following is not None
    tables = [model._meta.db_table for model in (DeliveryGate, SlowedDomain)]
    assert [it["sql"] for it in queries if any(name in it["sql"] for name in tables)] == []


class _OutsideTransactions:
    """Connections outside a transaction, like a worker's; a test's are inside one."""

    in_atomic_block = False

    def __getitem__(self, alias: str) -> _OutsideTransactions:
        return self

    def close(self) -> None:
        """Keep the connection open, for the test's transaction."""


def test_a_settle_that_keeps_failing_raises_after_some_time(batch, monkeypatch) -> None:
    started = time.monotonic()
    times = [started]

    def fail(*args, **kwargs):
        raise OperationalError("gone")

    def sleep(seconds: float) -> None:
        times.append(times[-1] + seconds)

    monkeypatch.setattr(settling, "settle", fail)
    monkeypatch.setattr(db_retry, "connections", _OutsideTransactions())
    clock = SimpleNamespace(monotonic=lambda: times[-1], sleep=sleep)
    monkeypatch.setattr(db_retry, "time", clock)
    settler = Settler(batch.using)
    for outcome in success(batch):
        settler.add(outcome)
    with pytest.raises(OperationalError):
        settler.flush()
    patience = conf.get().settle_patience
    assert patience > conf.get().lease_seconds
    assert patience - 1.5 <= times[-1] - started < patience + 1
