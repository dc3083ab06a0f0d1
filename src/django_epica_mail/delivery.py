"""The work: claim, send, settle.

A worker process runs ``deliver`` for one queue at a time. While it talks to a server it holds no
transaction and no row lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from django.core.mail import EmailMessage

from django_epica_mail import (
    additions,
    claiming,
    conf,
    doorbell,
    failover,
    gates,
    guards,
    lifecycle,
    rates,
    results,
    retry,
    signals,
)
from django_epica_mail.claiming import Batch
from django_epica_mail.contents import Contents
from django_epica_mail.exceptions import MissingKey, Veto
from django_epica_mail.guards import Handed
from django_epica_mail.lanes import Lanes
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Decision, Failure, Kind, Result
from django_epica_mail.settling import Outcome, Settler, policy_of

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
        with Lanes[_Try](batch.transport) as lanes:
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
                    ready = _prepare(mail, contents)
                    if isinstance(ready, Outcome):
                        settler.add(ready)
                        _transport_works(batch, ready.result)
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
        failover.reroute(batch.transport, batch.using)
    # Off the way of the mail: whoever asks the result backend may wait, the next mail not.
    results.mirror([mail.pk for mail in batch.mails[:begun] if mail.store_result], batch.using)
    return settler.settled


def _may_begin(batch: Batch) -> bool:
    """Tell whether a mail begun now is surely done with while the batch is still ours to hold."""
    now = time.monotonic()
    is_fresh = now - batch.claimed_at < conf.get().batch_seconds
    return is_fresh and batch.lease_ends - now > conf.get().send_timeout


@dataclass(frozen=True, slots=True, eq=False)
class _Try:
    """A mail as it is handed to the transport, and what is needed to judge the outcome."""

    mail: EmailLog
    message: EmailMessage
    handed: Handed
    was_accepted: bool
    held_back: Mapping[int, str]


def _prepare(mail: EmailLog, contents: Contents) -> _Try | Outcome:
    """Build the message of a mail, unless it is settled without a word to the transport."""
    if getattr(mail, "is_expired", False):
        return Outcome(mail, None, Decision(moves=(lifecycle.EXPIRE,)))
    if contents.is_suppressed(mail):
        return _suppressed(mail, contents)
    try:
        message = contents.message(mail)
        if mail.additions:
            additions.apply(message, mail)
        handed = guards.apply(message, contents.outstanding(mail))
    except Exception as error:  # noqa: BLE001 - one bad message never stops another
        reply = retry.reply_text(f"{type(error).__name__}: {error}")
        # A key that is missing here may be one that the site, or this worker, is yet to be given.
        kind = Kind.TRANSIENT if isinstance(error, MissingKey) else Kind.MESSAGE
        return _judge(
            _try(mail, EmailMessage(), contents), Result(failure=Failure(kind=kind, reply=reply))
        )
    ready = _try(mail, message, contents, handed)
    if handed.is_empty:
        return _judge(ready, Result(failure=next(iter(handed.barred.values()))))
    objection = _ask_site(mail, message)
    if objection is not None and objection.kind is Kind.VETOED:
        return _unsent(mail, contents, objection)
    if objection is not None:
        return _judge(ready, Result(failure=objection))
    refusal = rates.take(mail.transport, message.recipients())
    if refusal is not None:
        decision = Decision(moves=(lifecycle.RELEASE,), delay=refusal.seconds)
        return Outcome(mail, None, decision, ends_batch=not refusal.is_of_domain)
    return ready


def _try(
    mail: EmailLog, message: EmailMessage, contents: Contents, handed: Handed | None = None
) -> _Try:
    tried = contents.outstanding(mail)
    return _Try(
        mail,
        message,
        handed=handed or Handed(tried, tried),
        was_accepted=contents.was_accepted(mail),
        held_back=contents.held_back(mail),
    )


def _suppressed(mail: EmailLog, contents: Contents) -> Outcome:
    """Return the end of a mail that the suppression list leaves nobody to be sent to."""
    reasons = ", ".join(sorted(set(contents.held_back(mail).values())))
    failure = Failure(kind=Kind.SUPPRESSED, reply=f"On the suppression list: {reasons}.")
    return _unsent(mail, contents, failure)


def _unsent(mail: EmailLog, contents: Contents, failure: Failure) -> Outcome:
    """Return the end of a mail that is not sent, but to those who accepted it before."""
    if contents.was_accepted(mail):
        decision = Decision(moves=(lifecycle.SUCCEED,))
    else:
        decision = Decision(moves=(lifecycle.SUPPRESS,), failure=failure)
    return Outcome(mail, None, decision, held_back=contents.held_back(mail))


def _ask_site(mail: EmailLog, message: EmailMessage) -> Failure | None:
    """Return why the site does not want a mail sent, or not now; ``None`` if it does not mind."""
    if not signals.before_send.has_listeners(EmailLog):
        return None
    try:
        signals.before_send.send(EmailLog, email=mail, message=message)
    except Veto as veto:
        return Failure(kind=Kind.VETOED, reply=retry.reply_text(veto.reason))
    except Exception as error:
        logger.exception("A receiver of before_send failed for e-mail %s.", mail.pk)
        return Failure(kind=Kind.TRANSIENT, reply=retry.reply_text(f"before_send: {error!r}"))
    return None


def _note(finished: Iterable[tuple[_Try, Result]], batch: Batch, settler: Settler) -> bool:
    """Take the outcomes of tries to the settler; return whether to go on with the batch."""
    works = True
    for it, result in finished:
        settler.add(_judge(it, result))
        works &= _transport_works(batch, result)
    return works


def _judge(it: _Try, result: Result) -> Outcome:
    """Decide what follows from a try."""
    # The server's replies follow the recipients asked; the rows know them by their place in all.
    result = retry.at_positions(result, it.handed.asked)
    if it.handed.barred:
        result = replace(result, refused={**result.refused, **it.handed.barred})
    policy = policy_of(it.mail, too_old=getattr(it.mail, "too_old", False))
    decision = retry.conclude(result, policy, it.handed.tried, it.was_accepted)
    return Outcome(it.mail, result, decision, held_back=it.held_back)


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
