"""Attacks by somebody who can write to the database: no value in one row stops the other mail.

Each column of each table gets values at its edges, one at a time. Then a worker claims, the sweep
runs, totals, health and metrics are taken, and the pages of the admin are opened.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from functools import partial
from typing import Any

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
from django_epica_mail.monitoring import backlog, health, metrics
from django_epica_mail.queueing import bulk
from tests.integration.admin.pages import client_of, url

MODELS = sorted(apps.get_app_config("epica_mail").get_models(), key=lambda it: it.__name__)
ENTRY = {"subject": "S", "message": "M", "recipient_list": ["bulk@example.org"]}
LISTS = ("emaillog", "emailbatch", "deliverygate", "emailevent", "suppression", "emailtotal")
VIEWER = tuple(f"view_{it}" for it in LISTS if it != "emailtotal")
OPEN_PAGES = True
TEXT = "\x1b[31m<b>%s{}\"'\n:@"

EDGES: list[tuple[type[models.Field[Any, Any]], tuple[object, ...]]] = [
    (models.DateTimeField, ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")),
    (models.DateField, ("0001-01-01", "9999-12-31")),
    (models.PositiveSmallIntegerField, (0, 2**15 - 1)),
    (models.PositiveIntegerField, (0, 2**31 - 1)),
    (models.PositiveBigIntegerField, (0, 2**63 - 1)),
    (models.FloatField, (0.0, -1.0, 1e-300, 1e300, float("inf"))),
    (models.JSONField, ("{}", "[" + "1," * 60 + "1]", f"[{10**400}, true, -1, null]")),
    (models.CharField, ("", TEXT)),
    (models.TextField, ("", TEXT * 1000)),
]
"""What is written into the columns of a kind; the first kind that fits counts."""


def edges(field: models.Field[Any, Any]) -> tuple[object, ...]:
    found = next((values for kind, values in EDGES if isinstance(field, kind)), ())
    size = field.max_length
    return tuple(it[:size] if isinstance(it, str) and size else it for it in found)


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


def problems_of(house: EmailLog, queue_mail: Any, client: Any) -> list[str]:
    """Queue other mail, do everything that reads rows, and return what failed."""
    other = queue_mail("other@example.net")
    slowed_domains.forget()
    deeds: dict[str, Any] = {
        "worker": lambda: worker.deliver("emails"),
        "sweep": maintenance.dispatch,
        "retry": maintenance.retry_failed,
        "clean-up": maintenance.cleanup,
        "health": health.measure,
        "status": lambda: backlog.status().as_dict(),
        "metrics": lambda: metrics.exposition(""),
    }
    if client is not None:
        pages = [*(url(f"{it}_changelist") for it in LISTS), url("emaillog_change", house.pk)]
        deeds |= {page: partial(client.get, page) for page in pages}
    problems = []
    for name, do in deeds.items():
        try:
            answer = do()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            problems.append(f"{name}: {error!r}"[:200])
        else:
            code = getattr(answer, "status_code", 200)
            problems += [f"{name}: {code}"] if code != 200 else []
    if not EmailLog.objects.filter(pk=other.pk, status="sent").exists():
        problems.append("other mail is not sent")
    return problems


@pytest.mark.parametrize("model", MODELS, ids=lambda it: it.__name__)
def test_no_value_in_a_row_stops_other_mail(house, smtp, queue_mail, model) -> None:
    client = client_of(*VIEWER) if OPEN_PAGES else None
    found: dict[str, list[str]] = {}
    for field in model._meta.local_fields:
        if field.primary_key or field.is_relation:
            continue
        for value in edges(field):
            with transaction.atomic():
                if damage(model, field, value) and (
                    problems := problems_of(house, queue_mail, client)
                ):
                    found[f"{field.name} = {value!r}"[:60]] = problems
                transaction.set_rollback(True)
    assert found == {}
