"""The work: claim, send, settle.

A worker process runs ``deliver`` for one queue at a time. While it talks to a server it holds no
transaction and no row lock.
"""

from __future__ import annotations

import time
from uuid import UUID

from django_epica_mail import (
    claiming,
    conf,
    doorbell,
    failover,
    gates,
    lifecycle,
    rates,
    results,
    retry,
)
from django_epica_mail import transport as transports
from django_epica_mail.claiming import Batch
from django_epica_mail.contents import Contents
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Decision, Failure, Kind, Result
from django_epica_mail.settling import Outcome, Settler, policy_of

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
        batch = claiming.claim(queue)
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
    pause = claiming.pause_for_budget(queue)
    return pause if pause is not None and pause <= _LONGEST_PAUSE else None


def deliver_one(email_id: UUID | str) -> int:
    """Send one mail now, if it is due and may be claimed; return how many mails were settled."""
    batch = claiming.claim_one(email_id)
    return 0 if batch is None else _send_batch(batch)


def _send_batch(batch: Batch) -> int:
    """Send the mails of a batch in claim order; settle what was begun, release what was not."""
    settler = Settler(batch)
    begun, works = 0, True
    try:
        contents = Contents(batch)
        with transports.connection(batch.transport) as connection:
            for mail in batch.mails:
                settler.make_room()
                if not _may_begin(batch):
                    break
                contents.fetch(mail)
                begun += 1
                outcome = _send(mail, contents, connection)
                settler.add(outcome)
                works = _transport_works(batch, outcome.result)
                if not works or outcome.ends_batch:
                    break
    finally:
        settler.flush()
        settler.release(batch.mails[begun:])
    if not works:
        failover.reroute(batch.transport, batch.using)
    # Off the way of the mail: whoever asks the result backend may wait, the next mail not.
    results.mirror([mail.pk for mail in batch.mails[:begun] if mail.store_result], batch.using)
    return settler.settled


def _may_begin(batch: Batch) -> bool:
    """Tell whether a mail begun now is surely done with while the batch is still ours to hold."""
    now = time.monotonic()
    is_fresh = now - batch.claimed_at < conf.get().batch_seconds
    return is_fresh and batch.lease_ends - now > conf.get().send_timeout


def _send(mail: EmailLog, contents: Contents, connection: transports.Connection) -> Outcome:
    """Try one mail, and decide what follows."""
    if getattr(mail, "is_expired", False):
        return Outcome(mail, None, Decision(moves=(lifecycle.EXPIRE,)))
    try:
        message = contents.message(mail)
    except Exception as error:  # noqa: BLE001 - one bad message never stops another
        reply = retry.reply_text(f"{type(error).__name__}: {error}")
        failure = Failure(kind=Kind.MESSAGE, reply=reply)
        result = Result(failure=failure)
    else:
        refusal = rates.take(mail.transport, message.recipients())
        if refusal is not None:
            decision = Decision(moves=(lifecycle.RELEASE,), delay=refusal.seconds)
            return Outcome(mail, None, decision, ends_batch=not refusal.is_of_domain)
        result = connection.send(message)
    tried = contents.outstanding(mail)
    # The server's replies follow the recipients tried; the rows know them by their place in all.
    result = retry.at_positions(result, tried)
    policy = policy_of(mail, too_old=getattr(mail, "too_old", False))
    decision = retry.conclude(result, policy, tried, contents.was_accepted(mail))
    return Outcome(mail, result, decision)


def _transport_works(batch: Batch, result: Result | None) -> bool:
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
