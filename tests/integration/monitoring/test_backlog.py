"""The backlog of each queue and transport, and the status of all queues."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest
from django.db import connection

from devservers.smtp_faults import drop, refuse
from django_epica_mail import clock, maintenance, outbox
from django_epica_mail.delivery import claim
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.monitoring import backlog, health
from django_epica_mail.retry import Failure, Kind, Scope

pytestmark = pytest.mark.django_db


def now() -> datetime:
    """Return the time of the queue's clock."""
    return datetime.now(timezone.utc) + clock.offset


def backlogs() -> dict[tuple[str, str], backlog.Backlog]:
    found = backlog.backlogs("default", now(), SlowedDomains("default"))
    keys = [(it.queue, it.transport) for it in found]
    assert keys == sorted(set(keys))
    return dict(zip(keys, found, strict=True))


def due_ages() -> dict[tuple[str, str], float]:
    return backlog.due_ages("default", now(), SlowedDomains("default"))


def set_due(log: EmailLog, seconds_ago: float) -> datetime:
    """Make a mail due in the past; return when."""
    due_at = now() - timedelta(seconds=seconds_ago)
    EmailLog.objects.filter(pk=log.pk).update(due_at=due_at)
    return due_at


def test_an_empty_queue_has_no_backlog() -> None:
    assert backlogs() == {}
    assert list(backlog.waiting("default")) == []
    assert due_ages() == {}


def test_waiting_due_and_claimed_mail_is_counted_separately(smtp, queue_mail) -> None:
    for _ in range(2):
        queue_mail()
    assert claim.claim("emails") is not None
    for _ in range(3):
        queue_mail()
    queue_mail(send_at=now() + timedelta(days=1))
    (found,) = backlogs().values()
    assert (found.waiting, found.due, found.in_flight) == (4, 3, 2)


def test_the_oldest_due_mail_of_all_priorities_is_found(queue_mail) -> None:
    set_due(queue_mail(priority="urgent"), 20)
    oldest = set_due(queue_mail(priority="low"), 300)
    set_due(queue_mail(priority="low"), 100)
    (found,) = backlogs().values()
    assert found.oldest_due == oldest
    assert found.oldest_due_age == pytest.approx(300, abs=5)


def test_each_queue_and_transport_has_its_own_backlog(queue_mail) -> None:
    queue_mail()
    queue_mail(transport="ses")
    queue_mail(queue="bulk_emails")
    queue_mail(queue="bulk_emails")
    found = backlogs()
    assert {key: it.waiting for key, it in found.items()} == {
        ("bulk_emails", "smtp"): 2,
        ("emails", "ses"): 1,
        ("emails", "smtp"): 1,
    }
    assert list(backlog.waiting("default")) == list(found)


def test_scheduled_mail_is_waiting_but_not_due(queue_mail, travel) -> None:
    queue_mail(send_at=now() + timedelta(hours=1))
    (found,) = backlogs().values()
    assert (found.waiting, found.due, found.oldest_due, found.oldest_due_age) == (1, 0, None, None)
    assert due_ages() == {}
    travel(hours=2)
    assert due_ages() == {("emails", "smtp"): pytest.approx(3600, abs=5)}


def test_finished_mail_is_not_waiting(smtp, queue_mail, deliver) -> None:
    queue_mail()
    outbox.cancel([queue_mail().pk])
    deliver()
    assert backlogs() == {}
    assert list(backlog.waiting("default")) == []


def test_claimed_mail_has_a_backlog_of_its_own(smtp, queue_mail) -> None:
    queue_mail()
    claim.claim("emails")
    (found,) = backlogs().values()
    assert (found.queue, found.transport, found.in_flight) == ("emails", "smtp", 1)
    assert (found.waiting, found.due, found.oldest_due) == (0, 0, None)


def test_mail_is_in_flight_after_its_lease_until_it_is_rescued(smtp, queue_mail, travel) -> None:
    queue_mail()
    claim.claim("emails")
    travel(minutes=10)
    assert [it.in_flight for it in backlogs().values()] == [1]
    maintenance.rescue()
    assert sum(it.in_flight for it in backlogs().values()) == 0


def test_the_first_mail_and_the_databases_time_are_read_together(queue_mail, travel) -> None:
    moment, first = backlog.clock_and_first_mail("default")
    assert first is None
    assert abs(moment - now()) < timedelta(minutes=1)
    oldest = queue_mail()
    queue_mail()
    travel(hours=1)
    moment, first = backlog.clock_and_first_mail("default")
    assert first == oldest.created_at
    assert backlog.age(first, moment) == pytest.approx(3600, abs=5)


def test_an_age_is_never_negative() -> None:
    moment = now()
    assert backlog.age(None, moment) is None
    assert backlog.age(moment + timedelta(seconds=3), moment) == 0.0
    assert backlog.age(moment - timedelta(seconds=1.26), moment) == 1.3


def test_the_last_sweep_is_the_latest_of_all_queues(smtp, queue_mail, travel, rings) -> None:
    assert backlog.last_sweep("default") is None
    queue_mail()
    maintenance.dispatch()
    first = backlog.last_sweep("default")
    assert first is not None
    travel(minutes=5)
    queue_mail(queue="bulk_emails")
    maintenance.dispatch()
    second = backlog.last_sweep("default")
    assert second is not None
    assert second - first >= timedelta(minutes=5)


def test_the_status_adds_up_the_transports_of_a_queue(queue_mail) -> None:
    oldest = set_due(queue_mail(transport="ses"), 200)
    set_due(queue_mail(), 100)
    queue_mail(send_at=now() + timedelta(days=1))
    status = backlog.status().queues["emails"]
    assert (status.waiting, status.due, status.oldest_due) == (3, 2, oldest)
    assert status.oldest_due_age == pytest.approx(200, abs=5)
    assert status.by_status == {"queued": 3}


def test_the_status_counts_mail_by_status(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    smtp.inject(drop("content", times=1))
    queue_mail()
    queue_mail(on_unknown="hold")
    queue_mail()
    deliver()
    claimed = queue_mail()
    assert claim.claim("emails") is not None
    outbox.cancel([queue_mail().pk])
    queue_mail()
    status = backlog.status().queues["emails"]
    states = ("sent", "retrying", "unknown", "sending", "cancelled", "queued")
    assert status.by_status == dict.fromkeys(states, 1)
    assert status.in_flight == 1
    claimed.refresh_from_db()
    assert claimed.status == "sending"


def test_finished_mail_is_counted_for_a_day(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    travel(hours=backlog.RECENT_HOURS - 1)
    assert backlog.status().queues["emails"].by_status == {"sent": 1}
    travel(hours=2)
    assert backlog.status().queues["emails"].by_status == {}


def test_the_report_has_what_concerns_all_queues(smtp, queue_mail, travel, rings) -> None:
    queue_mail()
    EmailBatch.objects.create(total=3, payload="[]")
    EmailBatch.objects.create(total=3, finished_at=now())
    outbox.pause(queue="bulk_emails")
    maintenance.dispatch()
    travel(minutes=10)
    report = backlog.status()
    assert report.unfinished_batches == 1
    assert report.held_back == {"queue bulk_emails": "paused"}
    assert report.last_sweep_age == pytest.approx(600, abs=5)


def test_a_report_as_json_has_the_counts_next_to_the_other_fields(queue_mail) -> None:
    log = queue_mail()
    report: dict[str, Any] = backlog.status().as_dict()
    emails = report["queues"]["emails"]
    assert emails.pop("oldest_due_age") < 60
    assert emails == {
        "waiting": 1,
        "due": 1,
        "in_flight": 0,
        "oldest_due": log.due_at,
        "queued": 1,
    }
    assert report.keys() == {
        *("queues", "hours", "unfinished_batches", "set_apart"),
        *("last_sweep", "last_sweep_age", "held_back"),
        "slowed_domains",
        "reputation",
    }


SLOW, FAST = "to@slow.example", "to@fast.example"


@pytest.fixture
def slowed() -> None:
    """Slow a domain down."""
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")
    slowed_domains.complain("smtp", "slow.example", failure, time.monotonic() - 9, "default")


def test_mail_that_waits_for_its_domains_turn_is_no_stuck_queue(smtp, queue_mail, slowed) -> None:
    oldest = set_due(queue_mail(SLOW), 9000)
    set_due(queue_mail(SLOW), 60)
    assert due_ages() == {}
    (found,) = backlogs().values()
    assert (found.waiting, found.due, found.oldest_due) == (2, 2, None)
    report = backlog.status()
    assert report.queues["emails"].oldest_due is None
    (domain,) = report.slowed_domains
    assert (domain["domain"], domain["due"], domain["oldest_due"]) == ("slow.example", 2, oldest)
    assert domain["oldest_due_age"] == pytest.approx(9000, abs=5)
    check = health.examine().checks[0]
    assert (check.name, check.is_well, check.value) == ("backlog", True, 0)
    assert check.text == "2 mails wait for the turns of slowed domains, the oldest for 2.5 h."


def test_other_mail_beside_a_slowed_domain_still_raises_the_alarm(smtp, queue_mail, slowed) -> None:
    set_due(queue_mail(SLOW), 9000)
    oldest = set_due(queue_mail(FAST), 400)
    set_due(queue_mail(FAST), 60)
    set_due(queue_mail(SLOW, transport="other"), 500)
    assert due_ages() == {
        ("emails", "smtp"): pytest.approx(400, abs=5),
        ("emails", "other"): pytest.approx(500, abs=5),
    }
    assert backlogs()["emails", "smtp"].oldest_due == oldest
    check = health.examine().checks[0]
    assert not check.is_well
    assert check.value == pytest.approx(500, abs=5)
    assert check.text.endswith("1 mail waits for the turn of a slowed domain, for 2.5 h.")


def test_behind_a_slowed_backlog_a_stuck_queue_is_found_by_reading_little(
    smtp, queue_mail, slowed, monkeypatch
) -> None:
    monkeypatch.setattr(backlog, "_WINDOW", 3)
    for number in range(8):
        set_due(queue_mail(SLOW), 9000 - number)
    assert due_ages() == {}
    set_due(queue_mail(FAST), 580)
    assert due_ages() == {("emails", "smtp"): pytest.approx(580, abs=5)}
    for number in range(4):
        set_due(queue_mail(SLOW), 590 - number)
    set_due(queue_mail(FAST), 100)
    assert due_ages() == {("emails", "smtp"): pytest.approx(100, abs=5)}, "a younger one"


def test_what_waits_for_slowed_domains_is_counted_up_to_a_limit(
    smtp, queue_mail, slowed, monkeypatch
) -> None:
    monkeypatch.setattr(health, "MOST_SLOWED", 3)
    for _ in range(3):
        queue_mail(SLOW)
    queue_mail(SLOW, send_at=now() + timedelta(hours=1))
    queue_mail(SLOW, transport="other")
    assert health.measure().slowed_due == 3
    for priority in (5, 7, 9):
        queue_mail(SLOW, priority=priority)
    measured = health.measure()
    assert measured.slowed_due == 4
    assert "3+ mails wait" in health.examine().checks[0].text


def test_the_search_for_transports_ends_where_one_of_sqlites_is_no_text(queue_mail) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the others store no bytes in a column of text")
    queue_mail()
    damaged = queue_mail()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE epica_mail_emaillog SET transport = x'ff' WHERE id = %s", [damaged.pk.hex]
        )
    found = islice(backlog._by_queue_and_transport("default"), 9)
    assert [flow for flow, _levels in found] == [("emails", "smtp")]
