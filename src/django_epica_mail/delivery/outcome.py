"""Outcomes: what a try of one mail came to, and what follows for its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from django.core.mail import EmailMessage

from django_epica_mail import lifecycle, models, retry
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Decision, Failure, Policy, Result


@dataclass(frozen=True, slots=True)
class Outcome:
    """One mail, what its try came to (``None``: there was none), and what follows."""

    mail: EmailLog
    result: Result | None
    decision: Decision
    ends_batch: bool = False
    """Whether the mails after it had better not be begun now."""
    held_back: Mapping[int, str] = field(default_factory=dict)
    """The recipients that the suppression list keeps from it, and why."""

    @property
    def ends_content(self) -> bool:
        """Whether body and attachments are not to be kept beyond it."""
        failure = self.decision.failure
        return models.ends_with(
            self.decision.moves[-1].target,
            self.mail.keep_content,
            failure.kind if failure else "",
            too_old=getattr(self.mail, "too_old", False),
        )

    @property
    def is_plain(self) -> bool:
        """Whether there was a try and it was accepted for every recipient, as nearly always."""
        decision = self.decision
        is_whole = self.result is not None and not decision.refused and not self.held_back
        return decision.moves == (lifecycle.SUCCEED,) and is_whole


def policy_of(mail: EmailLog, *, too_old: bool) -> Policy:
    """Return the part of a row that decides what follows from a try."""
    return Policy(
        tries=mail.tries,
        max_retries=mail.max_retries,
        retry_delay=mail.retry_delay,
        on_unknown=mail.on_unknown,
        too_old=too_old,
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a transport is handed of a mail."""

    tried: list[int]
    """The positions of the recipients that a try concerns."""
    asked: list[int]
    """Of these, those whose addresses the transport is given, in its order."""
    barred: dict[int, Failure] = field(default_factory=dict)
    """Those that the site's settings keep from it."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody is left to send to."""
        return bool(self.tried) and len(self.barred) == len(self.tried)


@dataclass(frozen=True, slots=True, eq=False)
class Try:
    """A mail as it is handed to the transport, and what is needed to judge the outcome."""

    mail: EmailLog
    message: EmailMessage
    handed: Envelope
    was_accepted: bool
    held_back: Mapping[int, str]


def judge(it: Try, result: Result) -> Outcome:
    """Decide what follows from a try."""
    # The server's replies follow the recipients asked; the rows know them by their place in all.
    result = retry.at_positions(result, it.handed.asked)
    if it.handed.barred:
        result = replace(result, refused={**result.refused, **it.handed.barred})
    policy = policy_of(it.mail, too_old=getattr(it.mail, "too_old", False))
    decision = retry.conclude(result, policy, it.handed.tried, it.was_accepted)
    return Outcome(it.mail, result, decision, held_back=it.held_back)
