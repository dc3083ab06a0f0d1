"""Measure each query of each page of the admin among a million finished e-mails on PostgreSQL.

    python -m benchmarks.desk --rows 1000000

The e-mails ended within 30 days, with recipients, attempts and events, and stand beside as many
suppressions and a tenth as many bulk calls. For each page, prints the time that the database
computes for all of its queries and for its slowest one: what its process was on a processor, so
that other load on the machine matters little, without parallel workers, in the better of three
visits, so that the rows are in memory. Prints the plan of the slowest query of each page above the
limit, and of the slowest of all. Exits with 1 if a page takes longer than the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devservers.databases import DATABASES

LIMIT_MS = 300.0
ROUNDS = 3
DAYS = 30
_HOT = "all@example.com"
"""The address of a tenth of the e-mails, as a site's own office has it."""


def main() -> None:
    """Build the rows, visit the pages, and print a table in Markdown and the plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows: int = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder, DATABASES["postgresql"](Path(folder)) as server:
        server.create_database("epica_mail")
        os.environ["EPICA_TEST_DATABASE_URL"] = server.url("epica_mail")
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        started = time.perf_counter()
        build(rows)
        print(f"{rows:,} e-mails made in {time.perf_counter() - started:.0f} s.", file=sys.stderr)
        visits = list(visit())
    print(f"| page, among {rows:,} finished e-mails | queries | all, ms | the slowest, ms |")
    print("|---|---|---|---|")
    for it in visits:
        print(f"| {it.name} | {len(it.queries)} | {it.ms:.0f} | {it.slowest.ms:.0f} |")
    worst = max(visits, key=lambda it: it.slowest.ms)
    for it in visits:
        if it is worst or it.ms > LIMIT_MS:
            print(f"\n{it.name}: {it.slowest.ms:.0f} ms\n{it.slowest.sql}\n{it.slowest.plan}")
    sys.exit(int(any(it.ms > LIMIT_MS for it in visits)))


# -- the rows


def build(rows: int) -> None:
    """Store ``rows`` finished e-mails and what belongs to them."""
    from django.db import connection

    from benchmarks.backlog import build_totals
    from benchmarks.rows import template
    from django_epica_mail import suppression
    from django_epica_mail.lifecycle import Status
    from django_epica_mail.models import EmailBatch, EmailEvent

    first = int((time.time() - DAYS * 86_400) * 1000)
    step = DAYS * 86_400_000 / (rows + 1)
    moment = f"to_timestamp(({first} + n * {step}) / 1000.0)"

    def pk(number: str = "n", series: int = 0) -> str:
        """Return the SQL of a UUID of version 7 that was made at the moment of row ``number``."""
        stamp = f"lpad(to_hex(({first} + ({number}) * {step})::bigint), 12, '0')"
        tail = f"lpad(to_hex(({number})::bigint + {series} * 1000000000::bigint), 12, '0')"
        return (
            f"CAST(substr({stamp}, 1, 8) || '-' || substr({stamp}, 9, 4) || '-7000-8000-' || "
            f"{tail} AS uuid)"
        )

    address = (
        f"CASE WHEN n % 10 = 3 THEN '{_HOT}' ELSE 'user' || (n % 200000) || '@' || "
        "(ARRAY['example.com', 'example.net', 'example.org'])[1 + n % 3] END"
    )
    is_failed = "n % 50 = 0"
    failure = f"CASE WHEN {is_failed} THEN 'permanent' ELSE '' END"
    code = f"CASE WHEN {is_failed} THEN CASE WHEN n % 100 = 0 THEN 554 ELSE 550 END END"
    status = (
        f"CASE WHEN {is_failed} THEN 'failed' WHEN n % 500 = 1 THEN 'cancelled' "
        "WHEN n % 500 = 2 THEN 'expired' WHEN n % 500 = 3 THEN 'suppressed' ELSE 'sent' END"
    )
    in_batch = "n % 4 = 1"
    batch = EmailBatch.objects.create(total=0)
    mail = template(Status.SENT)
    at = mail.created_at
    event = EmailEvent.objects.create(email=mail, key="k", kind="delivered", at=at, created_at=at)
    entry = suppression.entry("one@example.com", reason="bounce")
    suppression.insert([entry])

    _copy(batch, rows // 10, {"id": pk("n * 10"), "created_at": moment, "finished_at": moment})
    _copy(
        mail,
        rows,
        {
            "id": pk(),
            "batch_id": f"CASE WHEN {in_batch} THEN {pk('10 * (1 + n / 10000 * 1000)')} END",
            "message_id": "'<' || n || '@mail.example.com>'",
            "subject": "'Order ' || n || ' is on its way'",
            "category": "(ARRAY['receipts', 'news', 'alerts', ''])[1 + n % 4]",
            "queue": "(ARRAY['emails', 'bulk_emails'])[1 + n % 2]",
            "transport": "(ARRAY['smtp', 'ses'])[1 + n % 2]",
            "status": status,
            "failure_kind": failure,
            "failure_code": code,
            "created_at": moment,
            "due_at": moment,
            "finished_at": moment,
        },
    )
    recipient = mail.recipients.get()
    _copy(recipient, rows, {"email_id": pk(), "address": address})
    attempt = mail.delivery_attempts.get()
    _copy(
        attempt,
        rows,
        {"id": pk(), "email_id": pk(), "provider_id": "'p-' || n", "created_at": moment},
    )
    for kind, every in (("delivered", 1), ("opened", 3), ("bounced", 40), ("complained", 1000)):
        values = {
            "id": pk(f"n * {every}", every),
            "email_id": pk(f"n * {every}"),
            "key": f"'{kind} ' || n",
            "kind": f"'{kind}'",
            "address": address,
            "provider_id": f"'p-' || n * {every}",
            "at": moment.replace("n *", f"n * {every} *"),
        }
        _copy(event, rows // every, values)
    values = {"id": pk(), "address": "'no' || n || '@example.org'", "digest": "md5('' || n)"}
    _copy(entry, rows, {**values, "created_at": moment})
    build_totals()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


def _copy(row: Any, copies: int, values: dict[str, str]) -> None:
    """Insert copies of a row; ``values`` is the SQL of the columns in which they differ."""
    from django.db import connection
    from django.db.models import AutoField

    table = row._meta.db_table
    fields = [it for it in row._meta.local_concrete_fields if not isinstance(it, AutoField)]
    columns = {it.column: values.get(it.column, it.column) for it in fields}
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - our own names
            f"SELECT {', '.join(columns.values())} FROM {table}, generate_series(1, {copies}) AS n "
            f"WHERE id = '{row.pk}'".replace("%", "%%"),
            [],
        )
    print(".", end="", file=sys.stderr, flush=True)


# -- the pages


@dataclass(slots=True)
class Query:
    """A query of a page."""

    sql: str
    parameters: Any
    ms: float
    plan: str = ""


@dataclass(slots=True)
class Visit:
    """What a page costs the database."""

    name: str
    queries: list[Query]

    @property
    def ms(self) -> float:
        """The time of all of its queries."""
        return sum(it.ms for it in self.queries)

    @property
    def slowest(self) -> Query:
        """The query that takes longest."""
        return max(self.queries, key=lambda it: it.ms)


def pages() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield each page: what it shows, the name of its URL and its query string."""
    from django_epica_mail.admin.changelist.afterwards import OUTCOMES
    from django_epica_mail.lifecycle import Status
    from django_epica_mail.models import EmailBatch, EmailLog

    mail = EmailLog.objects.filter(batch__isnull=False, status="sent").order_by("pk")[1000]
    mails, batches = "emaillog_changelist", "emailbatch_changelist"
    yield "dashboard", "emailtotal_changelist", {}
    yield "dashboard, 90 days", "emailtotal_changelist", {"period": "90d"}
    yield "one e-mail", f"emaillog_change {mail.pk}", {}
    yield "list", mails, {}
    yield "list, page 200", mails, {"p": "200"}
    narrowed = [
        *(("status", it.value) for it in Status),
        *(("now", it) for it in ("waiting", "due", "in_flight", "sent")),
        *(("after", it.kind.value) for it in OUTCOMES),
        *(("failure_kind", it) for it in ("permanent", "temporary")),
        *(("code", it) for it in ("550", "421", "0")),
        *(("ended", it) for it in ("hour", "day", "week", "month")),
        *(("since", it) for it in ("hour", "month")),
        ("queue", "bulk_emails"),
        ("queue", "unknown"),
        ("transport", "ses"),
        ("category", "news"),
        ("category", "unknown"),
        ("batch", str(mail.batch_id)),
    ]
    for name, value in narrowed:
        yield f"list, {name} {'of a call' if name == 'batch' else value}", mails, {name: value}
    yield (
        "list, a reason of a week",
        mails,
        {"status": "failed", "failure_kind": "permanent", "code": "554", "ended": "week"},
    )
    yield "list, reports of spam of a category", mails, {"after": "complained", "category": "news"}
    for name, term in (
        ("an id", str(mail.pk)),
        ("a Message-ID", mail.message_id),
        ("a Message-ID without brackets", mail.message_id.strip("<>")),
        ("a provider's id", "p-4711"),
        ("an address", "user4711@example.com"),
        ("an address of a tenth of the mail", _HOT),
        ("an unknown address", "nobody@example.com"),
        ("the beginning of an address", "user4711@"),
        ("the beginning of very many addresses", "user*"),
        ("a word or beginning", "user47"),
        ("a domain", "@example.org"),
        ("an unknown domain", "nowhere.example"),
        ("words of a subject", "order 999"),
        ("words of no subject", "nothing like it"),
    ):
        yield f"search, {name}", mails, {"q": term}
    yield "bulk calls", batches, {}
    yield "bulk calls, page 200", batches, {"p": "200"}
    yield "bulk calls, words of a subject", batches, {"q": "order way"}
    yield "bulk calls, an id", batches, {"q": str(EmailBatch.objects.order_by("pk")[99].pk)}
    yield "one bulk call", f"emailbatch_change {mail.batch_id}", {}
    for name, value in (("", ""), ("kind__exact", "bounced"), ("kind__exact", "delivered")):
        yield f"events {value}".strip(), "emailevent_changelist", {name: value} if name else {}
    yield "events, machines", "emailevent_changelist", {"is_machine__exact": "1"}
    yield "events, page 100", "emailevent_changelist", {"p": "100"}
    for name, term in (("an address", _HOT), ("an id", str(mail.pk)), ("a provider's id", "p-7")):
        yield f"events, {name}", "emailevent_changelist", {"q": term}
    yield "suppressions", "suppression_changelist", {}
    yield "suppressions, complaint", "suppression_changelist", {"reason__exact": "complaint"}
    yield "suppressions, bounce", "suppression_changelist", {"reason__exact": "bounce"}
    yield "suppressions, an address", "suppression_changelist", {"q": "no4711@example.org"}
    yield "queues and transports", "deliverygate_changelist", {}


def visit() -> Iterator[Visit]:
    """Visit each page several times, and yield the cheapest visit."""
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client, override_settings
    from django.urls import path, reverse

    client = Client()
    client.force_login(User.objects.create_superuser("benchmark"))
    urlconf = (path("admin/", admin.site.urls),)
    with connection.cursor() as cursor:
        cursor.execute("SET max_parallel_workers_per_gather = 0")
    with override_settings(ROOT_URLCONF=urlconf, ALLOWED_HOSTS=["testserver"]):
        for name, page, query in pages():
            view, *args = page.split()
            url = reverse(f"admin:epica_mail_{view}", args=args)
            visits = [Visit(name, _queries(client, url, query)) for _ in range(ROUNDS)]
            best = min(visits, key=lambda it: it.ms)
            best.slowest.plan = _plan(best.slowest)
            print(f"{name}: {best.ms:.0f} ms", file=sys.stderr)
            yield best


def _queries(client: Any, url: str, query: dict[str, str]) -> list[Query]:
    from django.db import connection

    found: list[Query] = []

    def measured(
        execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        started = _computed()
        try:
            return execute(sql, params, many, context)
        finally:
            found.append(Query(sql, params, _computed() - started))

    with connection.execute_wrapper(measured):
        answer = client.get(url, query)
    assert answer.status_code == 200, (url, query, answer.status_code)
    return found


def _computed() -> float:
    """Return how many milliseconds the connection's process has been on a processor (Linux)."""
    from django.db import connection

    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def _plan(query: Query) -> str:
    """Return how PostgreSQL runs a query, with the rows and buffers of each step."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {query.sql}", query.parameters)
        return "\n".join(line for (line,) in cursor.fetchall())


if __name__ == "__main__":
    main()
