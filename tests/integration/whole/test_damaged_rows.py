"""Attacks by somebody who can write to the database: no value in one row stops the other mail.

Each column of times, numbers and lists gets values at its edges, one at a time, and on SQLite those
of text get bytes, and those of numbers text. Then a worker claims, the sweep runs and counts, and
health and metrics are taken. With the last value in each column of a table, the pages of the admin
are opened. ``test_admin_security`` writes into the columns of text.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from itertools import chain
from typing import Any

import django
import pytest
from django.apps import apps
from django.core.mail import EmailMessage
from django.db import Error, connection, models, transaction
from django.utils import timezone

from django_epica_mail import maintenance, outbox, suppression
from django_epica_mail.delivery import worker
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.models import (
    DeliveryGate,
    EmailEvent,
    EmailLog,
    PendingResult,
    ReputationDay,
    SlowedDomain,
)
from django_epica_mail.monitoring import backlog, metrics
from django_epica_mail.queueing import bulk
from tests.integration.admin.pages import client_of, url

MODELS = sorted(apps.get_app_config("epica_mail").get_models(), key=lambda it: it.__name__)
ENTRY = {"subject": "S", "message": "M", "recipient_list": ["bulk@example.org"]}
LISTS = ("emaillog", "emailbatch", "deliverygate", "emailevent", "suppression", "emailtotal")
VIEWER = tuple(f"view_{it}" for it in LISTS if it != "emailtotal")

EDGES: list[tuple[type[models.Field[Any, Any]], tuple[object, ...]]] = [
    (models.DateTimeField, ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")),
    (models.DateField, ("0001-01-01", "9999-12-31")),
    (models.PositiveSmallIntegerField, (0, 2**15 - 1)),
    (models.PositiveIntegerField, (0, 2**31 - 1)),
    (models.PositiveBigIntegerField, (0, 2**63 - 1)),
    (models.FloatField, (1e-300, -1.0, 1e300)),
    (
        models.JSONField,
        ("{}", "[" + "1," * 60 + "1]", f"[{10**400}, true, -1, null]", f"[{'9' * 5000}]"),
    ),
]
"""What is written into the columns of a kind; the first kind that fits counts."""
OF_SQLITE: list[tuple[type[models.Field[Any, Any]], tuple[object, ...]]] = [
    (models.CharField, (b"\xff",)),
    (models.TextField, (b"\xff",)),
    (models.JSONField, (b"\xff",)),
    (models.BooleanField, (b"\xff",)),
    (models.IntegerField, ("abc",)),
    (models.FloatField, ("abc",)),
]
"""What SQLite, whose columns have no types, stores as well; tried with the newest Django alone."""


def edges(field: models.Field[Any, Any]) -> tuple[object, ...]:
    has_no_types = connection.vendor == "sqlite" and django.VERSION >= (6, 1)
    tables = [EDGES, *([OF_SQLITE] if has_no_types else ())]
    found = (next((it for kind, it in table if isinstance(field, kind)), ()) for table in tables)
    return tuple(chain.from_iterable(found))


@pytest.fixture
def house(site: None, smtp: Any, queue_mail: Any, deliver: Any, travel: Any) -> EmailLog:
    """Store a row in every table, none of which concerns mail to ``other@example.net``.

    Returns a mail that waits.
    """
    now = timezone.now()
    attached = EmailMessage("S", "B", None, ["hurt@slow.example"])
    attached.attach("a.txt", "text" * 1000, "text/plain")
    outbox.enqueue(attached, transport="smtp")
    bulk.submit([ENTRY])
    deliver()
    sent = EmailLog.objects.get()
    travel(minutes=10)
    maintenance.dispatch()
    unknown = queue_mail("unknown@slow.example")
    EmailLog.objects.filter(pk=unknown.pk).update(
        status="unknown", pending=None, failure_kind="unknown", tries=1, attempts=1
    )
    dead = queue_mail("dead@slow.example")
    EmailLog.objects.filter(pk=dead.pk).update(
        status="sending", pending=None, lease_token=uuid.uuid4(), lease_until=now
    )
    failed = queue_mail("failed@slow.example")
    EmailLog.objects.filter(pk=failed.pk).update(
        status="failed", pending=None, failure_kind="transient", finished_at=now
    )
    SlowedDomain.objects.create(
        transport="smtp",
        domain="slow.example",
        ceiling=5,
        changed_at=now + timedelta(minutes=9),
        since=now,
        next_at=now,
    )
    for scope in ("queue", "transport", "category"):
        DeliveryGate.objects.create(
            scope=scope, name="elsewhere", paused=True, paused_at=now, outages=1, open_until=now
        )
    EmailEvent.objects.create(email=sent, key="k", kind="bounced", at=now, created_at=now)
    ReputationDay.objects.create(
        day=now.date(), category="news", domain="example.com", mails=1000, bounced=900
    )
    PendingResult.objects.create(email=sent, due_at=now)
    suppression.add("nobody@example.org")
    return queue_mail("hurt@slow.example")


def damage(model: type[models.Model], field: models.Field[Any, Any], value: object) -> bool:
    """Write a value into a column of every row; return whether the database took it."""
    quote = connection.ops.quote_name
    statement = f"UPDATE {quote(model._meta.db_table)} SET {quote(str(field.column))} = %s"
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement, [value])
            return bool(cursor.rowcount)
    except Error:
        return False


def problems_of(queue_mail: Any) -> list[str]:
    """Queue other mail, do what reads rows, and return what failed."""
    other = queue_mail("other@example.net")
    slowed_domains.forget()
    problems = []
    for name, do in {
        "worker": lambda: worker.deliver("emails"),
        "sweep": maintenance.dispatch,
        "retry": maintenance.retry_failed,
        "status": lambda: backlog.status().as_dict(),
        "metrics": lambda: metrics.exposition(""),  # and health
    }.items():
        try:
            do()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            problems.append(f"{name}: {error!r}"[:200])
    if not EmailLog.objects.filter(pk=other.pk, status="sent").exists():
        problems.append("other mail is not sent")
    return problems


@pytest.mark.parametrize("model", MODELS, ids=lambda it: it.__name__)
def test_no_value_in_a_row_stops_other_mail(house, smtp, queue_mail, model) -> None:
    found: dict[str, list[str]] = {}
    fields = [it for it in model._meta.local_fields if not (it.primary_key or it.is_relation)]
    for field in fields:
        for value in edges(field):
            with transaction.atomic():
                if damage(model, field, value) and (problems := problems_of(queue_mail)):
                    found[f"{field.name} = {value!r}"[:60]] = problems
                transaction.set_rollback(True)
    assert found == {}
    for field in fields:
        for value in edges(field)[-1:]:
            damage(model, field, value)
    client = client_of(*(f"view_{it}" for it in LISTS if it != "emailtotal"))
    for page in (*(url(f"{it}_changelist") for it in LISTS), url("emaillog_change", house.pk)):
        assert client.get(page).status_code == 200, page


def test_mail_in_a_queue_without_a_name_stops_no_report(house) -> None:
    EmailLog.objects.filter(status="unknown").update(queue="")
    assert backlog.status().queues[""].by_status == {"unknown": 1}
