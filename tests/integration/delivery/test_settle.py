"""Settling the outcomes of a claim: whose result counts, and repeated settles."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from django.db import OperationalError

from django_epica_mail import conf, lifecycle, maintenance
from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import db_retry
from django_epica_mail.delivery import settle as settling
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import Settler, settle
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.retry import Decision, Result


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
