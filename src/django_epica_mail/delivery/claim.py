"""Finds due mail and claims it: one worker's exclusive lease on a few e-mails."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any

from django.db import router

from django_epica_mail import conf
from django_epica_mail.delivery import gates, rate_limits
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.models import EmailLog, EmailRecipient
from django_epica_mail.queueing import dequeue
from django_epica_mail.queueing.dequeue import (
    Accepted,
    Lane,
    Lease,
    ScanStarts,
    due,
    due_levels,
    has_due,
)
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

PATIENCE = 2.0
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
    """E-mails of one queue and transport that one worker holds, in claim order.

    All of them may be begun at once, so a worker that dies leaves each of them in doubt.
    """

    transport: str
    """The alias of their transport."""
    mails: list[ClaimedMail]
    """The e-mails in the order they are begun: by priority, ``due_at``, then id."""
    using: str
    """The alias of the database that holds the rows."""
    claimed_at: float
    """When the claim began, in monotonic seconds of this process."""
    is_probe: bool = False
    """Whether the one e-mail finds out if the transport works again."""
    is_limited: bool = False
    """Whether a rate limit may have made the claim smaller."""
    has_suppressions: bool = False
    """Whether the suppression list has any entry."""
    has_attachments: bool = False
    """Whether any of the e-mails has attachments."""

    @property
    def token(self) -> uuid.UUID | None:
        """What marks the rows as held by this claim."""
        return self.mails[0].row.lease_token

    @property
    def begin_until(self) -> float:
        """The monotonic second until which its e-mails are begun, and then released."""
        return self.claimed_at + conf.BEGIN_SECONDS

    @property
    def outlasts_until(self) -> float:
        """The monotonic second until which the lease outlasts an e-mail begun then."""
        settings = conf.get()
        return self.claimed_at + settings.lease_seconds - settings.send_timeout


def database() -> str:
    """Return the alias of the database that holds the queue."""
    return router.db_for_write(EmailLog)


def claim(queue: str, *, starts: ScanStarts | None = None) -> Batch | None:
    """Claim the most urgent due mail of a queue, up to ``BATCH_SIZE``; ``None`` if there is none.

    Skips mail for a transport that is paused, out of order or not configured. ``starts`` is as in
    ``Claiming``.
    """
    using = database()
    return retry_on_database_errors(
        Claiming(queue, using, starts=starts), until=time.monotonic() + PATIENCE, using=using
    )


class Claiming:
    """A claim as ``claim`` makes it, for the current transaction if there is one.

    It may be repeated: after a commit whose reply was lost it returns what that commit claimed.
    ``limit`` is the most e-mails to claim if that is less than ``BATCH_SIZE``. ``transport``
    restricts it to one transport; ``starts`` remembers where the claims of a task begin to look.
    """

    def __init__(
        self,
        queue: str,
        using: str,
        *,
        limit: int | None = None,
        transport: str | None = None,
        starts: ScanStarts | None = None,
    ) -> None:
        self._using, self._token = using, uuid.uuid4()
        self._began: float | None = None
        self._search = _Search(queue, using, self._token, limit, transport, starts or ScanStarts())

    def __call__(self) -> Batch | None:
        """Claim; return ``None`` if there is nothing to claim."""
        if self._began is not None and (rows := dequeue.taken_by(self._token, self._using)):
            return _batch(rows, self._using, self._began)
        self._began = time.monotonic()
        return self._search.find()

    def settle_too(
        self, accepted: Sequence[Accepted]
    ) -> tuple[set[uuid.UUID], Batch | None] | None:
        """Record accepted e-mails, and claim, in one statement; ``None`` if it takes several.

        Returns the ids that were recorded and what was claimed.
        """
        if self._began is not None or not (lanes := self._search.lanes_together()):
            return None
        self._began = time.monotonic()
        return self._search.settle_and_claim(accepted, lanes)


def claim_one(email_id: uuid.UUID | str) -> Batch | None:
    """Claim one e-mail if it is due and neither its queue nor its transport is held back."""
    using = database()
    rows = EmailLog.objects.using(using).filter(pk=email_id)
    mail = rows.only("queue", "transport", "pending").first()
    if mail is None or mail.pending is None:
        return None
    state = gates.Gates(using)
    is_open = state.queue_is_open(mail.queue) and not state.needs_probe(mail.transport)
    if not is_open or mail.transport not in state.open_transports(transports.aliases()):
        return None
    held = state.held_categories()
    wanted = due(mail.queue, mail.transport, mail.pending, using, held).filter(pk=email_id)
    claimed_at, lease, tries = time.monotonic(), _lease(uuid.uuid4()), count()

    def take() -> list[EmailLog]:
        is_repeated = next(tries) > 0
        taken = dequeue.taken_by(lease.token, using) if is_repeated else []
        return taken or dequeue.take_from(wanted, 1, lease)

    won = retry_on_database_errors(take, until=claimed_at + PATIENCE, using=using)
    return _batch(won, using, claimed_at) if won else None


class _Search:
    """One search for due mail: which transports and priorities may go now, in which order."""

    def __init__(
        self,
        queue: str,
        using: str,
        token: uuid.UUID,
        limit: int | None,
        transport: str | None,
        starts: ScanStarts,
    ) -> None:
        self._queue, self._using, self._token = queue, using, token
        self._limit = min(conf.get().batch_size, limit or conf.PERMITS)
        self._only, self._starts = transport, starts

    @cached_property
    def _state(self) -> gates.Gates:
        return gates.current(self._using)

    def find(self) -> Batch | None:
        """Claim the most urgent due mail; return ``None`` if there is none."""
        if (lanes := self.lanes_together()) is not None:
            return self._claim(lanes, self._limit)
        return self._find_by_heads()

    def lanes_together(self) -> list[Lane] | None:
        """Return the lanes to ask in one statement; ``None`` if each is a decision of its own."""
        if not dequeue.lanes_together(self._using):
            return None
        aliases = self._aliases()
        if any(self._state.needs_probe(it) for it in aliases):
            return None
        if any(rate_limits.allowance(it) is not None for it in aliases):
            return None
        return [(alias, level) for level in reversed(LEVELS) for alias in aliases]

    def settle_and_claim(
        self, accepted: Sequence[Accepted], lanes: Sequence[Lane]
    ) -> tuple[set[uuid.UUID], Batch | None]:
        """Record accepted e-mails and claim the most urgent due mail of the lanes."""
        claimed_at, bounds = time.monotonic(), self._starts.bounds()
        settled, rows = dequeue.settle_and_take(
            accepted,
            self._queue,
            lanes,
            self._limit,
            _lease(self._token),
            bounds=bounds,
            held_back=self._state.held_categories(),
            using=self._using,
        )
        if rows:
            self._starts.note(rows)
            return settled, _batch(rows, self._using, claimed_at)
        self._starts.forget()
        # What is not settled yet could be claimed again; the next search looks at everything.
        looks_again = bounds and len(settled) == len(accepted)
        return settled, self._claim(lanes, self._limit) if looks_again else None

    def _aliases(self) -> list[str]:
        """Return the transports whose mail may go now, in random order."""
        if not self._state.queue_is_open(self._queue):
            return []
        aliases = self._state.open_transports(transports.aliases())
        random.shuffle(aliases)  # so that no transport is always last among equally urgent mail
        return [alias for alias in aliases if self._only in (None, alias)]

    def _find_by_heads(self) -> Batch | None:
        queue, using = self._queue, self._using
        limits = {alias: rate_limits.allowance(alias) for alias in self._aliases()}
        levels = {alias: due_levels(queue, alias, using) for alias in limits}
        found = {alias: next(levels[alias], None) for alias in limits}
        heads = {alias: level for alias, level in found.items() if level is not None}
        while heads:
            alias = max(heads, key=heads.__getitem__)
            lane, allowed = (alias, heads[alias]), limits[alias]
            if allowed is not None and allowed < (
                cost := _head_cost(queue, *lane, using, self._state.held_categories())
            ):
                # The head reserves the budget: nothing less urgent may use it up before.
                if not rate_limits.all_mail_allows(cost):
                    return None
                del heads[alias]
                continue
            if self._state.needs_probe(alias):
                batch = self._claim_probe(lane)
            else:
                batch = self._claim([lane], self._limit, allowed)
            if batch is not None:
                return batch
            level = next(levels[alias], None)
            if level is None:
                del heads[alias]
            else:
                heads[alias] = level
        return None

    def _claim_probe(self, lane: Lane) -> Batch | None:
        alias = lane[0]
        held = self._state.held_categories()
        if not (
            has_due(self._queue, *lane, self._using, held) and gates.take_probe(alias, self._using)
        ):
            return None
        batch = self._claim([lane], 1, is_probe=True)
        if batch is None:
            gates.return_probe(alias, self._using)
        return batch

    def _claim(
        self,
        lanes: Sequence[Lane],
        limit: int,
        allowed: int | None = None,
        *,
        is_probe: bool = False,
    ) -> Batch | None:
        if not lanes:
            return None
        claimed_at, bounds = time.monotonic(), self._starts.bounds()
        take = partial(
            dequeue.take,
            self._queue,
            lanes,
            limit if allowed is None else min(limit, allowed),
            _lease(self._token),
            held_back=self._state.held_categories(),
            using=self._using,
        )
        rows = take(bounds=bounds)
        if not rows and bounds:
            self._starts.forget()
            rows = take()
        if not rows:
            return None
        self._starts.note(rows)
        return _batch(
            rows, self._using, claimed_at, is_probe=is_probe, is_limited=allowed is not None
        )


def has_claimable(queue: str, using: str) -> bool:
    """Return whether a worker would find mail to claim in a queue now."""
    state = gates.Gates(using)
    held = state.held_categories()
    return state.queue_is_open(queue) and any(
        has_due(queue, alias, level, using, held)
        for alias in state.open_transports(transports.aliases())
        for level in due_levels(queue, alias, using)
    )


def pause_for_budget(queue: str) -> float | None:
    """Return the seconds until a rate limit allows due mail of a queue; ``None`` if none waits.

    0 if the limit allows it now: the budget has grown since the queue was last looked at.
    """
    if not rate_limits.is_limited():
        return None
    using = database()
    state = gates.Gates(using)
    if not state.queue_is_open(queue):
        return None
    pauses, held = [], state.held_categories()
    for alias in state.open_transports(transports.aliases()):
        levels = due_levels(queue, alias, using)
        costs = (_head_cost(queue, alias, lv, using, held) for lv in levels)
        cost = next(filter(None, costs), 0)
        allowed = rate_limits.allowance(alias)
        if allowed is not None and cost:
            pauses.append(rate_limits.seconds_until(alias, cost) if allowed < cost else 0.0)
    return min(pauses, default=None)


def worker_name() -> str:
    """Return the host and process id of this worker, by which its logs are found."""
    return f"{socket.gethostname()}:{os.getpid()}"[:255]


def _lease(token: uuid.UUID) -> Lease:
    return Lease(token, conf.get().lease_seconds, worker_name())


def _head_cost(queue: str, alias: str, level: int, using: str, held: Sequence[str]) -> int:
    """Return how many recipients the first due mail of a priority takes from the rate limits.

    0 if no mail of that priority is due.
    """
    head = due(queue, alias, level, using, held).values_list("pk", flat=True).first()
    if head is None:
        return 0
    left = EmailRecipient.objects.using(using).filter(email_id=head, outcome="").count()
    return rate_limits.bounded(alias, max(1, left))


def _batch(
    rows: Sequence[Any],
    using: str,
    claimed_at: float,
    *,
    is_probe: bool = False,
    is_limited: bool = False,
) -> Batch:
    return Batch(
        transport=rows[0].transport,
        mails=[ClaimedMail(row, bool(row.too_old), bool(row.is_expired)) for row in rows],
        using=using,
        claimed_at=claimed_at,
        is_probe=is_probe,
        is_limited=is_limited,
        has_suppressions=any(row.has_suppressions for row in rows),
        has_attachments=any(row.has_attachments for row in rows),
    )
