"""Pauses, and a transport's breaker with its single probe."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as dt_timezone

import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import outbox, signals
from django_epica_mail.delivery import claim, gates
from django_epica_mail.models import DeliveryAttempt, DeliveryGate, EmailLog
from django_epica_mail.retry import Failure, Kind, Scope

OUTAGE = Failure(kind=Kind.OUTAGE, code=421, reply="4.3.2 Shutting down")


@pytest.fixture
def breaker(smtp) -> DeliveryGate:
    """Return the gate of a transport that is out of order."""
    gates.trip("smtp", OUTAGE, "default")
    return DeliveryGate.objects.get(scope="transport", name="smtp")


@pytest.fixture
def heard():
    """Record the signals about transports."""
    noted: list[tuple[str, str]] = []

    def tripped(*, transport: str, **_: object) -> None:
        noted.append(("tripped", transport))

    def recovered(*, transport: str, **_: object) -> None:
        noted.append(("recovered", transport))

    signals.transport_tripped.connect(tripped)
    signals.transport_recovered.connect(recovered)
    yield noted
    signals.transport_tripped.disconnect(tripped)
    signals.transport_recovered.disconnect(recovered)


def test_without_gates_nothing_is_held_back_and_costs_one_query(
    db, django_assert_num_queries
) -> None:
    with django_assert_num_queries(1):
        state = gates.Gates("default")
        assert state.queue_is_open("emails")
        assert state.open_transports(["smtp", "ses"]) == ["smtp", "ses"]
        assert not state.needs_probe("smtp")
        assert state.reasons() == {}


def test_a_pause_affects_only_its_queue_or_transport(db) -> None:
    outbox.pause(queue="emails")
    outbox.pause(transport="smtp")
    state = gates.Gates("default")
    assert not state.queue_is_open("emails")
    assert state.queue_is_open("bulk_emails")
    assert state.open_transports(["smtp", "ses", "emails"]) == ["ses", "emails"]
    assert state.reasons() == {"queue emails": "paused", "transport smtp": "paused"}


def test_pausing_and_resuming_twice_is_harmless(db) -> None:
    for change, is_open in ((outbox.pause, False), (outbox.resume, True)):
        change(queue="emails")
        change(queue="emails")
        assert gates.Gates("default").queue_is_open("emails") is is_open
    assert DeliveryGate.objects.count() == 1


@pytest.mark.parametrize("named", [{}, {"queue": "emails", "transport": "smtp"}])
def test_one_gate_is_named_at_a_time(named) -> None:
    with pytest.raises(ValueError, match="only one of them"):
        outbox.pause(**named)


def test_a_tripped_transport_gets_no_mail_until_the_probe(breaker, queue_mail, travel) -> None:
    log = queue_mail()
    assert claim.claim("emails") is None
    travel(seconds=29)
    assert claim.claim("emails") is None
    travel(seconds=2)
    batch = claim.claim("emails")
    assert batch is not None
    assert (batch.is_probe, [mail.row.pk for mail in batch.mails]) == (True, [log.pk])


def test_only_one_worker_probes(breaker, travel) -> None:
    assert not gates.take_probe("smtp", "default"), "too early"
    travel(seconds=31)
    assert gates.take_probe("smtp", "default")
    assert not gates.take_probe("smtp", "default")
    travel(seconds=31)
    assert gates.take_probe("smtp", "default"), "the worker that probed may have died"


def test_a_probe_waits_for_a_mail_that_is_due(breaker, queue_mail, travel) -> None:
    travel(seconds=31)
    before = DeliveryGate.objects.get().open_until
    queue_mail(send_at=timezone.now() + timedelta(days=1))
    assert claim.claim("emails") is None
    assert DeliveryGate.objects.get().open_until == before


def test_other_transports_go_on(breaker, queue_mail) -> None:
    state = gates.Gates("default")
    assert state.open_transports(["smtp", "ses"]) == ["ses"]
    assert state.reasons() == {"transport smtp": "out of order: 4.3.2 Shutting down"}


def test_a_paused_transport_is_not_probed(breaker, queue_mail, travel) -> None:
    outbox.pause(transport="smtp")
    queue_mail()
    travel(seconds=31)
    assert claim.claim("emails") is None


def test_failed_probes_are_counted_until_one_succeeds(breaker, heard) -> None:
    gates.trip("smtp", OUTAGE, "default")  # in flight when the breaker opened
    gates.trip("smtp", OUTAGE, "default", is_probe=True)
    breaker.refresh_from_db()
    assert breaker.outages == 2
    gates.reset("smtp", "default")
    breaker.refresh_from_db()
    assert (breaker.outages, breaker.open_until, breaker.reason) == (0, None, "")
    gates.reset("smtp", "default")
    assert heard == [("tripped", "smtp"), ("tripped", "smtp"), ("recovered", "smtp")]


def test_a_refused_probe_shows_that_the_transport_works(
    breaker, smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 550, times=1))
    queue_mail()
    queue_mail()
    travel(seconds=31)
    assert deliver() == 2
    assert list(EmailLog.objects.order_by("id").values_list("status", flat=True)) == [
        "failed",
        "sent",
    ]
    breaker.refresh_from_db()
    assert breaker.outages == 0


def test_a_probe_that_is_not_sent_passes_to_the_next_mail(
    breaker, smtp, queue_mail, deliver, travel
) -> None:
    queue_mail(expires_at=timezone.now())
    broken = queue_mail()
    EmailLog.objects.filter(pk=broken.pk).update(envelope="{")
    queue_mail()
    queue_mail()
    travel(seconds=31)
    assert deliver() == 4
    statuses = EmailLog.objects.order_by("id").values_list("status", flat=True)
    assert list(statuses) == ["expired", "failed", "sent", "sent"]
    breaker.refresh_from_db()
    assert breaker.outages == 0


def test_an_outage_uses_no_retry_however_long_it_lasts(smtp, queue_mail, deliver, travel) -> None:
    log = queue_mail()
    smtp.refuse_connections()
    for _ in range(6):
        assert deliver() == 1
        travel(seconds=31)
    log.refresh_from_db()
    assert (log.status, log.failure_kind, log.tries) == ("retrying", "outage", 0)
    assert DeliveryAttempt.objects.count() == 6
    smtp.listen_again()
    assert deliver() == 1
    log.refresh_from_db()
    assert log.status == "sent"


def conversations(deliver, travel, *, minutes: int) -> int:
    """Return how often the server is asked while time passes and the sweep rings every 5 s."""
    for _ in range(minutes * 12):
        deliver()
        travel(seconds=5)
    return DeliveryAttempt.objects.count()


@pytest.mark.parametrize("senders", [1, 3])
def test_throttling_slows_what_is_throttled(smtp, deliver, travel, senders) -> None:
    """200 mails, and a server whose daily quota is exceeded for half an hour."""
    for number in range(200):
        sender = f"from{number % senders}@example.com"
        message = EmailMessage("S", "B", sender, [f"to{number}@example.com"])
        outbox.enqueue(message, transport="smtp")
    quota = smtp.inject(refuse("content", 454, "4.7.0 daily message quota exceeded"))
    assert conversations(deliver, travel, minutes=30) <= 25
    assert set(EmailLog.objects.values_list("tries", flat=True)) == {0}
    gate = DeliveryGate.objects.get(scope="transport", name="smtp")
    assert "quota" in gate.reason
    smtp.withdraw(quota)
    travel(minutes=10)  # a quarter of the time, at most
    deliver()
    travel(minutes=2)
    deliver()
    assert EmailLog.objects.filter(status="sent").count() == 200


def test_refused_credentials_are_tried_ever_more_rarely(db) -> None:
    refused = Failure(kind=Kind.OUTAGE, scope=Scope.CREDENTIALS, reply="535 Bad")
    for _ in range(8):  # of eight workers at once: one refusal, not eight in a row
        gates.trip("smtp", refused, "default")
    gate = DeliveryGate.objects.get()
    assert gate.outages == 1
    assert gate.open_until < timezone.now() + timedelta(seconds=31)
    pauses = [gates._pause(refused, outages) for outages in range(12)]
    assert 25 <= pauses[0] <= 30
    assert 54 <= pauses[1] <= 60
    assert 3240 <= pauses[-1] <= 3600
    down = Failure(kind=Kind.OUTAGE, scope=Scope.SERVER, reply="refused")
    assert {gates._pause(down, number) for number in range(500)} == {30}


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    asked = Failure(kind=Kind.THROTTLED, scope=Scope.SERVER, retry_after=600)
    assert 540 <= gates._pause(asked, 0) <= 600
    for_ever = Failure(kind=Kind.THROTTLED, scope=Scope.SERVER, retry_after=1e9)
    assert gates._pause(for_ever, 10**6) <= 3600


@pytest.mark.parametrize("by", ["resume", "start"])
def test_people_and_a_starting_worker_probe_at_once(smtp, queue_mail, deliver, by) -> None:
    queue_mail()
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default")
    assert deliver() == 0
    if by == "resume":
        outbox.resume(transport="smtp")
    else:
        gates.return_probes("default")
    assert deliver() == 1


FAR = datetime(9998, 12, 31, tzinfo=dt_timezone.utc)


def test_a_probe_that_no_worker_put_off_so_far_is_due(smtp, queue_mail, deliver) -> None:
    log = queue_mail()
    DeliveryGate.objects.create(scope="transport", name="smtp", outages=1, open_until=FAR)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    assert DeliveryGate.objects.get().outages == 0


def test_a_breaker_counts_outages_up_to_what_its_column_holds(db) -> None:
    now = timezone.now()
    DeliveryGate.objects.create(scope="transport", name="smtp", outages=2**31 - 1, open_until=now)
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default", is_probe=True)
    assert DeliveryGate.objects.get().reason == "down"


def test_the_reason_of_a_gate_names_no_recipient(db) -> None:
    reply = "4.3.2 <ann@example.com>: Service not available"
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply=reply), "default")
    assert DeliveryGate.objects.get().reason == "4.3.2 <…@example.com>: Service not available"


def test_a_pause_holds_whatever_the_database_takes_for_its_name(db) -> None:
    outbox.pause(queue="Emails")
    outbox.resume(queue="Emails")
    outbox.pause(queue="emails")
    assert not gates.Gates("default").queue_is_open("emails")
    is_exact = connection.vendor != "mysql"
    for other in ("Emails", "émails", "emails "):
        assert gates.Gates("default").queue_is_open(other) == is_exact
    assert gates.Gates("default").queue_is_open("bulk_emails")
    outbox.resume(queue="emails")
    assert gates.Gates("default").queue_is_open("emails")
