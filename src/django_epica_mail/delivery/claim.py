"""Which mail is due, and the claim: one worker's exclusive hold on a batch of it."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from django.db import connections, models, router, transaction
from django.db.models import BooleanField, ExpressionWrapper, Max, Q

from django_epica_mail import clock, conf, lifecycle, suppression
from django_epica_mail.delivery import gates, rate_limits
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.models import EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_CLAIM_PATIENCE = 2.0
"""Seconds for which a claim that loses its rows, a deadlock or a serialisation race is repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Mails of one queue, transport and priority that one worker holds, in claim order."""

    transport: str
    """The alias of the transport they go to."""
    mails: list[EmailLog]
    """The rows, in the order they are begun: by ``due_at``, then id."""
    token: uuid.UUID
    """What marks the rows as held by this claim."""
    using: str
    """The alias of the database the rows are in."""
    claimed_at: float
    """When the claim began, in monotonic seconds of this process."""
    is_probe: bool
    """Whether the one mail finds out if the transport is back."""

    @property
    def lease_ends(self) -> float:
        """The monotonic second at which the sweep may take the rows away."""
        return self.claimed_at + conf.get().lease_seconds


def due_levels(queue: str, transport: str, using: str) -> Iterator[int]:
    """Yield the priorities at which a queue holds mail for a transport, most urgent first.

    Each is one look at the end of an index, however many rows there are: due, scheduled or done.
    """
    level = LEVELS.stop
    waiting = EmailLog.objects.using(using).filter(queue=queue, transport=transport)
    # Not "is not NULL" for the first: of that, MariaDB would read every row there is.
    while (level := waiting.filter(pending__lt=level).aggregate(m=Max("pending"))["m"]) is not None:
        yield level


def due(queue: str, transport: str, level: int, using: str) -> EmailQuerySet:
    """Return the mails that may be claimed now at one priority, in claim order."""
    return (
        EmailLog.objects.using(using)
        .filter(queue=queue, transport=transport, pending=level, due_at__lte=clock.now())
        .order_by("due_at", "id")
    )


def has_due(queue: str, transport: str, level: int, using: str) -> bool:
    """Tell whether there is mail that may be claimed now at one priority."""
    # Not by exists(), which drops the order: PostgreSQL would then look for one through all rows.
    return bool(due(queue, transport, level, using).values_list("pk")[:1])


def claim(queue: str) -> Batch | None:
    """Claim the most urgent mail of a queue that is due, or return ``None`` if there is none.

    Mail for a transport that is paused, out of order or not configured stays where it is.
    """
    using = router.db_for_write(EmailLog)
    state = gates.Gates(using)
    if not state.queue_is_open(queue):
        return None
    aliases = state.open_transports(transports.aliases())
    random.shuffle(aliases)  # of equally urgent mail, no transport is always last
    levels = {alias: due_levels(queue, alias, using) for alias in aliases}
    heads = {alias: level for alias in aliases if (level := next(levels[alias], None)) is not None}
    while heads:
        alias = max(heads, key=heads.__getitem__)
        allowed = rate_limits.allowance(alias)
        if allowed == 0:
            del heads[alias]
            continue
        batch = _claim_level(
            queue, alias, heads[alias], state.needs_probe(alias), using, limit=allowed
        )
        if batch is not None:
            return batch
        level = next(levels[alias], None)
        if level is None:
            del heads[alias]
        else:
            heads[alias] = level
    return None


def claim_one(email_id: uuid.UUID | str) -> Batch | None:
    """Claim one mail, if it is due and its queue and transport are open and in order."""
    using = router.db_for_write(EmailLog)
    rows = EmailLog.objects.using(using).filter(pk=email_id)
    mail = rows.only("queue", "transport", "pending").first()
    if mail is None or mail.pending is None:
        return None
    state = gates.Gates(using)
    is_open = state.queue_is_open(mail.queue) and not state.needs_probe(mail.transport)
    if not is_open or mail.transport not in state.open_transports(transports.aliases()):
        return None
    wanted = due(mail.queue, mail.transport, mail.pending, using).filter(pk=email_id)
    return _claim(wanted, mail.transport, 1, is_probe=False, using=using)


def pause_for_budget(queue: str) -> float | None:
    """Return the seconds until due mail of a queue may go by the rates; ``None``: none waits so."""
    if not rate_limits.is_limited():
        return None
    using = router.db_for_write(EmailLog)
    state = gates.Gates(using)
    pauses = [
        rate_limits.seconds_until(alias)
        for alias in state.open_transports(transports.aliases())
        if rate_limits.allowance(alias) == 0
        and any(has_due(queue, alias, lv, using) for lv in due_levels(queue, alias, using))
    ]
    return min(pauses, default=None) if state.queue_is_open(queue) else None


def _claim_level(
    queue: str, alias: str, level: int, is_probe: bool, using: str, *, limit: int | None
) -> Batch | None:
    if is_probe and not (has_due(queue, alias, level, using) and gates.take_probe(alias, using)):
        return None
    size = conf.get().batch_size
    limit = 1 if is_probe else min(size, size if limit is None else limit)
    rows = due(queue, alias, level, using)
    return _claim(rows, alias, limit, is_probe=is_probe, using=using)


def _claim(
    rows: EmailQuerySet, alias: str, limit: int, *, is_probe: bool, using: str
) -> Batch | None:
    give_up_at = time.monotonic() + _CLAIM_PATIENCE
    while (claimed_at := time.monotonic()) < give_up_at:
        token = uuid.uuid4()
        found, mails = retry_on_database_errors(
            partial(_take, rows, limit, token, using),
            until=give_up_at,
            using=using,
        )
        if mails:
            return Batch(
                transport=alias,
                mails=mails,
                token=token,
                using=using,
                claimed_at=claimed_at,
                is_probe=is_probe,
            )
        if not found:
            return None
        # Others were quicker with every row found; there may be more. Not without end: a row
        # changed by hand may look claimable and never be.
    return None


def _take(
    rows: EmailQuerySet, limit: int, token: uuid.UUID, using: str
) -> tuple[bool, list[EmailLog]]:
    """Mark due rows with a token; return whether any were found, and those that were won."""
    features = connections[using].features
    rows = rows.annotate(
        too_old=_passed("give_up_at"),
        is_expired=_passed("expires_at"),
        is_guarded=suppression.exists(),
    )
    with transaction.atomic(using=using):
        if not features.has_select_for_update_skip_locked:
            # SQLite: one writer at a time, and a transaction that begins by reading cannot become
            # one. This finds no row, and makes it the writer until the rows found are marked.
            EmailLog.objects.using(using).filter(pk=token).update(worker="")
        return _mark(list(rows.skipping_locked()[:limit]), token, using)


def _passed(name: str) -> ExpressionWrapper[Q]:
    return ExpressionWrapper(Q(**{f"{name}__lte": clock.now()}), output_field=BooleanField())


def _mark(candidates: list[EmailLog], token: uuid.UUID, using: str) -> tuple[bool, list[EmailLog]]:
    mails = _until_suspect(candidates)
    ids = [mail.pk for mail in mails]
    won = EmailLog.objects.using(using).move(
        lifecycle.CLAIM,
        ids,
        lease_token=token,
        lease_until=clock.now(conf.get().lease_seconds),
        worker=worker_name(),
    )
    for mail in mails:
        mail.worker = worker_name()
    if won != len(ids):
        held = set(
            EmailLog.objects.using(using)
            .filter(pk__in=ids, lease_token=token)
            .values_list("pk", flat=True)
        )
        mails = [mail for mail in mails if mail.pk in held]
    return bool(candidates), mails


def worker_name() -> str:
    """Return host and process of this worker, for people who search its logs."""
    return f"{socket.gethostname()}:{os.getpid()}"[:255]


def _until_suspect(mails: list[EmailLog]) -> list[EmailLog]:
    """Keep a mail whose last worker died out of the company of others.

    Should it be the cause, it takes down nothing but itself the next time.
    """
    for index, mail in enumerate(mails):
        if mail.failure_kind == Kind.WORKER_LOST:
            return mails[:index] or [mail]
    return mails


def queues(using: str) -> Iterator[str]:
    """Yield every queue that has rows, hopping along the index from name to name."""
    name = ""
    while True:
        rows = EmailLog.objects.using(using).filter(queue__gt=name)
        following = rows.aggregate(name=models.Min("queue"))["name"]
        if following is None:
            return
        name = following
        yield name


def has_claimable(queue: str, using: str) -> bool:
    """Tell whether a worker would find something to claim in a queue now."""
    state = gates.Gates(using)
    return state.queue_is_open(queue) and any(
        has_due(queue, alias, level, using)
        for alias in state.open_transports(transports.aliases())
        for level in due_levels(queue, alias, using)
    )
