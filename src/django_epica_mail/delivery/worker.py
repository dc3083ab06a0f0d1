"""The work: claim, send, settle.

A worker process runs ``deliver`` for one queue at a time. While it talks to a server it holds no
transaction and no row lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from uuid import UUID

from django_epica_mail import conf
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import claim, gates
from django_epica_mail.delivery.claim import Batch
from django_epica_mail.delivery.outcome import Outcome, Try, judge
from django_epica_mail.delivery.prepare import MessageLoader, prepare
from django_epica_mail.delivery.sender import Sender
from django_epica_mail.delivery.settle import Settler
from django_epica_mail.retry import Kind, Result

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 2.0
"""Seconds a worker waits for a rate's budget; what must wait longer is left to the sweep."""


def deliver(queue: str, *, rung_at: float | None = None) -> int:
    """Send what is due in a queue until nothing is, or for a bounded time; return how many mails.

    ``rung_at`` (seconds since the epoch) is the time of a ring made by a commit. Such a ring also
    stands for mail committed up to one window after it, so a second look follows.
    """
    started = time.monotonic()
    settled, called_for_help = 0, False
    look_again = doorbell.needs_second_look(rung_at)
    while time.monotonic() - started < conf.get().run_seconds:
        batch = claim.claim(queue)
        if batch is not None:
            if not called_for_help and len(batch.mails) >= conf.get().batch_size:
                doorbell.ring(queue)
                called_for_help = True
            settled += _send_batch(batch)
        elif (pause := _pause_for_budget(queue)) is not None:
            time.sleep(pause)
        elif look_again:
            # The last look must come a whole window after the first: mail committed until then
            # has no ring of its own.
            time.sleep(max(0.0, started + conf.get().ring_window - time.monotonic()))
            look_again = False
        else:
            return settled
    doorbell.ring(queue)  # whatever is left is for the next task, so that no queue starves another
    return settled


def _pause_for_budget(queue: str) -> float | None:
    """Return how long to wait for a rate's budget, unless that is better left to the sweep."""
    pause = claim.pause_for_budget(queue)
    return pause if pause is not None and pause <= _LONGEST_PAUSE else None


def deliver_one(email_id: UUID | str) -> int:
    """Send one mail now, if it is due and may be claimed; return how many mails were settled."""
    batch = claim.claim_one(email_id)
    return 0 if batch is None else _send_batch(batch)


def _send_batch(batch: Batch) -> int:
    """Send the mails of a batch in claim order; settle what was begun, release what was not."""
    settler = Settler(batch)
    begun, works = 0, True
    try:
        contents = MessageLoader(batch)
        with Sender[Try](batch.transport) as lanes:
            try:
                for mail in batch.mails:
                    while not lanes.is_free:
                        works &= _note(lanes.finished(settler.patience), batch, settler)
                        settler.make_room(len(lanes))
                    settler.make_room(len(lanes))
                    if not (works and _may_begin(batch)):
                        break
                    contents.fetch(mail)
                    begun += 1
                    ready = prepare(mail, contents)
                    if isinstance(ready, Outcome):
                        settler.add(ready)
                        _report_to_breaker(batch, ready.result)
                        if ready.ends_batch:
                            break
                    else:
                        lanes.begin(ready, ready.message)
                        works &= _note(lanes.finished(0), batch, settler)
            finally:
                while len(lanes):
                    works &= _note(lanes.finished(), batch, settler)
    finally:
        settler.flush()
        settler.release(batch.mails[begun:])
    if not works:
        gates.reroute(batch.transport, batch.using)
    # Off the way of the mail: whoever asks the result backend may wait, the next mail not.
    result_backend.mirror(
        [mail.pk for mail in batch.mails[:begun] if mail.store_result], batch.using
    )
    return settler.settled


def _may_begin(batch: Batch) -> bool:
    """Tell whether a mail begun now is surely done with while the batch is still ours to hold."""
    now = time.monotonic()
    is_fresh = now - batch.claimed_at < conf.get().batch_seconds
    return is_fresh and batch.lease_ends - now > conf.get().send_timeout


def _note(finished: Iterable[tuple[Try, Result]], batch: Batch, settler: Settler) -> bool:
    """Take the outcomes of tries to the settler; return whether to go on with the batch."""
    works = True
    for it, result in finished:
        settler.add(judge(it, result))
        works &= _report_to_breaker(batch, result)
    return works


def _report_to_breaker(batch: Batch, result: Result | None) -> bool:
    """Tell the transport's breaker how a try went; return whether to go on with the batch."""
    if result is None or result.seconds is None:  # the transport was never asked
        if batch.is_probe:
            gates.return_probe(batch.transport, batch.using)
        return True
    if result.failure is not None and result.failure.kind is Kind.OUTAGE:
        gates.trip(batch.transport, result.failure, batch.using)
        return False
    if batch.is_probe:
        gates.reset(batch.transport, batch.using)
    return True
