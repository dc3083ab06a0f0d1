"""The statement of a claim on PostgreSQL reads what is due, and no more."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from benchmarks.rows import multiply, template
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog
from django_epica_mail.queueing import dequeue

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL's statement"),
]


QUEUE = "claims"
"""A queue of this test's own: what other tests leave in the index of theirs are pages as well."""


def stored(status: Status, **given: Any) -> EmailLog:
    mail = template(status, **given)
    mail.queue = QUEUE
    mail.save()
    return mail


def claimed(number: int = 10) -> list[EmailLog]:
    lanes = [("smtp", level) for level in (9, 5, 0)]
    lease = dequeue.Lease(uuid.uuid4(), 60.0, "host:1")
    return dequeue.take(QUEUE, lanes, number, lease, using="default")


def store_finished(number: int) -> None:
    multiply(stored(Status.SENT, finished=-timedelta(days=2)), number)
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {EmailLog._meta.db_table}")


@pytest.mark.parametrize("waiting", [1, 9, 10, 11])
def test_the_oldest_are_claimed_whether_or_not_they_fill_a_claim(waiting: int) -> None:
    multiply(stored(Status.QUEUED, priority=5), waiting - 1)
    oldest = list(
        EmailLog.objects.filter(queue=QUEUE).order_by("due_at").values_list("pk", flat=True)[:10]
    )
    assert [mail.pk for mail in claimed()] == oldest
    assert len(claimed()) == max(0, waiting - 10)


def test_what_is_left_of_a_claim_goes_to_the_oldest_of_a_lane_that_is_not_full() -> None:
    store_finished(10_000)
    multiply(stored(Status.QUEUED, priority=5), 5)
    hours = (1, 2, 3, 4, 5, 6, 7, 8)
    waiting = [stored(Status.QUEUED, priority=0, due=-timedelta(hours=it)) for it in hours]
    found = [mail.pk for mail in claimed()]
    assert found[6:] == [mail.pk for mail in reversed(waiting)][:4]


def pages_of(plan: dict[str, Any]) -> Iterator[int]:
    """Yield how many pages each scan of the index of claims reads."""
    if plan.get("Index Name") == "epica_mail_claim":
        yield plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    for part in plan.get("Plans", ()):
        yield from pages_of(part)


def test_a_claim_that_is_not_full_reads_none_of_the_finished_mail() -> None:
    stored(Status.QUEUED, priority=5)
    store_finished(10_000)
    pages: list[int] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().startswith("WITH"):
            with connection.connection.cursor() as own:
                own.execute("SAVEPOINT explained")
                own.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
                plan = own.fetchone()[0][0]["Plan"]
                own.execute("ROLLBACK TO SAVEPOINT explained")
            pages.append(sum(pages_of(plan)))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        assert len(claimed()) == 1
    assert len(pages) == 1
    assert pages[0] < 60  # the index of the finished rows has some 150
