"""Mail that waits too long for a transport is given up; mail that is paused is not."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.mail import EmailMessage

from devservers.smtp_faults import refuse
from django_epica_mail import clock, lifecycle, maintenance, outbox, signals
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import overdue
from django_epica_mail.models import DeliveryGate, EmailLog, EmailRecipient
from django_epica_mail.retry import Failure, Kind

A, B, C = "a@example.com", "b@example.com", "c@example.com"
PAUSES = [{"queue": "bulk_emails"}, {"transport": "smtp"}, {"category": "news"}]
OUTAGE = Failure(kind=Kind.OUTAGE, reply="connection refused")


def kinds() -> set[tuple[str, str]]:
    return set(EmailLog.objects.values_list("status", "failure_kind"))


def recipients(log: EmailLog) -> dict[str, tuple[str, int | None, str]]:
    rows = EmailRecipient.objects.filter(email=log)
    return {row.address: (row.outcome, row.code, row.reply) for row in rows}


def newsletter() -> EmailLog:
    """Queue one mail as bulk mail of a category."""
    message = EmailMessage("News", "Body", None, [A])
    batch = outbox.enqueue_many([message], category="news", keep_content="until_sent")
    return EmailLog.objects.get(batch=batch)


def test_mail_waiting_too_long_for_a_transport_is_given_up(
    smtp, queue_mail, deliver, travel
) -> None:
    logs = [queue_mail(keep_content=keep) for keep in ("always", "until_sent")]
    smtp.refuse_connections()
    deliver()
    assert maintenance.give_up_overdue() == 0
    travel(hours=73)
    assert maintenance.give_up_overdue() == 2
    assert kinds() == {("failed", "overdue")}
    assert [bool(EmailLog.objects.get(pk=log.pk).envelope) for log in logs] == [True, False]


@pytest.mark.parametrize("pause", PAUSES, ids=lambda pause: next(iter(pause)))
def test_a_pause_longer_than_give_up_after_loses_no_mail(smtp, deliver, travel, pause) -> None:
    newsletter()
    gates.trip("smtp", OUTAGE, "default")  # nothing probes it while the mail is paused
    outbox.pause(**pause)
    for _ in range(3):
        travel(days=2)
        assert maintenance.dispatch()["overdue"] == 0
    outbox.resume(**pause)
    assert maintenance.dispatch()["overdue"] == 0
    deliver("bulk_emails")
    assert kinds() == {("sent", "")}


def test_a_paused_mail_has_time_for_retries_after_the_resume(
    smtp, queue_mail, deliver, travel
) -> None:
    queue_mail()
    outbox.pause(queue="emails")
    travel(hours=71)
    maintenance.dispatch()
    travel(hours=35)
    maintenance.dispatch()
    outbox.resume(queue="emails")
    smtp.inject(refuse("rcpt", 450, "4.2.0 Greylisted", times=1))
    deliver()
    assert kinds() == {("retrying", "transient")}
    travel(hours=1)
    deliver()
    assert kinds() == {("sent", "")}


def test_a_pause_spares_only_what_it_holds_back(smtp, queue_mail, travel) -> None:
    log = newsletter()
    others = [queue_mail(category="news"), queue_mail()]  # not bulk mail; not of the category
    gates.trip("smtp", OUTAGE, "default")
    outbox.pause(category="news")
    travel(hours=73)
    assert maintenance.give_up_overdue() == 2
    failed = EmailLog.objects.filter(status="failed").order_by("id")
    assert list(failed.values_list("pk", flat=True)) == [it.pk for it in others]
    log.refresh_from_db()
    assert log.status == "queued"


def test_a_pause_writes_no_row_that_still_has_half_of_its_time(smtp, queue_mail, travel) -> None:
    queue_mail()
    before = EmailLog.objects.get().give_up_at
    outbox.pause(queue="emails")
    travel(hours=35)
    maintenance.give_up_overdue()
    assert EmailLog.objects.get().give_up_at == before
    travel(hours=2)
    maintenance.give_up_overdue()
    assert (EmailLog.objects.get().give_up_at - before).total_seconds() > 36 * 3600


def test_expires_at_holds_for_paused_mail(smtp, queue_mail, deliver, travel) -> None:
    queue_mail(expires_after=3600)
    outbox.pause(queue="emails")
    travel(days=4)
    maintenance.dispatch()
    outbox.resume(queue="emails")
    deliver()
    assert kinds() == {("expired", "")}


def test_overdue_mail_that_some_have_got_is_sent_and_names_the_others(
    smtp, queue_mail, deliver, travel
) -> None:
    log, other = queue_mail(B, C, keep_content="until_sent"), queue_mail(C)
    smtp.inject(refuse("rcpt", 450, "4.2.1 Later", recipient=lambda it: it == C))
    deliver()
    assert kinds() == {("retrying", "transient")}
    gates.trip("smtp", OUTAGE, "default")
    travel(days=4)
    heard: list[Any] = []

    def listen(*, email_id: Any, move: lifecycle.Move, **_: Any) -> None:
        heard.append((email_id, move))

    signals.email_moved.connect(listen)
    try:
        assert maintenance.give_up_overdue() == 2
    finally:
        signals.email_moved.disconnect(listen)
    assert heard == [(log.pk, lifecycle.CONFIRM), (other.pk, lifecycle.GIVE_UP)]
    log.refresh_from_db()
    other.refresh_from_db()
    assert (log.status, other.status) == ("sent", "failed")
    assert log.finished_at is not None
    assert log.envelope == ""
    assert recipients(log)[B][0] == "accepted"
    assert recipients(log)[C] == ("refused", None, log.reply)
    assert "out of order" in log.reply


def test_pauses_of_what_no_mail_waits_in_cost_the_sweep_little(db, django_assert_max_num_queries):
    for number in range(200):
        for scope in ("queue", "transport"):
            DeliveryGate.objects.create(scope=scope, name=f"n{number}", paused=True)
    with django_assert_max_num_queries(1100):
        overdue.give_up_overdue()


def test_gates_out_of_order_that_no_mail_waits_for_cost_the_sweep_little(
    queue_mail, travel, django_assert_max_num_queries
) -> None:
    queue_mail()
    gates.trip("smtp", OUTAGE, "default")
    DeliveryGate.objects.bulk_create(
        DeliveryGate(scope="transport", name=f"made up {number}", outages=1) for number in range(99)
    )
    travel(hours=73)
    with django_assert_max_num_queries(50):
        assert maintenance.give_up_overdue() == 1


def test_a_long_backlog_is_given_up_by_several_sweeps(
    smtp, queue_mail, travel, monkeypatch
) -> None:
    """One that gave up 100,000 mails kept all queues from their rings for half a minute."""
    monkeypatch.setattr(overdue, "_CHUNK", 2)
    monkeypatch.setattr(overdue, "_MOST", 4)
    for _ in range(5):
        queue_mail()
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="down"), "default")
    travel(hours=73)
    assert [maintenance.dispatch()["overdue"] for _ in range(3)] == [4, 1, 0]


@pytest.mark.parametrize("pause", PAUSES, ids=lambda pause: next(iter(pause)))
def test_a_long_paused_backlog_is_spared_by_several_sweeps_and_none_of_it_given_up(
    smtp, travel, monkeypatch, pause
) -> None:
    """No sweep ran for as long as mail may wait; one that spared 100,000 mails took 25 s."""
    monkeypatch.setattr(overdue, "_CHUNK", 2)
    monkeypatch.setattr(overdue, "_MOST", 4)
    for _ in range(9):
        newsletter()
    gates.trip("smtp", OUTAGE, "default")
    outbox.pause(**pause)
    travel(hours=73)
    left = []
    for _ in range(4):
        assert maintenance.dispatch()["overdue"] == 0
        left.append(EmailLog.objects.filter(give_up_at__lte=clock.now()).count())
    assert left == [5, 1, 0, 0]
    assert kinds() == {("queued", "")}


@pytest.mark.parametrize("pause", PAUSES, ids=lambda pause: next(iter(pause)))
def test_no_paused_mail_is_given_up_however_many_pauses_there_are(
    smtp, queue_mail, travel, monkeypatch, pause
) -> None:
    monkeypatch.setattr(overdue, "_MOST_PAUSES", 0)  # this one is beyond those that are looked at
    newsletter()
    gates.trip("smtp", OUTAGE, "default")
    outbox.pause(**pause)
    if "transport" not in pause:
        queue_mail(queue="others")
    travel(hours=73)
    assert maintenance.dispatch()["overdue"] == int("transport" not in pause)
    assert EmailLog.objects.get(queue="bulk_emails").status == "queued"
