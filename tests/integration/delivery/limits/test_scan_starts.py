"""Where claims begin to look: the walk over a slowed domain's mail is made rarely."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.delivery import claim, settle, worker
from django_epica_mail.delivery.limits import scan_starts, slowed_domains
from django_epica_mail.delivery.limits.scan_starts import ScanStarts
from django_epica_mail.models import EmailLog, SlowedDomain
from django_epica_mail.queueing.dequeue import NOTHING, HeldBack, Lane
from django_epica_mail.retry import Failure, Kind, Scope

LANES: list[Lane] = [("smtp", 9), ("ses", 9), ("smtp", 5)]
SLOWED = HeldBack((), [("smtp", "slow.example")])
PAUSED = HeldBack(["news"], ())
COMPLAINT = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")
ROWS = 100_000


def row(lane: Lane, age: float) -> EmailLog:
    return EmailLog(transport=lane[0], priority=lane[1], due_at=timezone.now() - seconds(age))


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only item is the monotonic time that the module sees."""
    at = [1000.0]
    monkeypatch.setattr(scan_starts.time, "monotonic", lambda: at[0])
    return at


def test_claims_begin_near_the_last_one_and_now_and_then_at_the_beginning(present) -> None:
    starts, last = ScanStarts(), row(LANES[2], age=60)
    assert starts.bounds(LANES, NOTHING) == {}
    starts.note(LANES, [last], moment=None, seconds=0.1)
    assert starts.bounds(LANES, NOTHING) == {LANES[2]: last.due_at - seconds(2)}
    present[0] += 2
    assert starts.bounds(LANES, NOTHING) == {}
    assert starts.bounds(LANES, NOTHING) == {}, "nothing was found"


def test_a_task_and_an_empty_queue_begin_at_the_beginning(present) -> None:
    starts = ScanStarts()
    starts.bounds(LANES, NOTHING)
    for _ in range(2):
        starts.note(LANES, [row(LANES[0], age=1)], moment=None, seconds=9.0)
        assert starts.bounds(LANES, NOTHING)
        assert starts.look_at_all(LANES)
        assert starts.bounds(LANES, NOTHING) == {}
    starts.note(LANES, [row(LANES[0], age=1)], moment=None, seconds=9.0)
    starts.begin()
    assert starts.bounds(LANES, NOTHING) == {}


def test_the_names_that_messages_of_the_broker_carry_are_not_all_remembered(db) -> None:
    scan_starts.forget()
    for number in range(scan_starts._MOST_QUEUES + 50):
        worker.deliver(f"queue-{number}")
        emails = scan_starts.of_queue("emails", "default")
    worker.deliver("x" * 1_000_000)
    assert len(scan_starts._of_queues) == scan_starts._MOST_QUEUES
    assert max(len(name) for _, name in scan_starts._of_queues) < 65
    assert scan_starts.of_queue("emails", "default") is emails
    scan_starts.forget()


@pytest.mark.parametrize("held", [SLOWED, PAUSED])
def test_while_mail_is_held_back_what_was_passed_is_remembered(present, held) -> None:
    starts, now = ScanStarts(), timezone.now()
    assert starts.bounds(LANES, held) == {}
    starts.note(LANES, [], moment=now, seconds=0.2)
    starts.begin()
    assert starts.bounds(LANES, held) == dict.fromkeys(LANES, now - seconds(10))
    found = row(LANES[1], age=30)
    starts.note(LANES, [found], moment=now + seconds(5), seconds=None)
    assert starts.bounds(LANES, held) == {
        LANES[0]: now - seconds(5),  # was asked before, and had none
        LANES[1]: found.due_at - seconds(10),
        LANES[2]: now - seconds(10),  # was perhaps not asked
    }


def test_looks_at_everything_take_a_twentieth_of_the_time(present) -> None:
    starts, now = ScanStarts(), timezone.now()
    starts.bounds(LANES, SLOWED)
    starts.note(LANES, [], moment=now, seconds=0.2)
    present[0] += 3.9
    assert not starts.look_at_all(LANES)
    assert starts.bounds(LANES, SLOWED)
    present[0] += 0.2
    assert starts.look_at_all(LANES)
    assert starts.bounds(LANES, SLOWED) == {}


def test_a_change_of_the_paused_categories_forgets_everything(present) -> None:
    starts = ScanStarts()
    starts.bounds(LANES, PAUSED)
    starts.note(LANES, [], moment=timezone.now(), seconds=9.0)
    assert starts.bounds(LANES, PAUSED)
    assert starts.bounds(LANES, NOTHING) == {}


def test_a_change_of_the_slowed_domains_forgets_everything(present) -> None:
    starts = ScanStarts()
    starts.bounds(LANES, SLOWED)
    starts.note(LANES, [], moment=timezone.now(), seconds=9.0)
    assert starts.bounds(LANES, HeldBack((), [*SLOWED.domains, ("ses", "b.example")])) == {}
    assert starts.bounds(LANES, NOTHING) == {}


def queue(domain: str, number: int = 1, **options: Any) -> None:
    messages = (EmailMessage("S", "B", None, [f"to{it}@{domain}"]) for it in range(number))
    outbox.enqueue_many(messages, queue="emails", transport="smtp", **options)


@pytest.fixture
def slowed(smtp: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slow a domain down for an hour."""
    if connection.vendor != "postgresql":
        pytest.skip("generate_series, and PostgreSQL's planner")
    slowed_domains.complain("smtp", "slow.example", COMPLAINT, time.monotonic() - 9, "default")
    SlowedDomain.objects.update(next_at=timezone.now() + timedelta(hours=1))
    monkeypatch.setattr(scan_starts, "_SHARE", 1e-6)  # however fast this machine is
    yield
    slowed_domains.forget()
    scan_starts.forget()


def store_backlog(number: int, **options: Any) -> None:
    """Store so many mails of the slowed domain at the head of the queue."""
    queue("slow.example", **options)
    columns = [field.column for field in EmailLog._meta.local_concrete_fields]
    changed = {
        "id": "gen_random_uuid()",
        "due_at": "due_at - n * interval '1 second'",
        "message_id": "message_id || n",
    }
    values = ", ".join(changed.get(column, column) for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO epica_mail_emaillog ({', '.join(columns)}) SELECT {values} "
            f"FROM epica_mail_emaillog, generate_series(60, {60 + number}) AS n"
        )
        cursor.execute("ANALYZE epica_mail_emaillog")
    scan_starts.forget()


class Claims:
    """A wrapper that counts statements, and has PostgreSQL explain those that claim."""

    def __init__(self) -> None:
        self.statements = 0
        self.plans: list[str] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.statements += 1
        if "picked" in sql:
            with connection.connection.cursor() as cursor:
                cursor.execute("SAVEPOINT explained")
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
                self.plans.append(json.dumps(cursor.fetchone()[0]))
                cursor.execute("ROLLBACK TO SAVEPOINT explained")
        return execute(sql, params, many, context)


def claim_one_by_one(number: int) -> Claims:
    """Claim and settle mails one by one, as so many tasks; return what that took."""
    claims = Claims()
    for _ in range(number):
        queue("fast.example")
        with connection.execute_wrapper(claims):
            starts = scan_starts.of_queue("emails", "default")
            batch = claim.claim("emails", starts=starts)
            assert batch is not None
            assert {mail.row.domain for mail in batch.mails} == {"fast.example"}
            settle.Settler("default").release([mail.row for mail in batch.mails])
        EmailLog.objects.filter(domain="fast.example").delete()
        with connection.execute_wrapper(claims):
            assert claim.claim("emails", starts=starts) is None
    return claims


def test_a_slowed_backlog_is_neither_read_nor_asked_about_by_each_claim(slowed) -> None:
    claim_one_by_one(1)
    without = claim_one_by_one(5)
    store_backlog(ROWS)
    before = claim_one_by_one(1)
    assert max(map(rows_read, before.plans)) > ROWS / 2, "once"
    after = claim_one_by_one(5)
    assert len(after.plans) == 10
    assert max(map(rows_read, after.plans)) < 100
    assert all("epica_mail_claim" in plan for plan in after.plans)
    assert after.statements == without.statements


@pytest.fixture
def paused(smtp: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pause the bulk mail of a category."""
    if connection.vendor != "postgresql":
        pytest.skip("generate_series, and PostgreSQL's planner")
    outbox.pause(category="news")
    monkeypatch.setattr(scan_starts, "_SHARE", 1e-6)  # however fast this machine is
    yield
    scan_starts.forget()


def test_a_paused_backlog_is_not_read_by_each_claim_and_goes_once_it_is_resumed(paused) -> None:
    store_backlog(ROWS, category="news")
    before = claim_one_by_one(1)
    assert max(map(rows_read, before.plans)) > ROWS / 2, "once"
    after = claim_one_by_one(5)
    assert len(after.plans) == 10
    assert max(map(rows_read, after.plans)) < 100
    outbox.resume(category="news")
    batch = claim.claim("emails", starts=scan_starts.of_queue("emails", "default"))
    assert batch is not None
    assert {mail.row.category for mail in batch.mails} == {"news"}


def rows_read(plan: str) -> int:
    """Return the most rows that a part of a plan read."""
    nodes = [json.loads(plan)]
    most = 0
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            nodes += node.values()
            read = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
            most = max(most, read * node.get("Actual Loops", 1))
    return int(most)


def test_mail_that_was_committed_late_is_found_by_the_next_full_look(slowed, monkeypatch) -> None:
    store_backlog(100)
    claim_one_by_one(1)
    queue("fast.example")
    EmailLog.objects.filter(domain="fast.example").update(due_at=timezone.now() - seconds(60))
    starts = scan_starts.of_queue("emails", "default")
    assert claim.claim("emails", starts=starts) is None
    monkeypatch.setattr(scan_starts, "_SHARE", 1e6)
    assert claim.claim("emails", starts=starts) is not None
