"""The work of a worker process: claim, send, settle.

While a worker talks to a mail server it holds no transaction and no row lock.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections import deque
from collections.abc import Sequence
from uuid import UUID

from django.db import Error, connections

from django_epica_mail import conf
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import claim, gates
from django_epica_mail.delivery.batch import Batch, ClaimedMail
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.limits import scan_starts, slowed_domains, waiting
from django_epica_mail.delivery.outcome import Attempt, Outcome, judge
from django_epica_mail.delivery.prepare import MessageLoader, prepare, too_late
from django_epica_mail.delivery.sender import Sender
from django_epica_mail.delivery.settle import Settler
from django_epica_mail.retry import Result

logger = logging.getLogger(__name__)

_TURN_SECONDS = 5.0
"""Seconds after which a worker stops claiming for one transport, and looks at all of them again."""

_LINGER, _LONGEST_LINGER = 0.01, 0.05
"""Seconds a worker waits for the next batch to become full, first and at most."""

_ENOUGH = 0.8
"""The part of a full batch from which on it waits no longer for the next one."""

_SOON = 0.05
"""Seconds that a known outcome waits for others while mails are in flight."""

_REFUSED_PAUSE = 0.1
"""Seconds a worker waits after a rate limit refused what it had claimed."""

_LONGEST_PAUSE = 2.0
"""Seconds a worker waits for a rate limit; a longer wait is left to the sweep."""


class _StopFlag:
    """Whether the worker stops; shared with the pool processes forked from its main process."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)  # anonymous and shared: a fork inherits it

    def set(self, value: bool) -> None:
        self._byte[0] = int(value)

    def is_set(self) -> bool:
        return bool(self._byte[0])


_stop = _StopFlag()


def begin_work() -> None:
    """Allow deliveries; called when a worker starts."""
    _stop.set(False)


def probe_transports() -> None:
    """Let the next e-mail of each transport out of order probe it, however long it was to wait.

    Called once when a worker starts: what was refused may have been set right by then.
    """
    using = claim.database()
    try:
        gates.return_probes(using)
    except Error:
        logger.warning("The database did not answer; transports are probed when they are due.")
    finally:
        connections[using].close()


def stop_work() -> None:
    """Begin no further e-mail in this worker's processes; what is not begun is released."""
    _stop.set(True)


def deliver(queue: str, *, rung_at: float | None = None) -> int:
    """Send what is due in a queue, for a bounded time; return how many e-mails were settled.

    ``rung_at`` (seconds since the epoch) is the time of a ring made by a commit. Such a ring also
    covers e-mails committed up to one window later, so the worker looks a second time.
    """
    started = time.monotonic()
    settled, tried_at_once = 0, False
    look_again = doorbell.needs_second_look(rung_at)
    with _Search(queue, until=started + conf.get().run_seconds) as search:
        while search.goes_on:
            batch = search.next()
            if batch is not None:
                run = _Run(batch, search)
                settled += run.run()
                tried_at_once = False
                if run.is_refused:  # by a limit that the claim did not foresee
                    time.sleep(_REFUSED_PAUSE)
            elif (pause := _pause_for_rate_limit(queue)) is not None and (
                pause or not tried_at_once
            ):
                # Once only: mail that another worker is claiming looks due as well.
                tried_at_once = not pause
                time.sleep(pause)
            elif look_again:
                # The last look must come a whole window after the first: an e-mail committed until
                # then has no ring of its own.
                time.sleep(max(0.0, started + conf.get().ring_window - time.monotonic()))
                look_again = False
            else:
                break
        else:
            search.ring_once()  # the next task takes what is left: no queue starves another
        if search.has_paced:  # so that each turn rings for the next, and no other task does
            waiting.ring_for_turn(queue)
    return settled


def deliver_one(email_id: UUID | str) -> int:
    """Send one e-mail now if it can be claimed; return how many e-mails were settled."""
    batch = claim.claim_one(email_id)
    return 0 if batch is None else _Run(batch).run()


def _pause_for_rate_limit(queue: str) -> float | None:
    """Return the seconds to wait for a rate limit; ``None`` if the worker should not wait."""
    pause = waiting.pause_for_budget(queue)
    return pause if pause is not None and pause <= _LONGEST_PAUSE else None


class _Search:
    """One task's search for due mail of a queue: what it claims next, and when."""

    def __init__(self, queue: str, *, until: float) -> None:
        self._queue, self._until = queue, until
        self._using = claim.database()
        self._starts = scan_starts.of_queue(queue, self._using)
        self._linger, self._wanted, self._was_full = _LINGER, conf.get().batch_size, True
        self._has_rung = False
        self._found: Batch | None = None
        self._is_empty = False
        self.has_paced = False
        """Whether the task had a turn of a slowed domain, or slowed one down."""

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *error: object) -> None:
        if self._found is not None:  # claimed, and not run because something failed before
            Settler(self._using).release([mail.row for mail in self._found.mails])

    @property
    def has_found(self) -> bool:
        """Whether a batch of another transport waits to be run next."""
        return self._found is not None

    @property
    def goes_on(self) -> bool:
        """Whether the task may still claim mail."""
        return self._found is not None or self.may_claim

    @property
    def may_claim(self) -> bool:
        """Whether the task may claim more mail."""
        return not _stop.is_set() and time.monotonic() < self._until

    def next(self) -> Batch | None:
        """Return the next batch, or ``None`` if the queue has nothing due."""
        batch, self._found = self._found, None
        if batch is None and not self._is_empty:
            batch = claim.claim(self._queue, starts=self._starts)
            self._heed(batch)
        self._is_empty = False
        return batch

    def after(
        self, batch: Batch, settler: Settler, *, only: str | None, limit: int
    ) -> Batch | None:
        """Settle what is known and claim the next batch, if possible in one transaction.

        ``only`` restricts it to a transport. Unless two full batches show that more mail waits, it
        waits first, so that the next one is full: each claim costs a commit, however many mails it
        holds. The task learns how long is enough, for others take their part of what comes.
        """
        was_full, self._was_full = self._was_full, len(batch.mails) >= self._wanted
        if not (was_full and self._was_full) and only is None and not batch.is_slowed:
            settler.flush()
            time.sleep(self._linger)
            if len(batch.mails) < self._wanted * _ENOUGH:
                self._linger = min(self._linger * 1.5, _LONGEST_LINGER)
        self._wanted = min(limit, conf.get().batch_size)
        following = settler.settle_and(
            claim.Claiming(
                self._queue, self._using, limit=limit, transport=only, starts=self._starts
            )
        )
        self._heed(following)
        self._is_empty = following is None and only is None
        return following

    def keep(self, batch: Batch) -> None:
        """Keep a batch of another transport, to be returned next."""
        self._found = batch

    def ring_once(self) -> None:
        """Ring for another task, unless this one has: rings would pile up before other queues'."""
        if not self._has_rung:
            doorbell.ring(self._queue)
            self._has_rung = True

    def _heed(self, batch: Batch | None) -> None:
        self.has_paced |= batch is not None and batch.is_slowed
        if batch is not None and len(batch.mails) >= conf.get().batch_size:
            self.ring_once()  # for help


class _Run:
    """Sends the mail of one transport: begins what is claimed, settles it, and claims more."""

    def __init__(self, batch: Batch, search: _Search | None = None) -> None:
        self._search = search
        self._transport, self._using = batch.transport, batch.using
        self._settler = Settler(batch.using)
        self._claim_until = time.monotonic() + _TURN_SECONDS
        self._transport_works = True
        self.is_refused = False
        self._results: list[UUID] = []
        self._take(batch)

    def run(self) -> int:
        """Send the mail; return how many e-mails were settled."""
        try:
            with Sender[Attempt](self._transport) as sender:
                try:
                    self._send_all(sender)
                    self._release()  # at once, however long the server takes with the others
                    while len(sender):
                        self._wait(sender)
                finally:
                    while len(sender):
                        self._collect(sender, timeout=None)
        finally:
            self._settler.flush()
            self._release()
        if not self._transport_works:
            gates.reroute(self._transport, self._using)
        # Outside the sending path: a slow result backend must not delay the next e-mail.
        result_backend.mirror(self._results, self._using)
        return self._settler.settled

    def _take(self, batch: Batch) -> None:
        self._batch = batch
        self._loader: MessageLoader | None = None
        self._unbegun = deque(batch.mails)

    def _send_all(self, sender: Sender[Attempt]) -> None:
        while self._may_go_on():
            if not self._unbegun:
                search = self._search if self._may_claim() else None
                if search is not None and self._claim_more(search, sender):
                    continue
                if not len(sender):
                    return
                self._wait(sender)
            elif (left := self._may_begin_until - time.monotonic()) <= 0:
                self._release()
                while not sender.is_free:
                    self._wait(sender)
            elif not sender.is_free:
                self._wait(sender, left)
            else:
                ready = self._prepare(self._unbegun[0])
                if ready is None:
                    continue  # it is released
                mail = self._unbegun.popleft()
                if mail.row.store_result:
                    self._results.append(mail.row.pk)
                if isinstance(ready, Outcome):
                    self._note([ready])
                    self.is_refused = ready.ends_batch
                    if ready.ends_batch:
                        return
                else:
                    sender.begin(ready, ready.message)
                    self._collect(sender, timeout=0)

    def _may_go_on(self) -> bool:
        """Return whether another e-mail may be begun.

        Not if the worker stops: Docker and Kubernetes kill it 10 or 30 seconds later.
        """
        return self._transport_works and self._settler.holds_claims and not _stop.is_set()

    @property
    def _may_begin_until(self) -> float:
        """The monotonic second until which the next e-mail may be begun.

        The first as long as the lease allows, so that a slow claim does not keep all mail back.
        """
        is_first = len(self._unbegun) == len(self._batch.mails)
        return self._batch.outlasts_until if is_first else self._batch.begin_until

    def _wait(self, sender: Sender[Attempt], timeout: float | None = None) -> None:
        """Wait for the next result; settle what is known if none comes soon."""
        if not self._settler.is_waiting:
            self._collect(sender, timeout)
        elif not self._collect(sender, _SOON):
            self._settler.flush()

    def _release(self) -> None:
        """Release what is not begun."""
        self._settler.release([mail.row for mail in self._unbegun])
        if self._unbegun and self._batch.is_probe:
            gates.return_probe(self._transport, self._using)
        self._unbegun.clear()

    def _may_claim(self) -> bool:
        if self._search is None or self._batch.is_probe or self._batch.is_limited:
            return False
        if self._search.has_found:
            return False
        return self._search.may_claim and time.monotonic() < self._claim_until

    def _claim_more(self, search: _Search, sender: Sender[Attempt]) -> bool:
        """Settle what is known and claim more for this transport; return whether there was more."""
        in_flight = len(sender)
        limit = int(min(conf.PERMITS - in_flight, max(1.0, sender.per_second)))
        only = self._transport if in_flight else None
        batch = search.after(self._batch, self._settler, only=only, limit=limit)
        if batch is None:
            return False
        if batch.transport != self._transport or batch.is_probe:
            search.keep(batch)
            return False
        self._take(batch)
        return True

    def _prepare(self, mail: ClaimedMail) -> Attempt | Outcome | None:
        """Return the attempt to make, or the outcome if none is made.

        ``None`` if it is too late to make it now: the e-mail is released, with those behind it.
        Raises ``DatabaseError`` if the database is lost.
        """
        if self._loader is None:
            self._loader = MessageLoader(self._batch)
        ready = prepare(mail, self._loader)
        if isinstance(ready, Outcome) or time.monotonic() <= self._batch.outlasts_until:
            return ready
        return too_late(ready, self._loader)

    def _collect(self, sender: Sender[Attempt], timeout: float | None) -> bool:
        """Note the outcomes of finished attempts, waiting up to ``timeout`` seconds for one.

        Returns whether there was any.
        """
        finished = sender.finished(timeout)
        self._note([self._judge(attempt, result) for attempt, result in finished])
        return bool(finished)

    def _judge(self, attempt: Attempt, result: Result) -> Outcome:
        """Return the outcome of an attempt, its failure weighed by those of other mails."""
        weighed = gates.evidence.weigh(
            self._transport, attempt.message, result, is_probe=self._batch.is_probe
        )
        return judge(attempt, weighed)

    def _note(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes to the settler, then report to the transport's breaker.

        In this order, because a failed report must not lose an outcome that is known.
        """
        for outcome in outcomes:
            self._settler.add(outcome)
        for outcome in outcomes:
            self._report(outcome)

    def _report(self, outcome: Outcome) -> None:
        """Report the result of an attempt to the transport's breaker, and a domain's complaint."""
        result, alias, using = outcome.result, self._transport, self._using
        was_asked = result is not None and result.seconds is not None
        if was_asked and result is not None and result.failure is not None:
            self._transport_works &= not result.failure.stops_transport
        asked = result if was_asked else None
        change = gates.change_after(alias, asked, using, is_probe=self._batch.is_probe)
        slowed = slowed_domains.change_after(outcome.mail, asked, self._batch.claimed_at, using)
        if slowed is not None and self._search is not None:
            self._search.has_paced = True
        until = time.monotonic() + conf.get().settle_patience
        for report in (change, slowed):
            if report is not None:
                retry_on_database_errors(report, until=until, using=using)
