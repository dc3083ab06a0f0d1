"""The work of a worker process: claim, send, settle.

While a worker talks to a mail server it holds no transaction and no row lock.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from django.db import DatabaseError, connections

from django_epica_mail import conf
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import claim, gates
from django_epica_mail.delivery.claim import Batch, ClaimedMail
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.outcome import Attempt, Outcome, judge
from django_epica_mail.delivery.prepare import MessageLoader, prepare, unreadable
from django_epica_mail.delivery.sender import Sender
from django_epica_mail.delivery.settle import Settler
from django_epica_mail.retry import Result

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


def stop_work() -> None:
    """Begin no further e-mail in this worker's processes; what is not begun is released."""
    _stop.set(True)


def deliver(queue: str, *, rung_at: float | None = None) -> int:
    """Send what is due in a queue, for a bounded time; return how many e-mails were settled.

    ``rung_at`` (seconds since the epoch) is the time of a ring made by a commit. Such a ring also
    covers e-mails committed up to one window later, so the worker looks a second time.
    """
    started = time.monotonic()
    settled, called_for_help, tried_at_once = 0, False, False
    look_again = doorbell.needs_second_look(rung_at)
    while not _stop.is_set() and time.monotonic() - started < conf.get().run_seconds:
        batch = claim.claim(queue)
        if batch is not None:
            if not called_for_help and len(batch.mails) >= conf.get().batch_size:
                doorbell.ring(queue)
                called_for_help = True
            settled += _BatchRun(batch).run()
            tried_at_once = False
        elif (pause := _pause_for_rate_limit(queue)) is not None and (pause or not tried_at_once):
            # Once only: mail that another worker is claiming looks due as well.
            tried_at_once = not pause
            time.sleep(pause)
        elif look_again:
            # The last look must come a whole window after the first: an e-mail committed until
            # then has no ring of its own.
            time.sleep(max(0.0, started + conf.get().ring_window - time.monotonic()))
            look_again = False
        else:
            return settled
    doorbell.ring(queue)  # the next task takes what is left, so that no queue starves another
    return settled


def deliver_one(email_id: UUID | str) -> int:
    """Send one e-mail now if it can be claimed; return how many e-mails were settled."""
    batch = claim.claim_one(email_id)
    return 0 if batch is None else _BatchRun(batch).run()


def _pause_for_rate_limit(queue: str) -> float | None:
    """Return the seconds to wait for a rate limit; ``None`` if the worker should not wait."""
    pause = claim.pause_for_budget(queue)
    return pause if pause is not None and pause <= _LONGEST_PAUSE else None


class _BatchRun:
    """Sends a batch in claim order; settles what was begun and releases what was not."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._settler = Settler(batch)
        self._begun = 0
        self._transport_works = True

    def run(self) -> int:
        """Send the batch; return how many e-mails were settled."""
        batch = self._batch
        try:
            loader = MessageLoader(batch)
            with Sender[Attempt](batch.transport) as sender:
                try:
                    self._send_all(loader, sender)
                finally:
                    while len(sender):
                        self._collect(sender, timeout=None)
        finally:
            self._settler.flush()
            self._settler.release([mail.row for mail in batch.mails[self._begun :]])
        if not self._transport_works:
            gates.reroute(batch.transport, batch.using)
        # Outside the sending path: a slow result backend must not delay the next e-mail.
        begun = [mail.row for mail in batch.mails[: self._begun]]
        result_backend.mirror([row.pk for row in begun if row.store_result], batch.using)
        return self._settler.settled

    def _send_all(self, loader: MessageLoader, sender: Sender[Attempt]) -> None:
        settler = self._settler
        for mail in self._batch.mails:
            while not sender.is_free:
                self._collect(sender, timeout=settler.patience)
                settler.make_room(len(sender))
            settler.make_room(len(sender))
            is_held = settler.holds_batch and _may_begin(self._batch)
            if not (self._transport_works and is_held):
                return
            ready = self._prepare(mail, loader)
            self._begun += 1
            if isinstance(ready, Outcome):
                self._note([ready])
                if ready.ends_batch:
                    return
            else:
                sender.begin(ready, ready.message)
                self._collect(sender, timeout=0)

    def _prepare(self, mail: ClaimedMail, loader: MessageLoader) -> Attempt | Outcome:
        """Return the attempt to make, or the outcome if none is made.

        Raises ``DatabaseError`` if the database is lost. If only the content of this e-mail cannot
        be read, the e-mail is postponed and the others go on.
        """
        try:
            loader.fetch(mail.row)
        except DatabaseError as error:
            if not connections[self._batch.using].is_usable():
                raise
            return unreadable(mail, loader, error)
        return prepare(mail, loader)

    def _collect(self, sender: Sender[Attempt], timeout: float | None) -> None:
        """Note the outcomes of finished attempts, waiting up to ``timeout`` seconds for one."""
        self._note([self._judge(attempt, result) for attempt, result in sender.finished(timeout)])

    def _judge(self, attempt: Attempt, result: Result) -> Outcome:
        """Return the outcome of an attempt, its failure weighed by those of other mails."""
        batch = self._batch
        weighed = gates.evidence.weigh(
            batch.transport, attempt.message, result, is_probe=batch.is_probe
        )
        return judge(attempt, weighed)

    def _note(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes to the settler, then report to the transport's breaker.

        In this order, because a failed report must not lose an outcome that is known.
        """
        for outcome in outcomes:
            self._settler.add(outcome)
        for outcome in outcomes:
            self._report(outcome.result)

    def _report(self, result: Result | None) -> None:
        """Report the result of an attempt to the transport's breaker."""
        batch, alias, using = self._batch, self._batch.transport, self._batch.using
        report: Callable[[], object] | None = None
        if result is None or result.seconds is None:  # the transport was not asked
            if batch.is_probe:
                report = partial(gates.return_probe, alias, using)
        elif result.failure is not None and result.failure.stops_transport:
            self._transport_works = False
            report = partial(gates.trip, alias, result.failure, using)
        elif batch.is_probe:
            report = partial(gates.reset, alias, using)
        if report is not None:
            retry_on_database_errors(report, until=batch.lease_ends, using=using)


def _may_begin(batch: Batch) -> bool:
    """Return whether an e-mail begun now ends while the batch is still leased and fresh.

    Not if the worker stops: Docker and Kubernetes kill it 10 or 30 seconds later.
    """
    if _stop.is_set():
        return False
    now = time.monotonic()
    is_fresh = now - batch.claimed_at < conf.get().batch_seconds
    return is_fresh and batch.lease_ends - now > conf.get().send_timeout
