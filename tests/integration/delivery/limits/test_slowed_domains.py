"""Rates that are found by themselves: complaints, recovery, turns, and a real server's limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from devservers.smtp_faults import DomainLimit, refuse
from django_epica_mail import clock, conf, outbox
from django_epica_mail.delivery import claim, gates, worker
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.delivery.limits.slowed_domains import (
    FIRST_RATE,
    FORGOTTEN_SECONDS,
    KEPT_SHARE,
    RECOVERY_SECONDS,
    SLOWEST_RATE,
    SlowedDomains,
    ceiling_after,
    rate,
)
from django_epica_mail.models import EmailLog, SlowedDomain
from django_epica_mail.queueing.rows import sql
from django_epica_mail.retry import Failure, Kind, Scope
from django_epica_mail.tasks import send_bulk_emails_task

COMPLAINT = Failure(
    kind=Kind.THROTTLED, scope=Scope.DOMAIN, code=421, reply="4.7.28 <ann@slow.example> too fast"
)
REFUSAL = (451, "4.7.1 Rate limited: too many messages")
ceilings = st.floats(SLOWEST_RATE, 1e4)
moments = st.floats(0, 1e7)


def complain(*, claimed: float = -10, failure: Failure = COMPLAINT) -> None:
    """Report a complaint about a mail that was claimed so many seconds from now."""
    slowed_domains.forget()
    at = time.monotonic() + claimed
    slowed_domains.complain("smtp", "slow.example", failure, at, "default")


def found() -> slowed_domains.Slowed:
    (slowed,) = SlowedDomains("default").found
    return slowed


def to(domain: str, number: int) -> list[EmailLog]:
    """Queue mails of three senders to a domain."""
    messages = (
        EmailMessage("S", "B", f"from{it % 3}@example.com", [f"to{it}@{domain}"])
        for it in range(number)
    )
    return outbox.enqueue_many(messages, queue="emails", transport="smtp")


def sent(domain: str) -> int:
    return EmailLog.objects.filter(domain=domain, status="sent").count()


def _meanwhile(monkeypatch: pytest.MonkeyPatch, other: Callable[[], int]) -> list[int]:
    """Make another worker write between the reading of a complaint and its update."""
    written: list[int] = []
    real = slowed_domains.ceiling_after

    def compute(ceiling: float, seconds: float) -> float:
        written.append(other())
        return real(ceiling, seconds)

    monkeypatch.setattr(slowed_domains, "ceiling_after", compute)
    return written


@given(ceilings, moments, moments)
def test_time_alone_raises_the_rate(ceiling, one, other) -> None:
    earlier, later = sorted((one, other))
    assert rate(ceiling, earlier) <= rate(ceiling, later)


@given(ceilings)
def test_the_rate_is_that_of_the_complaint_again_after_a_minute(ceiling) -> None:
    assert rate(ceiling, 0) == pytest.approx(KEPT_SHARE * ceiling)
    assert rate(ceiling, RECOVERY_SECONDS) == pytest.approx(ceiling)
    assert rate(ceiling, FORGOTTEN_SECONDS) > 1000 * ceiling
    assert rate(ceiling, 1e9) == rate(ceiling, FORGOTTEN_SECONDS), "no number overflows"


@given(ceilings, moments)
def test_a_complaint_lowers_the_rate_within_bounds(ceiling, seconds) -> None:
    before = rate(ceiling, seconds)
    after = rate(ceiling_after(ceiling, seconds), 0)
    assert after >= SLOWEST_RATE * KEPT_SHARE * 0.999
    assert after <= max(KEPT_SHARE * before, SLOWEST_RATE)
    assert after <= max(2 * ceiling, FIRST_RATE)


@given(st.floats(0.05, 1e3))
def test_complaints_above_a_limit_lead_to_a_rate_near_it(limit) -> None:
    """A server that complains as soon as the rate exceeds its limit, from any first rate."""
    ceiling, now, last = FIRST_RATE, 0.0, 0.0
    taken = 0.0
    while now < 3600:
        now += 0.5
        allowed = rate(ceiling, now - last)
        if now - last >= 2 and allowed > limit:
            ceiling, last = ceiling_after(ceiling, now - last), now
        if now > 1800:
            taken += min(allowed, limit) * 0.5
    assert 0.8 * limit <= taken / 1800 <= limit


def test_the_first_complaint_slows_the_domain(db) -> None:
    complain()
    slowed = found()
    assert slowed.key == ("smtp", "slow.example")
    assert slowed.per_second == pytest.approx(KEPT_SHARE * FIRST_RATE, rel=0.01)
    assert slowed.row.reply == "4.7.28 <…@slow.example> too fast", "no address is kept"
    assert 0 < slowed.wait <= 1


def test_however_many_mails_of_a_claim_are_refused_the_rate_falls_once(db, travel) -> None:
    complain()
    travel(seconds=30)
    for _ in range(100):
        complain(claimed=-20)
    assert found().row.ceiling < FIRST_RATE
    once = found().row.ceiling
    complain(claimed=-1)  # after that complaint, but what it meets may be left from before
    assert found().row.ceiling == once
    travel(seconds=30)
    complain(claimed=-1)
    assert found().row.ceiling < once


def test_of_workers_that_hear_a_complaint_together_one_lowers_the_rate(
    db, travel, monkeypatch
) -> None:
    complain()
    travel(seconds=30)
    row = SlowedDomain.objects.get()
    written = _meanwhile(monkeypatch, lambda: SlowedDomain.objects.update(complaints=9, ceiling=3))
    complain()
    assert written == [1]
    assert (row.ceiling, SlowedDomain.objects.get().ceiling) == (FIRST_RATE, 3)


def test_a_domain_is_free_half_an_hour_after_the_last_complaint(db, travel) -> None:
    complain()
    travel(seconds=FORGOTTEN_SECONDS - 60)
    assert found().per_second > 1000
    travel(seconds=61)
    assert SlowedDomains("default").found == []
    complain()
    assert found().row.since > found().now - timedelta(seconds=5), "it is slowed anew"
    assert found().row.ceiling == FIRST_RATE
    travel(seconds=FORGOTTEN_SECONDS + 1)
    slowed_domains.clean("default")
    assert not SlowedDomain.objects.exists()


def test_a_server_may_say_how_long_to_wait_but_not_for_ever(db) -> None:
    complain(failure=Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, retry_after=600))
    assert 590 <= found().wait <= 600
    SlowedDomain.objects.all().delete()
    complain(failure=Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, retry_after=1e9))
    assert found().wait <= 3600


def test_the_table_is_bounded(db, monkeypatch) -> None:
    monkeypatch.setattr(slowed_domains, "MOST_DOMAINS", 3)
    for number in range(5):
        name = f"d{number}.example"
        slowed_domains.complain("smtp", name, COMPLAINT, time.monotonic() - 9, "default")
    assert SlowedDomain.objects.count() == 3


def test_a_turn_is_won_by_one_worker(db, travel) -> None:
    complain()
    travel(seconds=10)
    readings = [found() for _ in range(4)]
    assert [slowed_domains.reserve(it, 10, "default") for it in readings] == [1, 0, 0, 0]
    after = found()
    assert after.wait > 0
    assert slowed_domains.reserve(after, 10, "default") == 0, "before its time"


def test_who_holds_an_old_reading_reads_again_and_gets_the_next_turn(db, travel) -> None:
    complain()
    travel(seconds=10)
    old = found()
    assert slowed_domains.reserve(found(), 10, "default") == 1
    travel(seconds=1)
    assert slowed_domains.reserve(old, 10, "default") == 1, "its turn has come again"
    SlowedDomain.objects.all().delete()
    assert slowed_domains.reserve(old, 10, "default") == 0


def test_turns_come_at_the_rate(db, travel) -> None:
    complain()
    travel(seconds=RECOVERY_SECONDS)
    SlowedDomain.objects.update(next_at=clock.now())
    number = 0
    for _ in range(100):  # ten seconds
        number += slowed_domains.reserve(found(), 10, "default")
        travel(seconds=0.1)
    assert number == pytest.approx(10 * FIRST_RATE, rel=0.1)


def test_claims_leave_out_a_slowed_domain_but_for_its_turns(smtp, travel) -> None:
    to("slow.example", 30)
    to("fast.example", 5)
    complain()
    # So slow that no turn comes while the test runs, however busy the machine is.
    turn = SlowedDomain.objects.get().next_at + timedelta(seconds=20)
    SlowedDomain.objects.update(next_at=turn, ceiling=0.05)
    slowed_domains.forget()
    batch = claim.claim("emails")
    assert batch is not None
    assert {mail.row.domain for mail in batch.mails} == {"fast.example"}
    assert claim.claim("emails") is None
    travel(seconds=21)
    batch = claim.claim("emails")
    assert batch is not None
    assert batch.is_slowed
    assert [mail.row.domain for mail in batch.mails] == ["slow.example"]
    assert claim.claim("emails") is None, "the turn is taken"


def test_a_domain_that_recovers_does_not_go_ahead_of_urgent_mail(smtp, deliver, queue_mail) -> None:
    to("slow.example", 60)
    urgent = queue_mail("me@fine.example", priority=9)
    # Twenty minutes after one complaint it may get more than any worker sends.
    complained_at = timezone.now() - timedelta(minutes=20)
    slow("slow.example", ceiling=10.0, changed_at=complained_at, since=complained_at)
    deliver()
    assert sent("slow.example") == 60
    order = [mail.recipients[0] for mail in smtp.accepted]
    assert order.index("me@fine.example") <= conf.get().batch_size
    assert EmailLog.objects.get(pk=urgent.pk).status == "sent"


def test_another_transport_may_send_to_the_domain(smtp) -> None:
    to("slow.example", 1)
    complain()
    SlowedDomain.objects.update(transport="other")
    assert claim.claim("emails") is not None


def test_mail_of_several_domains_and_of_old_rows_is_not_paced(smtp, queue_mail) -> None:
    both = queue_mail("a@slow.example", "b@fast.example")
    same = queue_mail("a@slow.example", "B@Slow.Example")
    assert (both.domain, same.domain) == ("", "slow.example")
    complain()
    batch = claim.claim("emails")
    assert batch is not None
    assert [mail.row.pk for mail in batch.mails] == [both.pk]


@pytest.mark.parametrize("copied", [1, 1000])
def test_however_mail_is_queued_its_domain_is_stored(smtp, queue_mail, monkeypatch, copied) -> None:
    monkeypatch.setattr(sql, "_COPIED_ROWS", copied)  # on PostgreSQL, by COPY and by INSERT
    queue_mail("One <a@Slow.Example>")
    to("slow.example", 3)
    entry = {
        "subject": "S",
        "message": "B",
        "from_email": None,
        "recipient_list": ["a@slow.example"],
    }
    send_bulk_emails_task([entry])
    assert EmailLog.objects.filter(domain="slow.example").count() == 5
    assert EmailLog.objects.count() == 5


def test_a_domain_without_mail_in_a_queue_takes_no_turn_of_another(smtp, travel) -> None:
    complain()
    travel(seconds=10)
    before = SlowedDomain.objects.get().next_at
    assert claim.claim("emails") is None
    assert SlowedDomain.objects.get().next_at == before


def test_the_setting_turns_it_off(smtp, epica_mail) -> None:
    epica_mail(FIND_RATES=False)
    to("slow.example", 3)
    complain()
    assert not SlowedDomain.objects.exists()
    assert claim.claim("emails") is not None


def test_a_complaint_slows_one_domain_and_no_transport(smtp, deliver, rings) -> None:
    """Refusals of one domain, of many senders, beside mail that flows."""
    smtp.inject(refuse("rcpt", *REFUSAL, recipient=lambda it: it.endswith("@slow.example")))
    to("slow.example", 40)
    to("fast.example", 40)
    rings.clear()
    deliver()
    assert gates.Gates("default").out_of_order() == []
    assert sent("fast.example") == 40
    slow = EmailLog.objects.filter(domain="slow.example")
    refused = slow.exclude(attempts=0)
    assert 1 <= refused.count() <= 15, "what was in flight, and not the whole backlog"
    assert {(it.status, it.tries) for it in refused} == {("retrying", 0)}
    assert {it.status for it in slow.filter(attempts=0)} == {"queued"}
    assert found().row.reply.endswith("too many messages")
    assert "emails" in rings, "for the next turn"


def test_a_queue_of_slowed_mail_neither_spins_nor_is_forgotten(
    smtp, deliver, travel, monkeypatch
) -> None:
    to("slow.example", 3)
    complain()
    asked: list[int] = []
    real: Callable[..., Any] = worker.claim.claim

    def count(*args: Any, **options: Any) -> Any:
        asked.append(1)
        return real(*args, **options)

    monkeypatch.setattr(worker.claim, "claim", count)
    assert deliver() == 0
    assert len(asked) <= 2
    for number in range(1, 4):
        travel(seconds=1)
        deliver()  # a machine that is slow enough meets the next turn as well
        assert sent("slow.example") >= number


def test_a_domain_that_refuses_for_long_is_asked_about_once_a_minute(smtp, deliver, travel) -> None:
    rule = smtp.inject(refuse("rcpt", *REFUSAL, recipient=lambda it: it.endswith("@slow.example")))
    to("slow.example", 20)
    for _ in range(120):  # twenty minutes
        deliver()
        travel(seconds=10)
    assert rule.hits <= 80
    assert set(EmailLog.objects.values_list("tries", flat=True)) == {0}
    smtp.withdraw(rule)
    for _ in range(40):  # ten minutes
        deliver()
        travel(seconds=15)
    assert sent("slow.example") == 20


def test_the_rate_of_a_real_server_is_found(smtp, deliver) -> None:
    """A server that takes five mails of a domain in any second, and other mail beside it."""
    limit = DomainLimit("slow.example", 5)
    smtp.inject(limit)
    to("slow.example", 150)
    fast, late = 0, []
    began = time.monotonic()
    while time.monotonic() - began < 9:
        to("fast.example", 1)
        fast += 1
        queued = time.monotonic()
        deliver()
        late.append(time.monotonic() - queued)
        time.sleep(0.02)
    until = time.monotonic()
    taken = sum(until - it < 6 for it in limit.taken) / 6
    assert 2.5 <= taken <= 5
    assert 2.5 <= found().per_second <= 10
    assert sum(until - it < 6 for it in limit.refused) <= 15
    assert sent("fast.example") == fast
    assert sorted(late)[len(late) // 2] < 0.5


def slow(domain: str, **damaged: Any) -> SlowedDomain:
    """Store a slowed domain whose turn has come, with some columns written by an attacker."""
    now = timezone.now()
    values = {"ceiling": 5, "changed_at": now, "since": now, "next_at": now - timedelta(seconds=1)}
    return SlowedDomain.objects.create(transport="smtp", domain=domain, **{**values, **damaged})


FAR = datetime(9998, 12, 31, tzinfo=dt_timezone.utc)
EARLY = datetime(2, 1, 1, tzinfo=dt_timezone.utc)


@pytest.mark.parametrize(
    "damaged",
    [
        *({"ceiling": it} for it in (0, -1e300, 1e-300, 1e300, float("inf"), float("nan"))),
        *({"turns": it} for it in (2**31 - 1, 2**63 - 1)),
        {"complaints": 2**31 - 1},
        {"changed_at": FAR},
        {"next_at": FAR},
        {"next_at": EARLY},
        {"since": EARLY},
    ],
    ids=str,
)
def test_a_damaged_row_stops_no_mail(smtp, deliver, damaged) -> None:
    if damaged.get("ceiling") != damaged.get("ceiling") and connection.vendor != "postgresql":
        pytest.skip("no other database stores NaN")
    if math.isinf(damaged.get("ceiling", 0)) and connection.vendor == "mysql":
        pytest.skip("MariaDB stores no infinity")
    to("slow.example", 1)
    to("fine.example", 1)
    slow("slow.example", **damaged)
    deliver()
    assert sent("fine.example") == 1
    assert sent("slow.example") == 1, "its own mail had its turn"


@pytest.mark.parametrize("turns", [2**31 - 1, 2**63 - 1])
def test_turns_begin_anew_at_their_end(smtp, deliver, turns) -> None:
    slow("slow.example", turns=turns)
    to("slow.example", 1)
    deliver()
    assert SlowedDomain.objects.get().turns == 0


@pytest.mark.parametrize("damaged", [{"changed_at": FAR}, {"complaints": 2**31 - 1}], ids=str)
def test_a_complaint_counts_for_a_damaged_row(db, damaged) -> None:
    if "changed_at" not in damaged:
        damaged = {**damaged, "changed_at": timezone.now() - timedelta(seconds=60)}
    row = slow("slow.example", **damaged)
    complain()
    row.refresh_from_db()
    assert row.complaints in (0, 2)
    assert found().wait > 0
    assert row.changed_at < timezone.now() + timedelta(minutes=1)


def test_a_complaint_of_the_future_slows_nothing_and_is_cleaned_up(db) -> None:
    slow("slow.example", changed_at=FAR)
    assert SlowedDomains("default").found == []
    slowed_domains.clean("default")
    assert not SlowedDomain.objects.exists()


@pytest.mark.parametrize("domain", ["UPPER.example", " sp.example", "ü.example", "<b>%s{}\"'"])
def test_a_domain_that_nobody_would_write_so_is_set_free_as_it_is_stored(db, domain) -> None:
    slow(domain)
    assert slowed_domains.set_free(domain, "default") == 1
