"""Failover: a route's next transport takes mail that the first certainly did not accept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.test.utils import CaptureQueriesContext

from devservers.smtp import SMTPServer
from devservers.smtp_faults import drop
from django_epica_mail import clock, maintenance, outbox
from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import settle
from django_epica_mail.lifecycle import POSTPONE
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.retry import Decision, Failure, Kind, Result

DOWN = Failure(kind=Kind.OUTAGE, reply="connection refused")


@pytest.fixture
def two(smtp: SMTPServer, settings: Any, epica_mail: Any) -> SMTPServer:
    """Route mail to a transport that is down, with the server as the fallback."""
    backend = "django.core.mail.backends.smtp.EmailBackend"
    specs = {
        "ses": {"BACKEND": backend, "OPTIONS": {"host": "127.0.0.1", "port": 1}},
        "smtp": {"BACKEND": backend, "OPTIONS": {"host": "127.0.0.1", "port": smtp.port}},
    }
    routes = [{"match": {"category": "x"}, "transport": ["ses", "smtp"]}]
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, **specs}
        epica_mail(ROUTES=routes)
    else:
        epica_mail(ROUTES=routes, TRANSPORTS=specs, DEFAULT_TRANSPORT="smtp")
    return smtp


def queue(**options: Any) -> EmailLog:
    return outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"]), **options)


def test_mail_of_a_tripped_transport_fails_over_at_once(two, deliver) -> None:
    logs = [queue(category="x") for _ in range(5)]
    assert {(log.transport, tuple(log.fallbacks)) for log in logs} == {("ses", ("smtp",))}
    assert deliver() == 6  # five, and the attempt that found the outage
    assert len(two.accepted) == 5
    rows = EmailLog.objects.values_list("status", "transport", "fallbacks", "tries")
    assert {(s, t, tuple(f), n) for s, t, f, n in rows} == {("sent", "smtp", ("ses",), 1)}


@pytest.mark.parametrize("fallback", ["smtp", "gone"])
def test_no_mail_fails_over_to_a_transport_that_gets_none(
    two, deliver, epica_mail, fallback: str
) -> None:
    """It is paused, or configured no more: nothing would move the mail on."""
    epica_mail(ROUTES=[{"match": {"category": "x"}, "transport": ["ses", fallback]}])
    log = queue(category="x")
    gates.set_paused(True, transport="smtp")
    deliver()
    maintenance.dispatch()
    log.refresh_from_db()
    assert (log.status, log.transport, log.fallbacks) == ("retrying", "ses", [fallback])


def test_a_long_backlog_fails_over_in_several_sweeps_the_urgent_mail_first(
    two, monkeypatch
) -> None:
    """What stays in doubt with its transport keeps none of it behind."""
    monkeypatch.setattr(gates, "_CHUNK", 2)
    monkeypatch.setattr(gates, "_MOST_MOVED", 4, raising=False)
    for _ in range(5):
        doubtful = queue(category="x", priority=9)
        lost = {"transport": "ses", "worker": "w", "failure_kind": Kind.UNKNOWN}
        DeliveryAttempt.objects.create(email=doubtful, number=1, created_at=clock.now(), **lost)
    for priority in (0, 5, 0, 5, 9):
        queue(category="x", priority=priority)
    gates.trip("ses", DOWN, "default")
    numbers, rows = [], EmailLog.objects.filter(transport="smtp")
    for _ in range(3):
        numbers.append(maintenance.dispatch()["rerouted"])
        if len(numbers) == 1:
            assert sorted(rows.values_list("priority", flat=True)) == [0, 5, 5, 9]
    assert numbers == [4, 1, 0]


def test_mail_without_another_transport_waits(two, deliver) -> None:
    log = queue(transport="ses")
    deliver()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "ses")
    assert maintenance.dispatch()["rerouted"] == 0


def test_the_sweep_reroutes_mail_queued_while_the_breaker_is_open(two, deliver) -> None:
    queue(category="x")
    deliver()
    late = [queue(category="x") for _ in range(3)]
    assert maintenance.dispatch()["rerouted"] == 3
    assert maintenance.dispatch()["rerouted"] == 0
    deliver()
    assert set(EmailLog.objects.filter(pk__in=[x.pk for x in late]).values_list("status")) == {
        ("sent",)
    }


def test_mail_that_may_have_been_accepted_does_not_fail_over(two, deliver, epica_mail) -> None:
    epica_mail(ROUTES=[{"match": {"category": "y"}, "transport": ["smtp", "ses"]}])
    two.inject(drop("content", times=1))
    log = queue(category="y")
    deliver()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "smtp")
    assert log.failure_kind == "unknown"


def test_nothing_fails_over_while_every_transport_is_tripped(two, deliver, epica_mail) -> None:
    two.refuse_connections()
    logs = [queue(category="x") for _ in range(2)]
    deliver()
    assert maintenance.dispatch()["rerouted"] == 0
    assert {row.status for row in EmailLog.objects.all()} <= {"queued", "retrying"}
    assert EmailLog.objects.count() == len(logs)


@pytest.fixture
def in_doubt(two, deliver, epica_mail) -> Callable[[], EmailLog]:
    """Queue a mail whose transport may have accepted it, and which is to be sent once more."""
    epica_mail(ROUTES=[{"match": {"category": "y"}, "transport": ["smtp", "ses"]}])

    def lose() -> EmailLog:
        two.inject(drop("content", times=1))
        log = queue(category="y")
        deliver()
        log.refresh_from_db()
        assert (log.status, log.failure_kind, log.transport) == ("retrying", "unknown", "smtp")
        return log

    return lose


def test_the_sweep_leaves_mail_that_may_have_been_accepted(in_doubt) -> None:
    doubtful, waiting = in_doubt(), queue(category="y")
    gates.trip("smtp", DOWN, "default")
    assert maintenance.dispatch()["rerouted"] == 1
    for log, transport in ((doubtful, "smtp"), (waiting, "ses")):
        log.refresh_from_db()
        assert log.transport == transport


def test_the_mails_whose_lost_replies_opened_the_breaker_stay(
    two, deliver, epica_mail, monkeypatch
) -> None:
    epica_mail(ROUTES=[{"match": {"category": "y"}, "transport": ["smtp", "ses"]}])
    lost = Failure(kind=Kind.UNKNOWN, reply="503", is_confirmed=True)
    send = "django_epica_mail.transports.connection.Connection.send"
    monkeypatch.setattr(send, lambda self, message: Result(failure=lost, seconds=0.1))
    log = queue(category="y")
    deliver()
    assert gates.Gates("default").out_of_order() == ["smtp"]
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "smtp")


def test_an_outage_at_the_next_attempt_does_not_make_it_fail_over(
    two, in_doubt, deliver, travel
) -> None:
    log = in_doubt()
    two.refuse_connections()
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind, log.transport) == ("retrying", "outage", "smtp")
    assert maintenance.dispatch()["rerouted"] == 0, "nor does the sweep move it"
    two.listen_again()
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("sent", "smtp")
    assert set(log.delivery_attempts.values_list("transport", flat=True)) == {"smtp"}


def test_it_is_given_up_if_its_transport_stays_out_of_order(two, in_doubt, travel) -> None:
    log = in_doubt()
    gates.trip("smtp", DOWN, "default")
    travel(hours=73)
    assert maintenance.dispatch()["overdue"] == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind, log.transport) == ("failed", "overdue", "smtp")


def test_a_person_may_move_it(in_doubt) -> None:
    log = in_doubt()
    assert outbox.move("smtp", to="ses") == 1
    log.refresh_from_db()
    assert log.transport == "ses"


def says_refused(log: EmailLog) -> str:
    return "refused"


def test_evidence_that_it_was_refused_lets_it_fail_over(two, deliver, travel, epica_mail) -> None:
    epica_mail(
        ROUTES=[{"match": {"category": "y"}, "transport": ["smtp", "ses"]}],
        EVIDENCE=f"{__name__}.says_refused",
    )
    two.inject(drop("content", times=1))
    log = queue(category="y")
    deliver()
    travel(minutes=6)
    maintenance.dispatch()
    log.refresh_from_db()
    assert (log.status, log.transport) == ("retrying", "smtp")
    gates.trip("smtp", DOWN, "default")
    assert maintenance.dispatch()["rerouted"] == 1


def test_doubt_about_another_transport_keeps_no_mail(in_doubt) -> None:
    log = in_doubt()
    DeliveryAttempt.objects.update(transport="third")
    gates.trip("smtp", DOWN, "default")
    assert maintenance.dispatch()["rerouted"] == 1
    log.refresh_from_db()
    assert log.transport == "ses"


@pytest.mark.parametrize("attempts", [0, 1])
def test_failing_over_costs_no_query_for_each_mail(two, attempts: int) -> None:
    numbers = []
    for fallbacks in ([], ["ses"]):
        log = queue(transport="smtp")
        EmailLog.objects.filter(pk=log.pk).update(attempts=attempts, fallbacks=fallbacks)
        batch = claims.claim("emails")
        assert batch is not None
        outcome = Outcome(
            batch.mails[0].row,
            Result(failure=DOWN, seconds=0.1),
            Decision(moves=(POSTPONE,), failure=DOWN, uses_try=False),
        )
        with CaptureQueriesContext(connection) as queries:
            settle([outcome], using="default")
        numbers.append(len(queries))
        EmailLog.objects.all().delete()
    assert numbers[1] == numbers[0]
