"""Decides what follows from an attempt, given its failures. Uses no clock and no database."""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

from django_epica_mail import lifecycle

THROTTLE_SECONDS = 60.0
"""Seconds a throttled mail waits if the server does not say how long."""

_LEAST_SECONDS = 5.0
"""Seconds a mail waits at least, however soon the server wants it again: 0 would be a busy loop."""

JITTER = 0.1
"""By what share of itself a delay is longer at most."""


class Stage(enum.IntEnum):
    """How far the dialogue about one mail had come (RFC 5321, section 3)."""

    CONNECT = 0
    """No session yet: connecting, greeting, TLS or authentication."""
    ENVELOPE = 1
    """In session, before the end of the content: the mail cannot have been accepted."""
    CONTENT = 2
    """The end of the content is being sent or awaits its reply: the mail may be accepted."""
    ANSWERED = 3
    """The server has replied to the content."""
    UNSEEN = 4
    """The backend does not say."""


class Kind(TextChoices):
    """Why an attempt did not succeed."""

    PERMANENT = "permanent", _("refused for good")
    TRANSIENT = "transient", _("refused for now")
    THROTTLED = "throttled", _("throttled")
    OUTAGE = "outage", _("transport out of order")
    UNKNOWN = "unknown", _("reply lost")
    WORKER_LOST = "worker_lost", _("worker lost")
    POISON = "poison", _("ended its worker twice")
    MESSAGE = "message", _("message cannot be built")
    OVERDUE = "overdue", _("waited too long")
    SUPPRESSED = "suppressed", _("on the suppression list")
    VETOED = "vetoed", _("stopped by the site")


class Scope(enum.Enum):
    """What a fault concerns, and so what else it may hold up."""

    MAIL = "mail"
    SENDER = "sender"
    RECIPIENT = "recipient"
    """One recipient."""
    DOMAIN = "domain"
    """The recipients' domain, unless mails to several domains get the same reply."""
    CREDENTIALS = "credentials"
    SERVER = "server"
    """Perhaps. A reply about one mail proves it only if independent mails get it too."""


PASSING = (Kind.TRANSIENT, Kind.THROTTLED, Kind.OUTAGE)
"""Kinds that may pass on their own: mail that failed with one is retried until it is given up."""

LOST = (Kind.UNKNOWN, Kind.WORKER_LOST, Kind.POISON)
"""Kinds that leave open whether the mail was accepted."""

ENDED_WORKER = (Kind.WORKER_LOST, Kind.POISON)
"""Kinds of a mail whose last attempt ended with the death of its worker."""

_LIMIT_WORDS = re.compile(
    r"\b(?:session|connection|too many (?:\w+ )?(?:mails?|messages?|transactions?))\b",
    re.IGNORECASE,
)

_BUDGETED = frozenset({Kind.TRANSIENT, *LOST})
_FOR_GOOD = frozenset({Kind.PERMANENT, Kind.MESSAGE, Kind.OVERDUE})
# In doubt first: the mail's own policy decides about that.
_MILDEST_FIRST = (Kind.UNKNOWN, Kind.OUTAGE, Kind.THROTTLED, Kind.TRANSIENT, Kind.PERMANENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a mail, or one of its recipients, was not accepted."""

    kind: Kind
    """The sort of reason."""
    code: int | None = None
    """The server's reply code, if it gave one."""
    reply: str = ""
    """The text of the server or the exception. May contain addresses: store it, never log it."""
    retry_after: float | None = None
    """Seconds the server or provider asks us to wait, if it does."""
    scope: Scope = Scope.MAIL
    """What the fault concerns."""
    is_confirmed: bool = False
    """Whether independent mails show that the transport is out of order."""

    @property
    def stops_transport(self) -> bool:
        """Whether the transport gets no more mail for now."""
        return self.kind is Kind.OUTAGE or self.is_confirmed

    @property
    def may_be_outage(self) -> bool:
        """Whether the same answer to independent mails means that the transport is out of order."""
        kinds = (Kind.TRANSIENT, Kind.UNKNOWN, Kind.THROTTLED)
        return self.scope in (Scope.SERVER, Scope.DOMAIN) and self.kind in kinds

    @property
    def slows_domain(self) -> bool:
        """Whether the server takes less mail for the recipients' domain than it is given."""
        is_throttled = self.kind is Kind.THROTTLED and not self.is_confirmed
        return is_throttled and self.scope is Scope.DOMAIN

    @property
    def pause_growth(self) -> float:
        """By what factor the pause of the transport grows with each probe that fails like this.

        With 1.25 a pause lasts about a quarter of the time since the first. Credentials are tried
        ever more rarely, because a provider may lock the account.
        """
        if self.kind is Kind.THROTTLED:
            return 1.25
        return 2.0 if self.scope is Scope.CREDENTIALS else 1.0

    @property
    def may_be_session_limit(self) -> bool:
        """Whether a reply may mean that the server takes no more mail on this connection.

        421 is not among them: it closes the connection, for whatever reason.
        """
        is_reply = self.code is not None and 400 <= self.code < 600 and self.code != 421
        is_refusal = self.kind in (Kind.PERMANENT, Kind.TRANSIENT, Kind.THROTTLED)
        return is_reply and is_refusal and self.scope is not Scope.RECIPIENT

    @property
    def names_a_limit(self) -> bool:
        """Whether a reply speaks of what one connection carries."""
        return _LIMIT_WORDS.search(self.reply) is not None

    def confirmed(self) -> Failure:
        """Return this failure as the outage that it is part of.

        An unknown mail stays unknown, and a throttled one throttled.
        """
        stays = self.kind in (Kind.UNKNOWN, Kind.THROTTLED)
        kind = self.kind if stays else Kind.OUTAGE
        return replace(self, kind=kind, is_confirmed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one attempt."""

    failure: Failure | None = None
    """Why no recipient was accepted, or ``None`` if at least one was."""
    refused: Mapping[int, Failure] = field(default_factory=dict)
    """Recipients that were refused individually, by position."""
    code: int | None = None
    """The code of the server's reply to the content."""
    reply: str = ""
    """The server's reply to the content."""
    seconds: float | None = None
    """How long the attempt took, or ``None`` if the transport was not used."""
    provider_id: str = ""
    """The provider's id of the mail, if it gave one."""
    limited: frozenset[int] = frozenset()
    """Those of ``refused`` that the server may accept in a transaction of their own."""

    @property
    def doubt(self) -> Failure | None:
        """Why it is unknown whether some recipients were accepted; ``None`` if all are known.

        Others may have been accepted, in a transaction of their own.
        """
        failures = (self.failure, *self.refused.values())
        return next((it for it in failures if it is not None and it.kind in LOST), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The part of a mail's row that decides what follows from an attempt."""

    tries: int
    """Tries used up before this attempt."""
    max_retries: int
    """Tries allowed after the first."""
    retry_delays: Sequence[float]
    """Seconds before each retry; the last one repeats."""
    on_unknown: str
    """``resend``, ``hold`` or ``fail``."""
    too_old: bool
    """Whether the mail has waited as long as it is allowed to."""
    awaits_evidence: bool = False
    """Whether a mail of unknown outcome stays so until ``resolve`` decides about it."""

    @property
    def retry_delay(self) -> float:
        """Seconds until the next retry, without jitter."""
        return self.retry_delays[min(self.tries, len(self.retry_delays) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What happens to a mail after an attempt."""

    moves: tuple[lifecycle.Move, ...]
    """The moves to make, in order."""
    failure: Failure | None = None
    """The reason to store in the row."""
    delay: float = 0.0
    """Seconds until the mail is due again."""
    uses_try: bool = True
    """Whether the attempt uses up one of the mail's tries."""
    accepted: frozenset[int] = frozenset()
    """Recipients to record as accepted, because the mail goes on without them."""
    refused: Mapping[int, Failure] = field(default_factory=dict)
    """Recipients to record as refused, because the mail goes on, or ends well, without them."""
    not_accepted: Mapping[int, Failure] = field(default_factory=dict)
    """Recipients refused for now in an attempt whose outcome is unknown for the others. Proof that
    the attempt was accepted does not concern them."""


def jittered(seconds: float) -> float:
    """Return a delay in seconds lengthened by up to a tenth, at random.

    Mails that failed together do not come back together, and none before a server wants it.
    """
    return seconds * random.uniform(1.0, 1.0 + JITTER)


class Evidence(enum.Enum):
    """What is known of a mail that may or may not have been accepted."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """It was not accepted: to send it again is no risk."""
    UNKNOWN = "unknown"


def resolve(
    evidence: Evidence, on_unknown: str, *, is_over: bool, is_patient: bool
) -> lifecycle.Move | None:
    """Return the move of a mail of unknown outcome; ``None`` if it goes on waiting.

    ``is_over`` is whether it may not be tried again, ``is_patient`` whether it still waits for
    evidence. Evidence goes before the mail's own policy.
    """
    if evidence is Evidence.ACCEPTED:
        return lifecycle.SUCCEED
    if evidence is Evidence.UNKNOWN:
        if on_unknown == "hold" or is_patient:
            return None
        is_over = is_over or on_unknown == "fail"
    return lifecycle.WRITE_OFF if is_over else lifecycle.RESEND


def mildest(failures: Iterable[Failure]) -> Failure:
    """Return the most hopeful failure: one recipient to retry keeps the mail alive."""
    rank = {kind: number for number, kind in enumerate(_MILDEST_FIRST)}
    return min(failures, key=lambda failure: rank.get(failure.kind, len(rank)))


def at_positions(result: Result, tried: Sequence[int]) -> Result:
    """Return a result whose refusals are numbered among all recipients, not among those tried.

    Refusals beyond those tried are dropped: they concern recipients that a site's own backend
    added, such as an archive.
    """
    if not (result.refused or result.limited):
        return result
    known = ((index, it) for index, it in result.refused.items() if index < len(tried))
    refused = {tried[index]: failure for index, failure in known}
    limited = frozenset(tried[index] for index in result.limited if index < len(tried))
    return replace(result, refused=refused, limited=limited)


def join(first: Result, asked_again: Sequence[int], later: Result) -> Result:
    """Return the result of two transactions that share one mail.

    ``first`` was accepted for some; ``later`` concerns the recipients at the positions
    ``asked_again``.
    """
    later = at_positions(later, asked_again)
    answers = dict(later.refused)
    if later.failure is not None:
        answers = {position: answers.get(position, later.failure) for position in asked_again}
    settled = {p: failure for p, failure in first.refused.items() if p not in asked_again}
    return replace(
        first,
        refused={**settled, **answers},
        limited=later.limited if later.failure is None else frozenset(),
        seconds=(first.seconds or 0.0) + (later.seconds or 0.0),
    )


def conclude(
    result: Result, policy: Policy, outstanding: Sequence[int], accepted_before: bool
) -> Decision:
    """Return what happens to a mail after an attempt.

    ``outstanding`` holds the positions of the recipients that were tried. ``accepted_before`` is
    whether an earlier attempt was accepted for others. An accepted recipient is never tried again.
    """
    refused_for_good = {
        position: failure
        for position, failure in result.refused.items()
        if failure.kind is Kind.PERMANENT
    }
    if result.failure is not None:
        decision = _after_failure(result.failure, policy)
        if result.failure.kind in LOST:
            decision = replace(decision, not_accepted=_refused_for_now(result))
        if decision.moves[-1].target is not lifecycle.Status.FAILED:
            return replace(decision, refused=refused_for_good)
        refused = {p: result.refused.get(p, result.failure) for p in outstanding}
        if accepted_before:
            moves = (*decision.moves[:-1], lifecycle.SUCCEED)
            return replace(decision, moves=moves, refused=refused)
        return replace(decision, refused=refused_for_good)
    if len(refused_for_good) < len(result.refused):
        decision = _after_failure(mildest(result.refused.values()), policy)
        if decision.moves[-1].target is not lifecycle.Status.FAILED:
            accepted = frozenset(outstanding).difference(result.refused)
            not_accepted = _refused_for_now(result) if result.doubt else {}
            return replace(
                decision, accepted=accepted, refused=refused_for_good, not_accepted=not_accepted
            )
        moves = (*decision.moves[:-1], lifecycle.SUCCEED)
        return Decision(moves=moves, refused=result.refused)
    return Decision(moves=(lifecycle.SUCCEED,), refused=result.refused)


def _refused_for_now(result: Result) -> dict[int, Failure]:
    """Return the refusals of recipients that may be accepted later, and surely are not yet."""
    decided = (Kind.PERMANENT, *LOST)
    return {position: it for position, it in result.refused.items() if it.kind not in decided}


def _after_failure(failure: Failure, policy: Policy) -> Decision:
    uses_try = failure.kind in _BUDGETED
    over = policy.too_old or (uses_try and policy.tries >= policy.max_retries)
    delay = 0.0
    if failure.kind in LOST:
        is_set_apart = failure.kind is Kind.POISON and policy.on_unknown != "fail"
        # The mail has already waited for the lost worker's lease to end.
        pause = 0.0 if failure.kind in ENDED_WORKER else policy.retry_delay
        if policy.awaits_evidence and not is_set_apart:
            moves: tuple[lifecycle.Move, ...] = (lifecycle.LOSE,)
            delay = pause
        elif policy.on_unknown == "hold" or is_set_apart:
            moves = (lifecycle.LOSE,)
        elif policy.on_unknown == "fail" or over:
            moves = (lifecycle.LOSE, lifecycle.WRITE_OFF)
        else:
            moves = (lifecycle.LOSE, lifecycle.RESEND)
            delay = pause
    elif failure.kind in _FOR_GOOD or over:
        moves = (lifecycle.GIVE_UP,)
    else:
        moves = (lifecycle.POSTPONE,)
        # During an outage, the transport's breaker holds the mail and releases it at the end.
        # If a reply about one mail showed the outage, another mail is the next probe.
        outage_delay = policy.retry_delay if failure.is_confirmed else 0.0
        usual = {Kind.OUTAGE: outage_delay, Kind.THROTTLED: THROTTLE_SECONDS}
        delay = usual.get(failure.kind, policy.retry_delay)
        if failure.retry_after is not None and failure.kind is not Kind.OUTAGE:
            delay = max(_LEAST_SECONDS, failure.retry_after)
    return Decision(moves=moves, failure=failure, delay=delay, uses_try=uses_try)
