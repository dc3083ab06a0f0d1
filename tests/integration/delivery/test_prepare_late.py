"""A mail that takes longer to prepare than its lease allows neither loops nor holds up others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_epica_mail import conf, signals
from django_epica_mail.delivery.batch import Batch, ClaimedMail
from django_epica_mail.delivery.outcome import Attempt, Envelope
from django_epica_mail.delivery.prepare import MessageLoader, too_late
from django_epica_mail.exceptions import Veto
from django_epica_mail.models import DeliveryAttempt, EmailLog

pytestmark = pytest.mark.django_db
SPARE = 1.0
OTHERS = [f"{number}@example.com" for number in range(3)]


@pytest.fixture(autouse=True)
def spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a second to prepare a mail, instead of four."""
    monkeypatch.setattr(conf, "BEGIN_SECONDS", SPARE / 2)
    monkeypatch.setattr(conf, "_SETTLE_SECONDS", SPARE / 2)


@pytest.fixture
def receive() -> Iterator[Callable[[Callable[[EmailLog], None]], None]]:
    """Connect a receiver of ``before_send`` until the end of the test."""
    connected: list[Any] = []

    def connect(receiver: Callable[[EmailLog], None]) -> None:
        def wrapped(email: EmailLog, **_: Any) -> None:
            receiver(email)

        connected.append(wrapped)
        signals.before_send.connect(wrapped)

    yield connect
    for wrapped in connected:
        signals.before_send.disconnect(wrapped)


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ConnectionError("The API is down."), ("retrying", "transient", 1)),
        (Veto("over the budget"), ("suppressed", "vetoed", 0)),
    ],
    ids=["fails", "vetoes"],
)
def test_what_a_slow_receiver_decides_holds(smtp, queue_mail, deliver, receive, error, end) -> None:
    slow = queue_mail("slow@example.com")
    for address in OTHERS:
        queue_mail(address)
    calls: list[str] = []

    def fail(email: EmailLog) -> None:
        if email.pk == slow.pk:
            calls.append("")
            time.sleep(SPARE + 0.1)
            raise error

    receive(fail)
    assert deliver() == 4
    slow.refresh_from_db()
    assert (slow.status, slow.failure_kind, slow.tries) == end
    assert str(error) in slow.reply
    assert len(calls) == 1
    assert EmailLog.objects.filter(status="sent").count() == len(smtp.accepted) == 3


def test_a_mail_ready_too_late_is_postponed_and_says_what_was_slow(
    smtp, queue_mail, deliver, receive, epica_mail, caplog
) -> None:
    epica_mail(MAX_RETRIES=0)
    slow = queue_mail("slow@example.com")
    for address in OTHERS:
        queue_mail(address)

    def wait(email: EmailLog) -> None:
        if email.pk == slow.pk:
            time.sleep(SPARE + 0.1)

    receive(wait)
    assert deliver() == 4
    slow.refresh_from_db()
    assert (slow.status, slow.failure_kind, slow.tries) == ("failed", "transient", 1)
    assert "the receivers of before_send 1.1 s" in slow.reply
    assert "must be within 1.0 s" in slow.reply
    attempt = DeliveryAttempt.objects.get(email=slow)
    assert (attempt.failure_kind, attempt.seconds) == ("transient", None)
    assert {message.recipients for message in smtp.accepted} == {(it,) for it in OTHERS}
    assert "slow@example.com" not in caplog.text
    assert str(slow.pk) in caplog.text


def test_a_mail_late_because_of_the_one_before_it_uses_no_try(
    smtp, queue_mail, deliver, receive, monkeypatch
) -> None:
    monkeypatch.setattr(conf, "_SETTLE_SECONDS", 1.5)
    first, second = queue_mail(), queue_mail()
    waits = {first.pk: [0.45], second.pk: [1.65]}

    def wait(email: EmailLog) -> None:
        if waits[email.pk]:
            time.sleep(waits[email.pk].pop())

    receive(wait)
    assert deliver() == 2
    second.refresh_from_db()
    assert (second.status, second.attempts, second.tries) == ("sent", 1, 1)
    assert len(smtp.accepted) == 2


@pytest.mark.parametrize(
    ("position", "took", "is_postponed"),
    [(0, 0.1, True), (1, SPARE - 0.1, False), (1, SPARE + 0.1, True)],
)
def test_only_a_mail_that_would_be_late_again_is_postponed(
    queue_mail, position, took, is_postponed
) -> None:
    mails = [ClaimedMail(queue_mail(), too_old=False, is_expired=False) for _ in range(2)]
    batch = Batch(transport="smtp", mails=mails, using="default", claimed_at=time.monotonic() - 3.0)
    loader = MessageLoader(batch)
    loader.took = {"building it": took}
    attempt = Attempt(mails[position], None, Envelope([0], [0]), False, {})  # type: ignore[arg-type]
    outcome = too_late(attempt, loader)
    assert (outcome is not None) is is_postponed
    if outcome is not None:
        assert outcome.target == "retrying"
        assert outcome.decision.uses_try
