"""What a person decides about mails: that one is sent now, or what became of one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import router, transaction
from django.db.models import Expression

from django_epica_mail import clock, conf, contents, doorbell, lifecycle, results
from django_epica_mail.lifecycle import Move, Status
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Decision
from django_epica_mail.settling import Outcome, announce

VERDICTS = {
    "arrived": lifecycle.SUCCEED,
    "resend": lifecycle.RESEND,
    "write off": lifecycle.WRITE_OFF,
}
"""What may be decided about an unknown mail, with the move that follows."""


def send_now(ids: Sequence[UUID]) -> int:
    """Make mails due that wait for their time; return how many."""
    using = router.db_for_write(EmailLog)
    waiting = EmailLog.objects.using(using).filter(
        pk__in=ids, status__in=lifecycle.CLAIMABLE, due_at__gt=clock.now()
    )
    with transaction.atomic(using=using):
        queues = set(waiting.order_by().values_list("queue", flat=True))
        count = waiting.update(due_at=clock.now())
        for queue in queues:
            doorbell.ring_on_commit(queue, using=using)
    return count


def decide(ids: Sequence[UUID], verdict: str) -> int:
    """Decide about unknown mails; return about how many.

    Raises ``ValueError`` for a verdict that is none of ``VERDICTS``.
    """
    if verdict not in VERDICTS:
        raise ValueError(
            f"A verdict is one of {', '.join(map(repr, VERDICTS))}; it is {verdict!r}."
        )
    move = VERDICTS[verdict]
    using = router.db_for_write(EmailLog)
    # A token nobody else has tells the mails that this call moved from those it found moved.
    token = uuid.uuid4()
    with transaction.atomic(using=using):
        unknown = EmailLog.objects.using(using).filter(status=Status.UNKNOWN)
        count: int = unknown.move(move, ids, lease_token=token, **_values(move))
        rows = EmailLog.objects.using(using).filter(pk__in=ids, lease_token=token)
        moved = list(rows.only("pk", "keep_content", "queue"))
        outcomes = [Outcome(mail, None, Decision(moves=(move,))) for mail in moved]
        if over := [it.mail.pk for it in outcomes if it.ends_content]:
            contents.forget(over, using)
        results.expect([mail.pk for mail in moved], using)
        if move is lifecycle.RESEND:
            for queue in {mail.queue for mail in moved}:
                doorbell.ring_on_commit(queue, using=using)
        transaction.on_commit(partial(announce, outcomes), using=using)
    return count


def _values(move: Move) -> dict[str, Any]:
    """Return what a row keeps, beside its status, of a decision."""
    now: Expression = clock.now()
    if move is lifecycle.RESEND:
        patience = timedelta(seconds=conf.get().give_up_after)
        return {"due_at": now, "expires_at": None, "give_up_at": clock.now(patience)}
    values: dict[str, Any] = {"finished_at": now}
    if move is lifecycle.SUCCEED:
        values.update(failure_kind="", failure_code=None, reply="")
    return values
