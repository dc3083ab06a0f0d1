"""The outcome of one attempt, and what it means for the e-mail's row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from django.core.mail import EmailMessage

from django_epica_mail import conf, lifecycle, retry
from django_epica_mail.delivery.batch import ClaimedMail
from django_epica_mail.models import EmailLog, EmailRecipient
from django_epica_mail.retry import Decision, Failure, Policy, Result


@dataclass(frozen=True, slots=True)
class Envelope:
    """The recipients of one attempt, as positions in the message's ``recipients()``."""

    tried: list[int]
    """The recipients that the attempt concerns."""
    asked: list[int]
    """Those whose addresses the transport gets, in its order."""
    barred: dict[int, Failure] = field(default_factory=dict)
    """Those that ``ALLOWED_RECIPIENTS`` excludes, with the reason."""

    @property
    def is_empty(self) -> bool:
        """Whether no recipient is left to send to."""
        return bool(self.tried) and len(self.barred) == len(self.tried)


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A message ready for the transport, and what is needed to judge the result."""

    mail: ClaimedMail
    message: EmailMessage
    envelope: Envelope
    was_accepted: bool
    """Whether an earlier attempt was accepted for other recipients."""
    held_back: Mapping[int, str]
    """The recipients on the suppression list, with the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one e-mail: the attempt's result and the moves that follow."""

    mail: EmailLog
    result: Result | None
    """The result of the attempt; ``None`` if none was made."""
    decision: Decision
    ends_batch: bool = False
    """Whether the worker should release the e-mails that follow instead of sending them."""
    held_back: Mapping[int, str] = field(default_factory=dict)
    """The recipients on the suppression list, with the reason."""
    too_old: bool = False
    """Whether the e-mail has waited as long as it may."""
    is_late: bool = False
    """Whether it was written after the lease had ended."""

    @property
    def target(self) -> lifecycle.Status:
        """The status that it leads to."""
        return self.decision.moves[-1].target

    def made_late_by(self, move: lifecycle.Move) -> Outcome:
        """Return the outcome as written after the lease had ended, by ``move`` alone."""
        return replace(self, decision=replace(self.decision, moves=(move,)), is_late=True)

    @property
    def ends_content(self) -> bool:
        """Whether body and attachments are deleted with this outcome."""
        failure = self.decision.failure
        kind = failure.kind if failure else ""
        return self.mail.forgets_content(self.target, kind, too_old=self.too_old)

    @property
    def is_plain(self) -> bool:
        """Whether the first attempt was accepted for every recipient, as nearly all are."""
        decision = self.decision
        is_whole = self.result is not None and not decision.refused and not self.held_back
        is_first = not self.mail.attempts  # later ones may have refusals to clear
        return decision.moves == (lifecycle.SUCCEED,) and is_whole and is_first


def judge(attempt: Attempt, result: Result) -> Outcome:
    """Return the outcome that the result of an attempt leads to."""
    # The server's replies follow the recipients asked; rows count all recipients.
    result = retry.at_positions(result, attempt.envelope.asked)
    if attempt.envelope.barred:
        result = replace(result, refused={**result.refused, **attempt.envelope.barred})
    mail = attempt.mail
    policy = policy_of(mail.row, too_old=mail.too_old)
    decision = retry.conclude(result, policy, attempt.envelope.tried, attempt.was_accepted)
    return Outcome(mail.row, result, decision, held_back=attempt.held_back, too_old=mail.too_old)


def recipient_outcomes(mails: Iterable[EmailLog], using: str) -> dict[UUID, dict[int, str]]:
    """Return what is known of each recipient of e-mails tried before, by id and position."""
    tried_before = [mail.pk for mail in mails if mail.attempts]
    found: dict[UUID, dict[int, str]] = defaultdict(dict)
    if tried_before:
        rows = EmailRecipient.objects.using(using).filter(email_id__in=tried_before)
        for row in rows.only("email_id", "position", "outcome"):
            found[row.email_id][row.position] = row.outcome
    return found


def policy_of(mail: EmailLog, *, too_old: bool) -> Policy:
    """Return what of a row and of the settings decides what follows from an attempt."""
    return Policy(
        tries=mail.tries,
        max_retries=mail.max_retries,
        retry_delays=mail.delays,
        on_unknown=mail.on_unknown,
        too_old=too_old,
        awaits_evidence=conf.get().awaits_evidence,
    )
