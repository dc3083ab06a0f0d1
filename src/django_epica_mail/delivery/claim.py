"""Finds due mail and claims it: one worker's exclusive lease on a few e-mails."""

from __future__ import annotations

import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, partial
from itertools import count

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, router

from django_epica_mail import conf
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.batch import Batch, batch_of
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.limits import rate_limits, slowed_domains, waiting
from django_epica_mail.delivery.limits.scan_starts import ScanStarts
from django_epica_mail.delivery.limits.slowed_domains import Slowed, SlowedDomains
from django_epica_mail.exceptions import is_passing
from django_epica_mail.models import EmailLog
from django_epica_mail.queueing import dequeue
from django_epica_mail.queueing.dequeue import (
    Accepted,
    HeldBack,
    Lane,
    Lease,
    due,
    due_levels,
    has_due,
)
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

PATIENCE = 2.0
"""Seconds for which a claim is retried after it lost its rows, a deadlock or a serialization
failure."""


def database() -> str:
    """Return the alias of the database that holds the queue.

    Raises ``ImproperlyConfigured`` if nothing is committed there: what was sent would be due again.
    """
    using = router.db_for_write(EmailLog)
    if not connections[using].settings_dict["AUTOCOMMIT"]:
        raise ImproperlyConfigured(
            f"Mail cannot be sent with DATABASES[{using!r}]['AUTOCOMMIT'] = False, because its "
            "outcome is never committed: remove it (see epica_mail.E010)."
        )
    return using


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
            return batch_of(rows, self._using, self._began)
        self._began = time.monotonic()
        with _released_on_error(self._token, self._using):
            return self._search.find()

    def look(self) -> None:
        """Read what may go now, before the transaction that claims, where it would not be kept."""
        self._search.look()

    def settle_too(
        self, accepted: Sequence[Accepted]
    ) -> tuple[set[uuid.UUID], Batch | None] | None:
        """Record accepted e-mails, and claim, in one statement; ``None`` if it takes several.

        Returns the ids that were recorded and what was claimed.
        """
        if self._began is not None or self._search.has_turn:
            return None
        if not (lanes := self._search.lanes_together()):
            return None
        self._began = time.monotonic()
        with _released_on_error(self._token, self._using):
            return self._search.settle_and_claim(accepted, lanes)


@contextmanager
def _released_on_error(token: uuid.UUID, using: str) -> Iterator[None]:
    """Give back what a claim has taken, if an error follows that no repetition cures.

    Otherwise mail that nobody began would be in doubt. An open transaction takes it back itself,
    and a claim that is repeated finds it.
    """
    try:
        yield
    except Exception as error:
        is_repeated = isinstance(error, Error) and is_passing(error)
        if not (is_repeated or connections[using].in_atomic_block):
            dequeue.release(token, using)
        raise


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
    held = HeldBack(state.held_categories())  # a slowed domain does not hold up one mail
    wanted = due(mail.queue, mail.transport, mail.pending, using, held).filter(pk=email_id)
    claimed_at, lease, tries = time.monotonic(), _lease(uuid.uuid4()), count()

    def take() -> list[EmailLog]:
        is_repeated = next(tries) > 0
        taken = dequeue.taken_by(lease.token, using) if is_repeated else []
        return taken or dequeue.take_from(wanted, 1, lease)

    with _released_on_error(lease.token, using):
        won = retry_on_database_errors(take, until=claimed_at + PATIENCE, using=using)
        return batch_of(won, using, claimed_at) if won else None


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

    @cached_property
    def _slowed(self) -> SlowedDomains:
        return slowed_domains.current(self._using)

    @cached_property
    def _held(self) -> HeldBack:
        return waiting.held_back(self._state, self._slowed)

    def look(self) -> None:
        """Read the gates and the slowed domains."""
        _ = self._state, self._slowed

    @property
    def has_turn(self) -> bool:
        """Whether a slowed domain may get mail now."""
        return bool(self._with_turn())

    def _with_turn(self) -> list[Slowed]:
        if not self._slowed.found:
            return []
        aliases = [it for it in self._aliases() if not self._state.needs_probe(it)]
        return self._slowed.with_turn(self._queue, aliases)

    def find(self) -> Batch | None:
        """Claim due mail of a slowed domain whose turn it is, or the most urgent other due mail.

        Whichever was not claimed by the last search goes first, so that a domain that may get much
        mail again does not hold up the others. Returns ``None`` if there is none of both.
        """
        searches = [self._find_slowed, self._find_others]
        if self._starts.others_first:
            searches.reverse()
        for search in searches:
            if (batch := search()) is not None:
                self._starts.others_first = batch.is_slowed
                return batch
        return None

    def _find_others(self) -> Batch | None:
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
        claimed_at, bounds = time.monotonic(), self._starts.bounds(lanes, self._held)
        moment = self._moment
        settled, rows = dequeue.settle_and_take(
            accepted,
            self._queue,
            lanes,
            self._limit,
            _lease(self._token),
            bounds=bounds,
            held_back=self._held,
            using=self._using,
        )
        self._note(lanes, rows, moment, None if bounds else claimed_at)
        if rows:
            return settled, batch_of(rows, self._using, claimed_at)
        # What is not settled yet could be claimed again; the next search looks at everything.
        looks_again = self._starts.look_at_all(lanes) and bounds and len(settled) == len(accepted)
        return settled, self._claim(lanes, self._limit) if looks_again else None

    def _aliases(self) -> list[str]:
        """Return the transports whose mail may go now, in random order."""
        if not self._state.queue_is_open(self._queue):
            return []
        aliases = self._state.open_transports(transports.aliases())
        random.shuffle(aliases)  # so that no transport is always last among equally urgent mail
        return [alias for alias in aliases if self._only in (None, alias)]

    def _find_slowed(self) -> Batch | None:
        for slowed in self._with_turn():
            alias, domain = slowed.key
            allowed = rate_limits.allowance(alias)
            most = self._limit if allowed is None else min(self._limit, allowed)
            rows = waiting.due_to(domain, self._queue, alias, self._using, self._state)
            if rows is None:
                self._slowed.note_empty(self._queue, slowed)
            elif most and (number := slowed_domains.reserve(slowed, most, self._using)):
                claimed_at = time.monotonic()
                if taken := dequeue.take_from(rows, number, _lease(self._token)):
                    limited = allowed is not None
                    return batch_of(
                        taken, self._using, claimed_at, is_limited=limited, is_slowed=True
                    )
        return None

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
                cost := waiting.head_cost(queue, *lane, using, self._held)
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
        if not (
            has_due(self._queue, *lane, self._using, self._held)
            and gates.take_probe(alias, self._using)
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
        claimed_at, bounds = time.monotonic(), self._starts.bounds(lanes, self._held)
        take = partial(
            dequeue.take,
            self._queue,
            lanes,
            limit if allowed is None else min(limit, allowed),
            _lease(self._token),
            held_back=self._held,
            using=self._using,
        )
        rows = self._look(take, lanes, bounds)
        if not rows and bounds and self._starts.look_at_all(lanes):
            rows = self._look(take, lanes, self._starts.bounds(lanes, self._held))
        if not rows:
            return None
        return batch_of(
            rows, self._using, claimed_at, is_probe=is_probe, is_limited=allowed is not None
        )

    def _look(
        self,
        take: Callable[..., list[EmailLog]],
        lanes: Sequence[Lane],
        bounds: Mapping[Lane, datetime],
    ) -> list[EmailLog]:
        moment, began = self._moment, time.monotonic()
        rows = take(bounds=bounds)
        self._note(lanes, rows, moment, None if bounds else began)
        return rows

    @property
    def _moment(self) -> datetime | None:
        """The database's time if domains are slowed or categories are paused."""
        if self._held.domains:
            return self._slowed.found[0].now
        return self._state.now if self._held.categories else None

    def _note(
        self,
        lanes: Sequence[Lane],
        rows: Sequence[EmailLog],
        moment: datetime | None,
        began: float | None,
    ) -> None:
        """Remember how far a claim came; ``began`` is ``None`` unless it looked at everything."""
        seconds = None if began is None else time.monotonic() - began
        self._starts.note(lanes, rows, moment=moment, seconds=seconds)


def worker_name() -> str:
    """Return the host and process id of this worker, by which its logs are found."""
    return f"{socket.gethostname()}:{os.getpid()}"[:255]


def _lease(token: uuid.UUID) -> Lease:
    return Lease(token, conf.get().lease_seconds, worker_name())
