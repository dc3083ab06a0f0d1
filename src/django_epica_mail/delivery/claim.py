"""Finds due mail and claims it: one worker's exclusive lease on a batch."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import connections, models, router, transaction
from django.db.models import BooleanField, ExpressionWrapper, Max, Q

from django_epica_mail import clock, conf, lifecycle, suppression
from django_epica_mail.delivery import gates, rate_limits
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.models import EmailLog, EmailQuerySet, EmailRecipient
from django_epica_mail.retry import Kind
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

_CLAIM_PATIENCE = 2.0
"""Seconds for which a claim is retried after it lost its rows, a deadlock or a serialization
failure."""


@dataclass(frozen=True, slots=True)
class ClaimedMail:
    """One e-mail that a worker holds, with what was true by the database's clock at the claim."""

    row: EmailLog
    too_old: bool
    """Whether it has waited as long as it may (``give_up_at``)."""
    is_expired: bool
    """Whether it is no longer worth sending (``expires_at``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """E-mails of one queue, transport and priority that one worker holds, in claim order."""

    transport: str
    """The alias of their transport."""
    mails: list[ClaimedMail]
    """The e-mails in the order they are begun: by ``due_at``, then id."""
    token: uuid.UUID
    """Marks the rows as held by this claim."""
    using: str
    """The alias of the database that holds the rows."""
    claimed_at: float
    """When the claim began, in monotonic seconds of this process."""
    is_probe: bool
    """Whether the one e-mail finds out if the transport works again."""
    has_suppressions: bool = False
    """Whether the suppression list has any entry."""

    @property
    def lease_ends(self) -> float:
        """The monotonic second after which the sweep may take the rows away."""
        return self.claimed_at + conf.get().lease_seconds


def claim(queue: str) -> Batch | None:
    """Claim the most urgent due mail of a queue; return ``None`` if there is none.

    Skips mail for a transport that is paused, out of order or not configured.
    """
    using = router.db_for_write(EmailLog)
    state = gates.Gates(using)
    if not state.queue_is_open(queue):
        return None
    aliases = state.open_transports(transports.aliases())
    random.shuffle(aliases)  # so that no transport is always last among equally urgent mail
    levels = {alias: due_levels(queue, alias, using) for alias in aliases}
    heads = {alias: level for alias in aliases if (level := next(levels[alias], None)) is not None}
    while heads:
        alias = max(heads, key=heads.__getitem__)
        allowed = rate_limits.allowance(alias)
        if allowed is not None and allowed < _head_cost(queue, alias, heads[alias], using):
            # The head reserves the budget: nothing less urgent may use it up before.
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
    """Claim one e-mail if it is due and neither its queue nor its transport is held back."""
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


def queues(using: str) -> Iterator[str]:
    """Yield the name of every queue that has rows, by one index look-up per name."""
    name = ""
    while True:
        rows = EmailLog.objects.using(using).filter(queue__gt=name)
        following = rows.aggregate(name=models.Min("queue"))["name"]
        if following is None:
            return
        name = following
        yield name


def has_claimable(queue: str, using: str) -> bool:
    """Return whether a worker would find mail to claim in a queue now."""
    state = gates.Gates(using)
    return state.queue_is_open(queue) and any(
        has_due(queue, alias, level, using)
        for alias in state.open_transports(transports.aliases())
        for level in due_levels(queue, alias, using)
    )


def due_levels(queue: str, transport: str, using: str) -> Iterator[int]:
    """Yield the priorities at which a queue holds mail for a transport, most urgent first.

    One look-up at the end of an index per priority, however many rows there are.
    """
    level = LEVELS.stop
    waiting = EmailLog.objects.using(using).filter(queue=queue, transport=transport)
    # Not "IS NOT NULL" for the first: MariaDB would read every row.
    while (level := waiting.filter(pending__lt=level).aggregate(m=Max("pending"))["m"]) is not None:
        yield level


def due(queue: str, transport: str, level: int, using: str) -> EmailQuerySet:
    """Return the e-mails of one priority that may be claimed now, in claim order."""
    return (
        EmailLog.objects.using(using)
        .filter(queue=queue, transport=transport, pending=level, due_at__lte=clock.now())
        .order_by("due_at", "id")
    )


def has_due(queue: str, transport: str, level: int, using: str) -> bool:
    """Return whether an e-mail of one priority may be claimed now."""
    # Not exists(), which drops the order: PostgreSQL would then scan all rows for one.
    return bool(due(queue, transport, level, using).values_list("pk")[:1])


def pause_for_budget(queue: str) -> float | None:
    """Return the seconds until a rate limit allows due mail of a queue; ``None`` if none waits.

    0 if the limit allows it now: the budget has grown since the queue was last looked at.
    """
    if not rate_limits.is_limited():
        return None
    using = router.db_for_write(EmailLog)
    state = gates.Gates(using)
    if not state.queue_is_open(queue):
        return None
    pauses = []
    for alias in state.open_transports(transports.aliases()):
        costs = (_head_cost(queue, alias, lv, using) for lv in due_levels(queue, alias, using))
        cost = next(filter(None, costs), 0)
        allowed = rate_limits.allowance(alias)
        if allowed is not None and cost:
            pauses.append(rate_limits.seconds_until(alias, cost) if allowed < cost else 0.0)
    return min(pauses, default=None)


def worker_name() -> str:
    """Return the host and process id of this worker, by which its logs are found."""
    return f"{socket.gethostname()}:{os.getpid()}"[:255]


def _head_cost(queue: str, alias: str, level: int, using: str) -> int:
    """Return how many recipients the first due mail of a priority takes from the rate limits.

    0 if no mail of that priority is due.
    """
    head = due(queue, alias, level, using).values_list("pk", flat=True).first()
    if head is None:
        return 0
    left = EmailRecipient.objects.using(using).filter(email_id=head, outcome="").count()
    return rate_limits.bounded(alias, max(1, left))


def _claim_level(
    queue: str, alias: str, level: int, is_probe: bool, using: str, *, limit: int | None
) -> Batch | None:
    if is_probe and not (has_due(queue, alias, level, using) and gates.take_probe(alias, using)):
        return None
    size = conf.get().batch_size
    limit = 1 if is_probe else min(size, size if limit is None else limit)
    rows = due(queue, alias, level, using)
    batch = _claim(rows, alias, limit, is_probe=is_probe, using=using)
    if batch is None and is_probe:
        gates.return_probe(alias, using)
    return batch


def _claim(
    rows: EmailQuerySet, alias: str, limit: int, *, is_probe: bool, using: str
) -> Batch | None:
    give_up_at = time.monotonic() + _CLAIM_PATIENCE
    while (claimed_at := time.monotonic()) < give_up_at:
        token = uuid.uuid4()
        found, won = retry_on_database_errors(
            partial(_take, rows, limit, token, using),
            until=give_up_at,
            using=using,
        )
        if won:
            return Batch(
                transport=alias,
                mails=[_claimed(row) for row in won],
                token=token,
                using=using,
                claimed_at=claimed_at,
                is_probe=is_probe,
                has_suppressions=_has_suppressions(won[0]),
            )
        if not found:
            return None
        # Other workers won every row found; there may be more. Bounded, because a row changed by
        # hand may look claimable and never be.
    return None


def _take(
    rows: EmailQuerySet, limit: int, token: uuid.UUID, using: str
) -> tuple[bool, list[EmailLog]]:
    """Mark due rows with a token; return whether any were found, and the rows won."""
    features = connections[using].features
    rows = rows.annotate(
        too_old=_passed("give_up_at"),
        is_expired=_passed("expires_at"),
        has_suppressions=suppression.exists(),
    )
    with transaction.atomic(using=using):
        if not features.has_select_for_update_skip_locked:
            # SQLite: a transaction that starts with a read cannot become a writer. This update
            # matches no row, and makes it the one writer until the rows found are marked.
            EmailLog.objects.using(using).filter(pk=token).update(worker="")
        return _mark(list(rows.skipping_locked()[:limit]), token, using)


def _passed(name: str) -> ExpressionWrapper[Q]:
    return ExpressionWrapper(Q(**{f"{name}__lte": clock.now()}), output_field=BooleanField())


def _claimed(row: Any) -> ClaimedMail:
    return ClaimedMail(row, too_old=bool(row.too_old), is_expired=bool(row.is_expired))


def _has_suppressions(row: Any) -> bool:
    return bool(row.has_suppressions)


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


def _until_suspect(mails: list[EmailLog]) -> list[EmailLog]:
    """Return the mails before the first whose last worker died, or that one alone.

    If it caused the death, it takes no other e-mail down the next time.
    """
    for index, mail in enumerate(mails):
        if mail.failure_kind == Kind.WORKER_LOST:
            return mails[:index] or [mail]
    return mails
