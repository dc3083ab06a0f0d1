"""How the queue stands, in numbers that cost little however many rows there are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import router
from django.db.models import Count, Max, Min, Q

from django_epica_mail import clock, gates, lifecycle
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS

_DAY = 24 * 3600.0


def status() -> dict[str, Any]:
    """Return counts by queue and status, the oldest mail due, and what holds mail back.

    Counted is what is on its way, and what came to its end in the last 24 hours: the rest is
    history, and counting it would read all of it.
    """
    using = router.db_for_read(EmailLog)
    report: dict[str, Any] = {}
    for queue, state, count in _counts(using):
        counts = report.setdefault(queue, {})
        counts[state] = counts.get(state, 0) + count
    for queue, due in _oldest_due(using):
        report[queue]["oldest due"] = due
    gate = DeliveryGate.objects.using(using).aggregate(at=Max("last_sweep_at"))
    return {
        "queues": {queue: report[queue] for queue in sorted(report)},
        "unfinished batches": EmailBatch.objects.using(using).filter(finished_at=None).count(),
        "last sweep": gate["at"],
        "held back": gates.Gates(using).reasons(),
    }


def _counts(using: str) -> list[tuple[str, str, int]]:
    found = []
    recent = Q(finished_at__isnull=True), Q(finished_at__gt=clock.now(-_DAY))
    for kind in ("", *Kind):  # the index begins with it
        for end in recent:
            rows = EmailLog.objects.using(using).filter(end, failure_kind=kind)
            counted = rows.order_by().values_list("queue", "status").annotate(count=Count("pk"))
            found += list(counted)
    return found


def _oldest_due(using: str) -> list[tuple[str, datetime]]:
    waiting = EmailLog.objects.using(using).filter(
        status__in=lifecycle.CLAIMABLE, pending__lt=LEVELS.stop, due_at__lte=clock.now()
    )
    oldest = waiting.order_by().values("queue").annotate(due=Min("due_at"))
    return list(oldest.values_list("queue", "due"))
