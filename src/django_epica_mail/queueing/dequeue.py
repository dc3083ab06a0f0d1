"""Takes due mail from the queue: finds it, and marks it as held by one worker's claim.

PostgreSQL does both in one statement; for other databases the ORM reads and marks the rows in one
transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import BooleanField, Exists, ExpressionWrapper, Max, OuterRef, Q

from django_epica_mail import clock, lifecycle, suppression
from django_epica_mail.models import EmailLog, EmailQuerySet
from django_epica_mail.queueing.rows import claim_statement, instances, wrong_ids
from django_epica_mail.queueing.rows.columns import compile_expression
from django_epica_mail.retry import ENDED_WORKER
from django_epica_mail.rules import LEVELS

Lane = tuple[str, int]
"""A transport and a priority: one part of a queue whose mail goes in order of ``due_at``."""


class Lease(NamedTuple):
    """What marks rows as held by one worker's claim."""

    token: uuid.UUID
    seconds: float
    """How long the claim may hold them."""
    worker: str


class HeldBack(NamedTuple):
    """What may not be claimed, although it is due."""

    categories: Sequence[str] = ()
    """Categories whose bulk mail waits."""
    domains: Sequence[tuple[str, str]] = ()
    """Pairs of a transport and a recipients' domain whose mail waits."""


NOTHING = HeldBack()


class Accepted(NamedTuple):
    """The first attempt at an e-mail, accepted for every recipient."""

    id: uuid.UUID
    email_id: uuid.UUID
    token: uuid.UUID
    """The claim under which it was made."""
    number: int
    transport: str
    worker: str
    seconds: float | None
    code: int | None
    reply: str
    provider_id: str


_TRIES = 5
"""How often rows are read again on a database without row locks, where others may be faster."""


def lanes_together(using: str) -> bool:
    """Return whether ``take`` asks for many lanes in one statement."""
    return connections[using].vendor == "postgresql"


def take(
    queue: str,
    lanes: Sequence[Lane],
    limit: int,
    lease: Lease,
    *,
    using: str,
    bounds: Mapping[Lane, datetime] | None = None,
    held_back: HeldBack = NOTHING,
) -> list[EmailLog]:
    """Claim up to ``limit`` due e-mails of the first lanes that hold any, and return their rows.

    The rows have one transport, are in claim order, and tell in ``too_old``, ``is_expired``,
    ``has_suppressions`` and ``has_attachments`` what was true at the claim. ``bounds`` is the
    ``due_at`` to begin at, by lane. Rows that other workers are claiming are skipped, and those
    ``held_back``.
    """
    bounds = bounds or {}
    if lanes_together(using):
        taken = _take_at_once(queue, lanes, limit, lease, using, bounds, held_back=held_back)
        return _release_beyond_suspect(_in_order(taken), lease.token, using)
    for lane in lanes:
        rows_due = due(queue, *lane, using, held_back)
        if lane in bounds:
            rows_due = rows_due.filter(due_at__gte=bounds[lane])
        if rows := take_from(rows_due, limit, lease):
            return rows
    return []


def settle_and_take(
    accepted: Sequence[Accepted],
    queue: str,
    lanes: Sequence[Lane],
    limit: int,
    lease: Lease,
    *,
    using: str,
    bounds: Mapping[Lane, datetime] | None = None,
    held_back: HeldBack = NOTHING,
) -> tuple[set[uuid.UUID], list[EmailLog]]:
    """Record e-mails as sent, and claim the next as ``take`` does, in one statement.

    Only if ``lanes_together``. Returns the ids that were recorded, because their claims held them
    still, and the rows claimed.
    """
    rows = _take_at_once(queue, lanes, limit, lease, using, bounds or {}, accepted, held_back)
    settled = set(rows[0].settled or ()) if rows else set()
    taken = [row for row in rows if row.pk is not None]
    return settled, _release_beyond_suspect(_in_order(taken), lease.token, using)


def take_from(rows: EmailQuerySet, limit: int, lease: Lease) -> list[EmailLog]:
    """Claim up to ``limit`` of these rows, and return those won, as ``take`` does."""
    using, token = rows.db, lease.token
    columns: dict[str, Any] = {
        "lease_token": token,
        "lease_until": clock.now(lease.seconds),
        "worker": lease.worker,
    }
    for _ in range(_TRIES):
        # No savepoint: together with a settle, it is one transaction.
        with transaction.atomic(using=using, savepoint=False):
            if not connections[using].features.has_select_for_update_skip_locked:
                # SQLite: a transaction that starts with a read cannot become a writer. This update
                # matches no row, and makes it the one writer until the rows found are marked.
                EmailLog.objects.using(using).filter(pk=token).update(worker="")
            found = list(_annotated(rows).skipping_locked()[:limit])
            if wrong_ids.set_aside(found, rows):
                continue
            mails = found[: _until_suspect(found)]
            ids = [mail.pk for mail in mails]
            if EmailLog.objects.using(using).move(lifecycle.CLAIM, ids, **columns) != len(ids):
                won = set(held(token, using).filter(pk__in=ids).values_list("pk", flat=True))
                mails = [mail for mail in mails if mail.pk in won]
        for mail in mails:
            mail.worker, mail.lease_token = lease.worker, token
        if mails or not found:
            return mails
        # Other workers won every row found; there may be more.
    return []


def taken_by(token: uuid.UUID, using: str) -> list[EmailLog]:
    """Return what a claim took whose reply was lost, as ``take`` returns it."""
    return _release_beyond_suspect(list(held(token, using)), token, using)


def held(token: uuid.UUID, using: str) -> EmailQuerySet:
    """Return the e-mails that a claim holds, in claim order, annotated as those of ``take``."""
    rows = EmailLog.objects.using(using).filter(lease_until__isnull=False, lease_token=token)
    rows = rows.filter(status=lifecycle.Status.SENDING)
    return _annotated(rows.order_by("-priority", "due_at", "id"))


def release(token: uuid.UUID, using: str) -> None:
    """Release whatever a claim has taken, without reading it."""
    taken = held(token, using).values_list("pk", flat=True)
    EmailLog.objects.using(using).move(lifecycle.RELEASE, list(taken), token=token)


def queues(using: str) -> Iterator[str]:
    """Yield the name of every queue that has rows, by one index look-up per name."""
    return EmailLog.objects.using(using).names("queue")


def due_levels(queue: str, transport: str, using: str, domain: str | None = None) -> Iterator[int]:
    """Yield the priorities at which a queue holds mail for a transport, most urgent first.

    ``domain`` restricts it to mail to one domain. One look-up at the end of an index per priority,
    however many rows there are.
    """
    level = LEVELS.stop
    waiting = EmailLog.objects.using(using).filter(queue=queue, transport=transport)
    if domain is not None:
        waiting = waiting.filter(domain=domain)
    # Not "IS NOT NULL" for the first: MariaDB would read every row.
    while (level := waiting.filter(pending__lt=level).aggregate(m=Max("pending"))["m"]) is not None:
        yield level


def due(
    queue: str, transport: str, level: int, using: str, held_back: HeldBack = NOTHING
) -> EmailQuerySet:
    """Return the e-mails of one priority that may be claimed now, in claim order."""
    rows = (
        EmailLog.objects.using(using)
        .filter(queue=queue, transport=transport, pending=level, due_at__lte=clock.now())
        # Follows from "pending", unless a person changed the row.
        .filter(status__in=lifecycle.CLAIMABLE)
        .order_by("due_at", "id")
    )
    if held_back.categories:
        rows = rows.exclude(batch__isnull=False, category__in=held_back.categories)
    if domains := [domain for alias, domain in held_back.domains if alias == transport]:
        rows = rows.exclude(domain__in=domains)
    return rows


def has_due(
    queue: str, transport: str, level: int, using: str, held_back: HeldBack = NOTHING
) -> bool:
    """Return whether an e-mail of one priority may be claimed now."""
    # Not exists(), which drops the order: PostgreSQL would then scan all rows for one.
    return bool(due(queue, transport, level, using, held_back).values_list("pk")[:1])


def _annotated(rows: EmailQuerySet) -> EmailQuerySet:
    links = EmailLog.attachments.through._default_manager.filter(emaillog_id=OuterRef("pk"))
    return rows.annotate(
        too_old=_passed("give_up_at"),
        is_expired=_passed("expires_at"),
        has_suppressions=suppression.exists(),
        has_attachments=Exists(links),
    )


def _passed(name: str) -> ExpressionWrapper[Q]:
    return ExpressionWrapper(Q(**{f"{name}__lte": clock.now()}), output_field=BooleanField())


def _until_suspect(mails: Sequence[EmailLog]) -> int:
    """Return how many mails come before the first whose last worker died; 1 if it is the first.

    If it caused the death, it takes no other e-mail down the next time.
    """
    for index, mail in enumerate(mails):
        if mail.failure_kind in ENDED_WORKER:
            return index or 1
    return len(mails)


def _release_beyond_suspect(rows: list[EmailLog], token: uuid.UUID, using: str) -> list[EmailLog]:
    """Release claimed rows that may not go together with the first; return the others."""
    count = _until_suspect(rows)
    if beyond := [row.pk for row in rows[count:]]:
        EmailLog.objects.using(using).move(lifecycle.RELEASE, beyond, token=token)
    return rows[:count]


def _take_at_once(
    queue: str,
    lanes: Sequence[Lane],
    limit: int,
    lease: Lease,
    using: str,
    bounds: Mapping[Lane, datetime],
    accepted: Sequence[Accepted] = (),
    held_back: HeldBack = NOTHING,
) -> list[Any]:
    now_sql, now = compile_expression(clock.now(), EmailLog, using)
    until_sql, until = compile_expression(clock.now(lease.seconds), EmailLog, using)
    domains = [f"{domain} {alias}" for alias, domain in held_back.domains]
    held = {"categories": list(held_back.categories), "domains": domains}
    held = {name: values for name, values in held.items() if values}
    statement = claim_statement.of(
        now_sql, until_sql, limit, settles=bool(accepted), held=tuple(held)
    )
    asked = [(queue, *lane, bounds.get(lane, "-infinity")) for lane in lanes]
    params = [*_arrays(asked), *now, *2 * [*now, *held.values()]]
    params += [lease.token, *until, lease.worker, *now, *now]
    if accepted:
        params = [*_arrays(accepted), *now, *now, *params]
    return instances.read(EmailLog, statement, params, using)


def _arrays(rows: Iterable[Sequence[object]]) -> list[Any]:
    """Return each column of rows as the text of an array (PostgreSQL manual, 8.15.2)."""
    return [f"{{{','.join(map(_element, column))}}}" for column in zip(*rows, strict=True)]


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    text = str(value)
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _in_order(rows: Iterable[EmailLog]) -> list[EmailLog]:
    return sorted(rows, key=lambda row: (-row.priority, row.due_at, row.pk))
