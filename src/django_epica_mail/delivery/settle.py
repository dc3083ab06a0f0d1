"""Settles e-mails: writes their outcomes to the database, several per commit."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence

from django.db import transaction
from django.db.models import F

from django_epica_mail import clock, conf, lifecycle, signals
from django_epica_mail.delivery.claim import Batch
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient
from django_epica_mail.queueing import inserts
from django_epica_mail.retry import Kind, Result
from django_epica_mail.tracking import events


class Settler:
    """Commits the outcomes of one batch, several together.

    An e-mail is begun only while fewer than ``lifecycle.PERMITS`` are unsettled, which bounds how
    many a crash leaves unknown. An outcome waits up to ``SETTLE_DELAY`` seconds for others.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._waiting: list[Outcome] = []
        self._oldest = 0.0
        self.settled = 0

    def add(self, outcome: Outcome) -> None:
        """Add an outcome, to be committed soon."""
        if not self._waiting:
            self._oldest = time.monotonic()
        self._waiting.append(outcome)

    @property
    def patience(self) -> float | None:
        """How many more seconds the oldest outcome may wait; ``None`` if none waits."""
        if not self._waiting:
            return None
        return max(0.0, self._oldest + conf.get().settle_delay - time.monotonic())

    def make_room(self, in_flight: int = 0) -> None:
        """Commit what waits if no permit is left or the oldest outcome has waited long enough.

        ``in_flight`` is how many e-mails have been begun and have no outcome yet.
        """
        if len(self._waiting) + in_flight >= lifecycle.PERMITS or self.patience == 0:
            self.flush()

    def flush(self) -> None:
        """Commit what waits; retry while the lease lasts if the database fails.

        Each write is guarded by the claim's token or the attempt's number: repeating a commit
        whose reply was lost changes nothing.
        """
        if not self._waiting:
            return
        batch, outcomes = self._batch, self._waiting
        moved = retry_on_database_errors(
            lambda: settle(outcomes, token=batch.token, using=batch.using),
            until=batch.lease_ends,
            using=batch.using,
        )
        self.settled += len(self._waiting)
        self._waiting = []
        announce(moved, batch.using)

    def release(self, mails: Sequence[EmailLog]) -> None:
        """Put e-mails that were claimed but not begun back into the queue; uses no try."""
        if not mails:
            return
        batch, ids = self._batch, [mail.pk for mail in mails]
        retry_on_database_errors(
            lambda: EmailLog.objects.using(batch.using).move(
                lifecycle.RELEASE, ids, token=batch.token
            ),
            until=batch.lease_ends,
            using=batch.using,
        )


def settle(outcomes: Sequence[Outcome], *, token: uuid.UUID, using: str) -> list[Outcome]:
    """Write outcomes in one transaction; return those whose e-mail this claim still held.

    Another worker may hold the e-mail by now because this one was presumed dead; then the other
    worker's outcome counts.
    """
    plain = [outcome for outcome in outcomes if outcome.is_plain]
    others = [outcome for outcome in outcomes if not outcome.is_plain]
    with transaction.atomic(using=using):
        moved = _settle_alike(plain, token, using) if plain else []
        moved += [outcome for outcome in others if _settle_one(outcome, token, using)]
        attempts = [_attempt(it.mail, it.result) for it in outcomes if it.result is not None]
        inserts.insert_rows(attempts, using, ignore_conflicts=True)
        ended = [outcome.mail.pk for outcome in moved if outcome.ends_content]
        EmailLog.objects.using(using).forget_content(ended)
    return moved


def _settle_alike(outcomes: list[Outcome], token: uuid.UUID, using: str) -> list[Outcome]:
    ids = [outcome.mail.pk for outcome in outcomes]
    rows = EmailLog.objects.using(using)
    count = rows.move(lifecycle.SUCCEED, ids, token=token, **_values(outcomes[0]))
    if count == len(ids):
        return outcomes
    done = rows.filter(pk__in=ids, status=lifecycle.Status.SENT, lease_token=token)
    kept = set(done.values_list("pk", flat=True))
    return [outcome for outcome in outcomes if outcome.mail.pk in kept]


def _settle_one(outcome: Outcome, token: uuid.UUID, using: str) -> bool:
    *before, last = outcome.decision.moves
    rows, ids = EmailLog.objects.using(using), [outcome.mail.pk]
    for move in before:
        if not rows.move(move, ids, token=token):
            return False
    if not rows.move(last, ids, token=token, **_values(outcome)):
        return False
    recipients = EmailRecipient.objects.using(using).filter(email=outcome.mail)
    if outcome.decision.accepted:
        recipients.filter(position__in=outcome.decision.accepted).update(
            outcome=EmailRecipient.Outcome.ACCEPTED
        )
    for position, failure in outcome.decision.refused.items():
        recipients.filter(position=position).update(
            outcome=EmailRecipient.Outcome.REFUSED, code=failure.code, reply=failure.reply
        )
    for position, reason in outcome.held_back.items():
        recipients.filter(position=position).update(
            outcome=EmailRecipient.Outcome.SUPPRESSED, reply=reason
        )
    return True


def _values(outcome: Outcome) -> dict[str, object]:
    """Return the columns that an outcome sets in addition to the status."""
    decision = outcome.decision
    failure = decision.failure
    target = decision.moves[-1].target
    values: dict[str, object] = {
        "failure_kind": failure.kind if failure else "",
        "failure_code": failure.code if failure else None,
        "reply": failure.reply if failure else "",
    }
    if outcome.result is not None:
        values["attempts"] = F("attempts") + 1
        values["tries"] = F("tries") + int(decision.uses_try)
    if target in lifecycle.CLAIMABLE:
        values["due_at"] = clock.now(decision.delay)
        if failure is not None and failure.kind is Kind.OUTAGE and outcome.mail.fallbacks:
            values.update(outcome.mail.failover(outcome.mail.fallbacks[0]))
    if target in lifecycle.FINAL:
        values["finished_at"] = clock.now()
    return values


def _attempt(mail: EmailLog, result: Result) -> DeliveryAttempt:
    failure = result.failure
    return DeliveryAttempt(
        email=mail,
        number=mail.attempts + 1,
        transport=mail.transport,
        worker=mail.worker,
        created_at=clock.now(),
        seconds=result.seconds,
        failure_kind=failure.kind if failure else "",
        code=result.code,
        reply=failure.reply if failure else result.reply,
        provider_id=result.provider_id,
    )


def announce(outcomes: Sequence[Outcome], using: str) -> None:
    """Send ``email_moved`` for committed moves, and apply events that arrived before them."""
    for outcome in outcomes:
        for move in outcome.decision.moves:
            signals.email_moved.send_robust(
                EmailLog,
                email_id=outcome.mail.pk,
                move=move,
                failure=outcome.decision.failure,
            )
    provider_ids = {it.result.provider_id for it in outcomes if it.result is not None} - {""}
    open_ones = [outcome.mail.pk for outcome in outcomes if _may_have_been_sent(outcome)]
    if provider_ids or open_ones:
        events.settled(open_ones, provider_ids, using)


def announce_moves(move: lifecycle.Move, ids: Iterable[uuid.UUID]) -> None:
    """Send ``email_moved`` for a committed move of several e-mails."""
    for pk in ids:
        signals.email_moved.send_robust(EmailLog, email_id=pk, move=move, failure=None)


def _may_have_been_sent(outcome: Outcome) -> bool:
    """Return whether an e-mail that is not ``sent`` may have been accepted by some attempt."""
    failure = outcome.decision.failure
    if failure is None:
        return False
    return failure.kind in (Kind.UNKNOWN, Kind.WORKER_LOST) or outcome.mail.attempts > 0
