"""Settles e-mails: writes their outcomes to the database, several per commit."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from django.db import Error, transaction
from django.db.models.functions import Greatest

from django_epica_mail import clock, conf, lifecycle, retry, signals
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.delivery.claim import PATIENCE, Claiming
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.exceptions import is_passing, words_of
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient, bounds
from django_epica_mail.queueing.dequeue import Accepted
from django_epica_mail.queueing.rows import sql
from django_epica_mail.retry import Result
from django_epica_mail.tracking import events
from django_epica_mail.tracking.bounces import incoming

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Settler:
    """Commits the outcomes of one worker's e-mails, all that are known together.

    Each write is guarded by the claim's token or the attempt's number, so that repeating a commit
    whose reply was lost changes nothing.
    """

    def __init__(self, using: str) -> None:
        self._using = using
        self._waiting: list[Outcome] = []
        self._lost_any = False
        self.settled = 0

    def add(self, outcome: Outcome) -> None:
        """Add an outcome, to be committed with the next ``flush`` or ``settle_and``."""
        self._waiting.append(outcome)

    @property
    def is_waiting(self) -> bool:
        """Whether an outcome is not committed yet."""
        return bool(self._waiting)

    @property
    def holds_claims(self) -> bool:
        """Whether every outcome so far was written while its claim held the e-mail.

        If one was not, this worker may have been presumed dead, and another may be sending the
        rest.
        """
        return not self._lost_any

    def flush(self) -> None:
        """Commit what waits; retry for some time if the database fails."""
        outcomes = self._waiting
        if not outcomes:
            return
        try:
            moved = self._patiently(partial(settle, outcomes, using=self._using))
        except Error as error:
            if is_passing(error):
                raise
            self._settle_one_by_one()
        else:
            self._close(outcomes, moved)

    def settle_and(self, claiming: Claiming) -> Batch | None:
        """Commit what waits together with a claim, in one transaction; return what was claimed."""
        outcomes = self._waiting
        if outcomes:
            try:
                moved, batch = self._settle_and(claiming, outcomes)
            except Error:
                self.flush()  # on its own: no claim that fails may cost an outcome
            else:
                try:
                    self._close(outcomes, moved)
                except Exception:
                    self.release([mail.row for mail in batch.mails] if batch else [])
                    raise
                return batch
        until = time.monotonic() + PATIENCE
        return retry_on_database_errors(claiming, until=until, using=self._using)

    def _settle_and(
        self, claiming: Claiming, outcomes: Sequence[Outcome]
    ) -> tuple[list[Outcome], Batch | None]:
        using = self._using
        if all(it.is_plain and not it.ends_content for it in outcomes):
            settled, batch = claiming.settle_too([_accepted(it) for it in outcomes]) or (None, None)
            if settled is not None:
                moved = [it for it in outcomes if it.mail.pk in settled]
                others = [it for it in outcomes if it.mail.pk not in settled]
                return moved + (settle(others, using=using) if others else []), batch
        claiming.look()
        with transaction.atomic(using=using):
            return settle(outcomes, using=using), claiming()

    def _patiently(self, operation: Callable[[], T]) -> T:
        until = time.monotonic() + conf.get().settle_patience
        return retry_on_database_errors(operation, until=until, using=self._using)

    def _settle_one_by_one(self) -> None:
        """Settle outcomes one at a time, so that one the database rejects does not block the rest.

        Raises a passing error; what is not settled by then still waits.
        """
        for outcome in list(self._waiting):
            moved: list[Outcome] = []
            try:
                moved = self._patiently(partial(settle, [outcome], using=self._using))
            except Error as error:
                if is_passing(error):
                    raise
                logger.error(  # without a traceback, which would show the row
                    "The outcome of e-mail %s cannot be stored (%s).",
                    outcome.mail.pk,
                    words_of(error),
                )
            self._close([outcome], moved)

    def _close(self, outcomes: Sequence[Outcome], moved: Sequence[Outcome]) -> None:
        """Count outcomes as settled, and announce those that were written."""
        self._waiting = self._waiting[len(outcomes) :]
        self.settled += sum(it.decision.moves != (lifecycle.RELEASE,) for it in outcomes)
        self._lost_any |= len(moved) < len(outcomes) or any(it.is_late for it in moved)
        announce(moved, self._using)

    def release(self, mails: Sequence[EmailLog]) -> None:
        """Requeue e-mails of one claim that were not begun, without using up a try."""
        if not mails:
            return
        ids, token = [mail.pk for mail in mails], mails[0].lease_token
        rows = EmailLog.objects.using(self._using)
        self._patiently(lambda: rows.move(lifecycle.RELEASE, ids, token=token))
        # An event may have reported in the meantime that an earlier attempt was accepted after all.
        if tried_before := [mail.pk for mail in mails if mail.attempts]:
            events.apply_early_events(tried_before, (), self._using)


def settle(outcomes: Sequence[Outcome], *, using: str) -> list[Outcome]:
    """Write outcomes in one transaction; return those that were written.

    Each e-mail's ``lease_token`` is that of the claim under which it was sent. Another worker may
    hold the e-mail by now because this one was presumed dead; then the other worker's outcome
    counts.
    """
    alike: dict[uuid.UUID, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.is_plain:
            alike.setdefault(_token(outcome), []).append(outcome)
    others = [outcome for outcome in outcomes if not outcome.is_plain]
    with transaction.atomic(using=using, savepoint=False):
        moved = [it for token, group in alike.items() for it in _settle_alike(group, token, using)]
        moved += [it for outcome in others if (it := _settle_one(outcome, using))]
        # Only for rows that moved; the others may have been deleted.
        attempts = [_attempt(it.mail, it.result) for it in moved if it.result is not None]
        sql.insert_rows(attempts, using, ignore_conflicts=True)
        for outcome in moved:
            if outcome.is_late and outcome.result is not None:
                _correct(_attempt(outcome.mail, outcome.result), using)
        ended = [outcome.mail.pk for outcome in moved if outcome.ends_content]
        EmailLog.objects.using(using).forget_content(ended)
    return moved


def _token(outcome: Outcome) -> uuid.UUID:
    token: uuid.UUID | None = outcome.mail.lease_token
    assert token is not None, "An e-mail is settled under the claim that holds it."  # noqa: S101
    return token


_LATE_MOVES = {
    (Status.UNKNOWN, Status.SENT): lifecycle.SUCCEED,
    (Status.QUEUED, Status.SENT): lifecycle.CONFIRM,
    (Status.RETRYING, Status.SENT): lifecycle.CONFIRM,
    (Status.FAILED, Status.SENT): lifecycle.CONFIRM,
    (Status.UNKNOWN, Status.FAILED): lifecycle.WRITE_OFF,
    (Status.QUEUED, Status.FAILED): lifecycle.GIVE_UP,
    (Status.RETRYING, Status.FAILED): lifecycle.GIVE_UP,
    (Status.UNKNOWN, Status.RETRYING): lifecycle.RESEND,
    (Status.RETRYING, Status.RETRYING): lifecycle.POSTPONE,
}
"""The moves of known outcomes after the lease has ended, keyed by (current status, target)."""


def _settle_alike(outcomes: list[Outcome], token: uuid.UUID, using: str) -> list[Outcome]:
    ids = [outcome.mail.pk for outcome in outcomes]
    held = EmailLog.objects.using(using).filter(status=Status.SENDING)
    if held.move(lifecycle.SUCCEED, ids, token=token, **_values(outcomes[0])) == len(ids):
        return outcomes
    rows = EmailLog.objects.using(using).filter(pk__in=ids, lease_token=token).order_by()
    statuses = dict(rows.values_list("pk", "status"))
    settled = []
    for outcome in outcomes:
        status = statuses.get(outcome.mail.pk)
        if status == Status.SENT:
            settled.append(outcome)
        elif late := _settle_late(outcome, status, token, using):
            settled.append(late)
    return settled


def _settle_late(
    outcome: Outcome, status: str | None, token: uuid.UUID, using: str
) -> Outcome | None:
    """Write an outcome that arrives after the lease has ended and before another attempt begins.

    ``status`` is that of the row if it still has the claim's token. Another claim, or a person,
    has given it another one: then a success counts as long as no attempt has been counted but the
    one that the rescue has. An erasure, which has removed recipients, leaves none.

    The rescue has counted the attempt, so it is set to what it was at the claim and one more. The
    try that the rescue has used is not given back if the policy has resent the mail for it.
    """
    rows, mail = EmailLog.objects.using(using), outcome.mail
    values = _values(outcome)
    if outcome.result is not None:
        values["attempts"] = mail.attempts + 1
        tries = mail.tries + int(outcome.decision.uses_try)
        values["tries"] = tries if status == Status.UNKNOWN else Greatest("tries", tries)
    if status is not None:
        move = _LATE_MOVES.get((Status(status), outcome.target))
        rows = rows.filter(status=status, lease_token=token)
    else:
        move = lifecycle.CONFIRM if outcome.target is Status.SENT else None
        rows = rows.filter(attempts=mail.attempts + 1).exclude(lease_token=None)
        values["lease_token"] = token  # so that a repetition finds it
    if move is None or not rows.move(move, [mail.pk], **values):
        return None
    return outcome.made_late_by(move)


def _settle_one(outcome: Outcome, using: str) -> Outcome | None:
    """Write an outcome; return it as written, or ``None`` if the claim lost the e-mail."""
    rows, ids, token = EmailLog.objects.using(using), [outcome.mail.pk], _token(outcome)
    held, moves = rows.filter(status=Status.SENDING), outcome.decision.moves
    values: list[dict[str, Any]] = [*({} for _ in moves[1:]), _values(outcome)]
    if held.move(moves[0], ids, token=token, **values[0]):
        for move, columns in zip(moves[1:], values[1:], strict=True):
            rows.move(move, ids, token=token, **columns)
    else:
        mine = rows.filter(pk__in=ids, lease_token=token)
        row = mine.values_list("status", "attempts", "failure_kind").first()
        if row == _written(outcome):
            return outcome  # already written by this claim, in a commit whose reply was lost
        status = row[0] if row else None
        late = _settle_late(outcome, status, token, using) if outcome.result else None
        if late is None:
            return None
        outcome = late
    recipients = EmailRecipient.objects.using(using).filter(email=outcome.mail)
    failure = outcome.decision.failure
    is_lost = failure is not None and failure.kind in retry.LOST and outcome.result is not None
    if outcome.mail.attempts and (is_lost or outcome.target is Status.SENT):
        # Those refused for now in an earlier attempt of unknown outcome are in doubt as well now,
        # or accepted.
        recipients.filter(outcome="", code__isnull=False).update(code=None, reply="")
    for position, failure in outcome.decision.not_accepted.items():
        recipients.filter(position=position).update(code=failure.code or 0, reply=failure.reply)
    if outcome.decision.accepted:
        recipients.filter(position__in=outcome.decision.accepted).update(
            outcome=EmailRecipient.Outcome.ACCEPTED, code=None, reply=""
        )
    for position, failure in outcome.decision.refused.items():
        recipients.filter(position=position).update(
            outcome=EmailRecipient.Outcome.REFUSED, code=failure.code, reply=failure.reply
        )
    for position, reason in outcome.held_back.items():
        recipients.filter(position=position).update(
            outcome=EmailRecipient.Outcome.SUPPRESSED, reply=reason
        )
    return outcome


def _written(outcome: Outcome) -> tuple[str, int, str]:
    """Return status, attempts and failure of a row to which an outcome has been written."""
    failure, attempts = outcome.decision.failure, outcome.mail.attempts
    if outcome.decision.moves == (lifecycle.RELEASE,):
        return outcome.target, attempts, outcome.mail.failure_kind
    made = int(outcome.result is not None)
    return outcome.target, attempts + made, failure.kind if failure else ""


def _values(outcome: Outcome) -> dict[str, Any]:
    """Return the columns that an outcome sets in addition to the status."""
    decision = outcome.decision
    if decision.moves == (lifecycle.RELEASE,):  # as it was, and where it was in the queue
        return {"due_at": clock.now(decision.delay)} if decision.delay else {}
    failure = decision.failure
    target = decision.moves[-1].target
    values: dict[str, Any] = {
        "failure_kind": failure.kind if failure else "",
        "failure_code": failure.code if failure else None,
        "reply": failure.reply if failure else "",
    }
    if outcome.result is not None:
        values["attempts"] = bounds.increased("attempts", 1, bounds.MOST_SMALL)
        values["tries"] = bounds.increased("tries", int(decision.uses_try), bounds.MOST_SMALL)
    if target is Status.UNKNOWN:
        values["due_at"] = clock.now(decision.delay)  # for the search for evidence
    if target in lifecycle.CLAIMABLE:
        values["due_at"] = clock.now(retry.jittered(decision.delay))
    if target in lifecycle.FINAL:
        values["finished_at"] = clock.now()
    return values


def _accepted(outcome: Outcome) -> Accepted:
    mail, result = outcome.mail, outcome.result
    assert result is not None, "A plain outcome has a result."  # noqa: S101
    return Accepted(
        id=clock.uuid7(),
        email_id=mail.pk,
        token=_token(outcome),
        number=mail.attempts + 1,
        transport=mail.transport,
        worker=mail.worker,
        seconds=result.seconds,
        code=result.code,
        reply=result.reply,
        provider_id=result.provider_id,
    )


def _attempt(mail: EmailLog, result: Result) -> DeliveryAttempt:
    failure = result.doubt or result.failure
    return DeliveryAttempt(
        email=mail,
        number=mail.attempts + 1,
        transport=mail.transport,
        worker=mail.worker,
        created_at=clock.now(),
        seconds=result.seconds,
        failure_kind=failure.kind if failure else "",
        code=failure.code if failure else result.code,
        reply=failure.reply if failure else result.reply,
        provider_id=result.provider_id,
    )


def _correct(attempt: DeliveryAttempt, using: str) -> None:
    """Write how an attempt ended after all, of which the rescue has recorded that it is lost."""
    rows = DeliveryAttempt.objects.using(using).filter(
        email=attempt.email_id, number=attempt.number, failure_kind__in=retry.ENDED_WORKER
    )
    names = ("seconds", "failure_kind", "code", "reply", "provider_id")
    rows.update(**{name: getattr(attempt, name) for name in names})


def announce(outcomes: Sequence[Outcome], using: str) -> None:
    """Send ``email_moved`` for committed moves, and record and apply what else they tell.

    That is recipients that do not exist, and events that arrived before the settle. Both may be
    repeated, and are if the database fails in passing: nobody else would do it.
    """
    for outcome in outcomes:
        for move in outcome.decision.moves:
            signals.tell_moved(EmailLog, outcome.mail.pk, move, outcome.decision.failure)
    todo = [
        partial(incoming.record_refusals, outcome.mail.pk, outcome.decision.refused)
        for outcome in outcomes
        if outcome.decision.refused
    ]
    provider_ids = {it.result.provider_id for it in outcomes if it.result is not None} - {""}
    open_ones = [outcome.mail.pk for outcome in outcomes if _may_have_been_sent(outcome)]
    if provider_ids or open_ones:
        todo.append(partial(events.apply_early_events, open_ones, provider_ids, using))
    until = time.monotonic() + PATIENCE
    for step in todo:
        retry_on_database_errors(step, until=until, using=using)


def announce_moves(move: lifecycle.Move, ids: Iterable[uuid.UUID]) -> None:
    """Send ``email_moved`` for a committed move of several e-mails."""
    for pk in ids:
        signals.tell_moved(EmailLog, pk, move)


def _may_have_been_sent(outcome: Outcome) -> bool:
    """Return whether an e-mail that is not ``sent`` may have been accepted by some attempt."""
    failure = outcome.decision.failure
    is_in_doubt = failure is not None and failure.kind in retry.LOST
    return outcome.target is not Status.SENT and (is_in_doubt or outcome.mail.attempts > 0)
