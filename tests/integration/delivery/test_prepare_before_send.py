"""Receivers of ``before_send`` may veto a mail; one that fails only delays it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.mail import EmailMessage

from devservers.smtp_faults import refuse
from django_epica_mail import lifecycle, results, signals
from django_epica_mail.exceptions import DeliveryFailed, Veto
from django_epica_mail.models import DeliveryAttempt, EmailLog

pytestmark = pytest.mark.django_db
Receiver = Callable[[EmailLog, EmailMessage], None]


@pytest.fixture
def hook() -> Iterator[Callable[[Receiver], None]]:
    """Connect a receiver until the end of the test."""
    connected: list[Any] = []

    def connect(receiver: Receiver) -> None:
        def receive(sender: Any, *, email: EmailLog, message: EmailMessage, **_: Any) -> None:
            receiver(email, message)

        connected.append(receive)
        signals.before_send.connect(receive)

    yield connect
    for receive in connected:
        signals.before_send.disconnect(receive)


def test_a_veto_stops_a_mail_and_its_reason_is_stored(smtp, queue_mail, deliver, hook) -> None:
    def veto(email: EmailLog, message: EmailMessage) -> None:
        if message.subject == "Not this":
            raise Veto("over the month's budget")

    hook(veto)
    stopped = queue_mail(subject="Not this", store_result=True)
    other = queue_mail(subject="This")
    assert deliver() == 2
    stopped.refresh_from_db()
    other.refresh_from_db()
    assert (stopped.status, stopped.failure_kind) == ("suppressed", "vetoed")
    assert (stopped.reply, stopped.tries) == ("over the month's budget", 0)
    assert other.status == "sent"
    assert len(smtp.accepted) == DeliveryAttempt.objects.count() == 1
    failure = results.EmailResult(str(stopped.pk)).result
    assert (type(failure), failure.kind) == (DeliveryFailed, "vetoed")


def test_a_veto_is_reported_by_email_moved(smtp, queue_mail, deliver, hook) -> None:
    def veto(email: EmailLog, message: EmailMessage) -> None:
        raise Veto("no")

    heard: list[Any] = []

    def listen(*, move: lifecycle.Move, failure: Any, **_: Any) -> None:
        heard.append((move, failure.reply))

    hook(veto)
    signals.email_moved.connect(listen)
    try:
        queue_mail()
        deliver()
    finally:
        signals.email_moved.disconnect(listen)
    assert heard == [(lifecycle.SUPPRESS, "no")]


def test_a_failing_receiver_delays_mail_and_loses_none(
    smtp, queue_mail, deliver, hook, travel, caplog
) -> None:
    faults = [RuntimeError("of the hook")]

    def fail_once(email: EmailLog, message: EmailMessage) -> None:
        if faults:
            raise faults.pop()

    hook(fail_once)
    log = queue_mail()
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("retrying", "transient")
    assert f"failed for e-mail {log.pk}" in caplog.text
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"


def test_it_gets_the_message_to_be_sent_and_may_change_it(smtp, queue_mail, deliver, hook) -> None:
    def note(email: EmailLog, message: EmailMessage) -> None:
        message.extra_headers["X-Row"] = str(email.pk)

    hook(note)
    log = queue_mail()
    deliver()
    assert f"X-Row: {log.pk}".encode() in smtp.accepted[0].content


def test_a_veto_of_the_rest_leaves_partly_accepted_mail_sent(
    smtp, queue_mail, deliver, hook, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    log = queue_mail("later@example.com", "now@example.com")
    deliver()

    def veto(email: EmailLog, message: EmailMessage) -> None:
        raise Veto("no more")

    hook(veto)
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    assert len(smtp.accepted) == 1
    stopped, reached = log.recipients.order_by("position")
    assert (stopped.get_outcome_display(), stopped.reply) == ("suppressed", "no more")
    assert (reached.get_outcome_display(), reached.reply) == ("accepted", "")


def test_a_vetoed_mail_is_credited_with_no_attempt(smtp, queue_mail, deliver, hook, travel) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    vetoed = queue_mail("later@example.com", "now@example.com")
    deliver()

    def veto(email: EmailLog, message: EmailMessage) -> None:
        if email.pk == vetoed.pk:
            raise Veto("no more")

    hook(veto)
    travel(minutes=6)
    other = queue_mail()
    deliver()  # both outcomes in one settle
    assert dict(EmailLog.objects.values_list("pk", "attempts")) == {vetoed.pk: 1, other.pk: 1}
    assert DeliveryAttempt.objects.filter(email=other).count() == 1
