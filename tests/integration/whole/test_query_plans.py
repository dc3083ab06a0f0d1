"""The hot queries use an index and read few rows, even in a large table with old statistics.

The database explains each statement as the function itself runs it, with its own parameters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import django
import pytest
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings
from django.utils import timezone

from benchmarks.rows import analyze, multiply, template
from django_epica_mail import conf, lifecycle, maintenance, outbox
from django_epica_mail.admin.base import BoundedPaginator
from django_epica_mail.admin.changelist import filters
from django_epica_mail.admin.changelist.search import search
from django_epica_mail.delivery import claim, gates, settle
from django_epica_mail.delivery.limits.waiting import has_claimable
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.prepare import MessageLoader
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import (
    CountingMark,
    DeliveryAttempt,
    DeliveryGate,
    EmailLog,
    EmailRecipient,
)
from django_epica_mail.monitoring import backlog as monitoring_backlog
from django_epica_mail.monitoring import health, history, totals
from django_epica_mail.monitoring.backlog import waiting
from django_epica_mail.queueing import dequeue
from django_epica_mail.retry import Decision, Failure, Kind, Result

BIG = {model._meta.db_table for model in (EmailLog, EmailRecipient, DeliveryAttempt)}
MOST_ROWS = 2_000
"""What one statement may read: a chunk of 500 rows, and some related rows for each."""


@dataclass
class Examined:
    """One statement, and how the database executed it."""

    sql: str
    scanned: set[str] = field(default_factory=set)
    """The tables that were scanned completely."""
    rows: float = 0
    """How many rows and index entries were read."""
    plan: object = None


class Examiner:
    """A wrapper that has the database explain every statement just before executing it."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._explain = {
            "postgresql": self._postgresql,
            "mysql": self._mariadb,
            "sqlite": self._sqlite,
        }[connection.vendor]
        self.statements: list[Examined] = []

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        if not many and sql.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            statement = Examined(sql)
            self._explain(statement, params)
            self.statements.append(statement)
        return execute(sql, params, many, context)

    def _run(self, sql: str, params: Any) -> list[tuple[Any, ...]]:
        """Run a statement without Django, so that it is not explained itself."""
        with closing(self._connection.connection.cursor()) as cursor:
            cursor.execute("SAVEPOINT examined")
            cursor.execute(sql, params)
            rows = list(cursor.fetchall())
            cursor.execute("ROLLBACK TO SAVEPOINT examined")
        return rows

    def _postgresql(self, statement: Examined, params: Any) -> None:
        ((plan,),) = self._run(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.sql}", params)
        statement.plan = plan
        for node in _nodes(plan, "Node Type"):
            if node["Node Type"] == "Seq Scan":
                statement.scanned.add(node["Relation Name"])
            if node["Node Type"].endswith("Scan"):
                read = sum(node.get(key, 0) for key in _READ)
                statement.rows += read * node["Actual Loops"]

    def _mariadb(self, statement: Examined, params: Any) -> None:
        ((text,),) = self._run(f"ANALYZE FORMAT=JSON {statement.sql}", params)
        statement.plan = plan = json.loads(text)
        for node in _nodes(plan, "access_type"):
            if node["access_type"] in ("ALL", "index") and "r_rows" in node:
                statement.scanned.add(node["table_name"])
            statement.rows += (node.get("r_rows") or 0) * (node.get("r_loops") or 1)

    def _sqlite(self, statement: Examined, params: Any) -> None:
        sql = statement.sql % (("?",) * len(params))
        statement.plan = details = [
            row[3] for row in self._run(f"EXPLAIN QUERY PLAN {sql}", params)
        ]
        statement.scanned = {detail.split()[1] for detail in details if detail.startswith("SCAN ")}
        # SQLite does not report the rows read, but each row costs several of its instructions.
        instructions = itertools.count()
        raw = self._connection.connection
        raw.set_progress_handler(lambda: next(instructions) and None, _INSTRUCTIONS_A_ROW)
        self._run(sql, params)
        raw.set_progress_handler(None, 0)
        statement.rows = next(instructions)


_INSTRUCTIONS_A_ROW = 40
_READ = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")


def _nodes(plan: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that have ``key``, at any depth."""
    if isinstance(plan, dict):
        if key in plan:
            yield plan
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from _nodes(part, key)


DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def fill_with_finished_mail() -> None:
    """Store finished mail, which is nearly all mail."""
    sent = template(Status.SENT, finished=-2 * DAY, give_up=DAY)
    multiply(sent, 20_000)
    refused = template(Status.FAILED, finished=-2 * DAY, give_up=DAY, kind=Kind.PERMANENT)
    multiply(refused, 5_000)


def fill_with_other_mail() -> None:
    """Store a backlog, and some rows for each periodic task."""
    multiply(template(Status.QUEUED, due=DAY, give_up=4 * DAY), 20_000)
    multiply(template(Status.QUEUED, priority=5), 5_000)
    multiply(template(Status.QUEUED, priority=0, transport="gone", give_up=-HOUR), 5_000)
    multiply(template(Status.RETRYING, transport="down", give_up=-HOUR), 2_999)
    multiply(template(Status.QUEUED, transport="down"), 5_000)
    multiply(template(Status.SENDING, leased=-HOUR), 99)
    multiply(template(Status.SENDING, leased=HOUR), 99)
    multiply(template(Status.SENT, finished=-40 * DAY, give_up=-37 * DAY), 2_999)
    failed = template(Status.FAILED, finished=-HOUR, give_up=DAY, kind=Kind.TRANSIENT)
    multiply(failed, 600)
    failed_long_ago = template(Status.FAILED, finished=-9 * DAY, give_up=-6 * DAY, kind="transient")
    multiply(failed_long_ago, 5_000)


@pytest.fixture(scope="module", params=["counted", "counted before the backlog came"])
def backlog(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> Iterator[None]:
    """Fill the tables, and update the statistics afterwards or, worse, halfway."""
    with django_db_blocker.unblock(), override_settings(**SITE):
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                for table in BIG:
                    cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        fill_with_finished_mail()
        analyze()
        fill_with_other_mail()
        if request.param == "counted":
            analyze()
        gates.trip("down", Failure(kind=Kind.OUTAGE), "default")
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        for table in sorted(BIG, key=lambda name: name == EmailLog._meta.db_table):
            cursor.execute(f"DELETE FROM {table}")
        DeliveryGate.objects.all().delete()
        if connection.vendor == "postgresql":
            for table in BIG:
                cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")
        analyze()


SPECS = {
    name: {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"}
    for name in ("smtp", "down", "idle")
}
SITE: dict[str, Any] = (
    {"MAILERS": SPECS, "EPICA_MAIL": {"DEFAULT_TRANSPORT": "smtp"}}
    if django.VERSION >= (6, 1)
    else {"EPICA_MAIL": {"TRANSPORTS": SPECS, "DEFAULT_TRANSPORT": "smtp"}}
)


@pytest.fixture
def examined(backlog: None, db: None, settings: Any) -> Iterator[list[Examined]]:
    """Collect the statements that are run, and check them at the end."""
    for name, value in SITE.items():
        setattr(settings, name, value)
    examiner = Examiner(connection)
    with connection.execute_wrapper(examiner):
        yield examiner.statements
    assert examiner.statements
    for statement in examiner.statements:
        about = f"{statement.sql[:2000]}\n{json.dumps(statement.plan, indent=1)}"
        assert not statement.scanned & BIG, f"reads all rows: {about}"
        assert statement.rows <= MOST_ROWS, f"reads {statement.rows} rows: {about}"


def held() -> claim.Batch:
    batch = claim.claim("emails")
    assert batch is not None
    return batch


def test_the_sweep_finds_the_queues(examined) -> None:
    assert list(dequeue.queues("default")) == ["emails"]


def test_the_sweep_finds_what_is_due(examined) -> None:
    assert list(dequeue.due_levels("emails", "smtp", "default")) == [9, 5]
    assert has_claimable("emails", "default")


def test_the_sweep_rescues(examined) -> None:
    assert maintenance.rescue() == 100


def test_the_sweep_gives_up_what_is_overdue(examined) -> None:
    assert maintenance.give_up_overdue() == 3_000


@pytest.mark.parametrize("pause", [{"transport": "down"}, {"queue": "emails"}])
def test_the_sweep_spares_what_is_paused(examined, pause) -> None:
    outbox.pause(**pause)
    assert maintenance.give_up_overdue() == 0


def test_a_worker_claims(examined) -> None:
    batch = held()
    assert {mail.row.priority for mail in batch.mails} == {5}
    assert len(batch.mails) == conf.get().batch_size
    MessageLoader(batch)


def test_a_worker_settles_and_releases(examined) -> None:
    batch = held()
    sent = Decision(moves=(lifecycle.SUCCEED,))
    later = Decision(moves=(lifecycle.POSTPONE,), failure=Failure(kind=Kind.TRANSIENT))
    outcomes = [
        *(Outcome(mail.row, Result(code=250, seconds=0.1), sent) for mail in batch.mails[:5]),
        *(Outcome(mail.row, Result(failure=later.failure), later) for mail in batch.mails[5:7]),
    ]
    assert len(settle.settle(outcomes, using=batch.using)) == 7
    settle.Settler(batch.using).release([mail.row for mail in batch.mails[7:]])


def test_people_cancel(examined) -> None:
    ids = [mail.pk for mail in dequeue.due("emails", "smtp", 5, "default")[:100]]
    assert len(outbox.cancel(ids).cancelled) == 100


def test_the_retry_of_failed_mail(examined) -> None:
    assert maintenance.retry_failed() == 601


def test_the_clean_up(examined, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "forget_given_up", lambda using: 0)  # tested below
    assert maintenance.cleanup() == 3_000


def test_the_sweep_counts(examined) -> None:
    end = timezone.now() - 55 * timedelta(minutes=1)
    start = end - timedelta(minutes=30)
    CountingMark.objects.create(pk=1, counted_until=start)
    assert totals._count_window(start, end, "default") == 601


def test_the_nightly_search_for_given_up_mail(reads_little) -> None:
    assert maintenance.forget_given_up("default") == 0


@pytest.fixture
def reads_little(backlog: None, db: None, settings: Any) -> Iterator[None]:
    """Check that no statement scans a whole table, unless it stops after a few rows."""
    for name, value in SITE.items():
        setattr(settings, name, value)
    examiner = Examiner(connection)
    with connection.execute_wrapper(examiner):
        yield
    for statement in examiner.statements:
        about = f"{statement.sql[:2000]}\n{json.dumps(statement.plan, indent=1)}"
        reads_all = statement.scanned & BIG and statement.rows > MOST_ROWS
        assert not reads_all, f"reads all rows: {about}"


def test_the_status_counts_without_reading_history(reads_little) -> None:
    status = monitoring_backlog.status().queues["emails"]
    pairs = [("emails", "down"), ("emails", "gone"), ("emails", "smtp")]
    assert list(waiting("default")) == pairs
    assert (status.waiting, status.due) == (38_004, 18_003)


def test_the_dashboard_counts_mail_of_the_last_minute(examined) -> None:
    assert history.sent_in_a_minute("default") == {}


def test_the_health_check_looks_at_a_few_rows(reads_little) -> None:
    pairs = {("emails", "down"), ("emails", "gone"), ("emails", "smtp")}
    assert health.measure().due_ages.keys() == pairs


def test_a_search_by_ids_and_addresses(examined) -> None:
    mail = EmailLog.objects.order_by("pk")[10_000]
    address = f"only.one.{mail.pk.hex}@plans.example"
    mail.recipients.create(position=99, kind="to", address=address)
    mail.delivery_attempts.create(
        number=99, transport="smtp", created_at=timezone.now(), provider_id="provider-1"
    )
    bare = f"{mail.pk.hex}@wanted.example"
    EmailLog.objects.filter(pk=mail.pk).update(message_id=f"<{bare}>")
    examined.clear()
    terms = [str(mail.pk), bare, f"<{bare}>", "provider-1", address, address[:20] + "*"]
    if connection.vendor == "sqlite":  # reads all attempts while its statistics know of one id
        terms = terms[:1]
    for term in terms:
        found = search(EmailLog.objects.all(), term).order_by().values_list("pk", flat=True)
        assert list(found) == [mail.pk], term


def test_the_list_of_what_failed_for_one_reason(examined) -> None:
    rows = EmailLog.objects.order_by("-pk")
    kind, code, ended = (filters.FailureFilter, filters.CodeFilter, filters.EndedFilter)
    rows = kind.narrow(object(), rows, "transient")  # type: ignore[arg-type]
    rows = ended.narrow(object(), rows, "day")  # type: ignore[arg-type]
    rows = code.narrow(object(), rows, "0")  # type: ignore[arg-type]
    assert len(BoundedPaginator(rows, 50)._ids) == 601
