"""Classifies failures and decides what follows from an attempt. Uses no clock and no database."""

from __future__ import annotations

import enum
import re
import smtplib
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

from django_epica_mail import lifecycle

REPLY_LENGTH = 2000
"""How many characters of a server's reply are kept."""

THROTTLE_SECONDS = 60.0
"""Seconds a throttled mail waits if the server does not say how long."""

_THROTTLED = re.compile(r"\brate\b|too many|too much|throttl|slow down", re.IGNORECASE)

_ENHANCED = re.compile(r"[45]\.(\d{1,3}\.\d{1,3})\b")


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
    MESSAGE = "message", _("message cannot be built")
    OVERDUE = "overdue", _("waited too long")
    SUPPRESSED = "suppressed", _("on the suppression list")
    VETOED = "vetoed", _("stopped by the site")


_BY_ENHANCED_CODE = {
    "2.2": Kind.TRANSIENT,  # mailbox full; its owner may make room
    "3.2": Kind.OUTAGE,  # system not accepting messages
    "4.5": Kind.THROTTLED,  # system congested
    # Credentials or encryption: a fault in the transport's configuration, not in the mail.
    **dict.fromkeys(("7.8", "7.9", "7.10", "7.11", "7.12"), Kind.OUTAGE),
}
"""Kinds by subject and detail of enhanced status codes (RFC 3463; RFC 5248's registry), for those
that say more than the reply code."""

PASSING = (Kind.TRANSIENT, Kind.THROTTLED, Kind.OUTAGE)
"""Kinds that may pass on their own: mail that failed with one is retried until it is given up."""

_BUDGETED = frozenset({Kind.TRANSIENT, Kind.UNKNOWN, Kind.WORKER_LOST})
_FOR_GOOD = frozenset({Kind.PERMANENT, Kind.MESSAGE, Kind.OVERDUE})
# Raised when a message or its addresses cannot be built, or need what the server does not support.
_UNSENDABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    smtplib.SMTPNotSupportedError,
)
_MILDEST_FIRST = (Kind.OUTAGE, Kind.THROTTLED, Kind.TRANSIENT, Kind.PERMANENT)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The part of a mail's row that decides what follows from an attempt."""

    tries: int
    """Tries used up before this attempt."""
    max_retries: int
    """Tries allowed after the first."""
    retry_delay: float
    """Seconds between two attempts."""
    on_unknown: str
    """``resend``, ``hold`` or ``fail``."""
    too_old: bool
    """Whether the mail has waited as long as it is allowed to."""


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


def reply_text(words: bytes | str) -> str:
    """Return the text of a server or an exception in a form that any database can store.

    It is cut to ``REPLY_LENGTH``. PostgreSQL accepts no NUL in text, and no database accepts a lone
    surrogate.
    """
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    return text[:REPLY_LENGTH].replace("\0", "").encode("utf-8", "replace").decode()


def classify_reply(code: int, words: bytes | str) -> Failure:
    """Classify an SMTP reply to MAIL, RCPT, DATA or the content.

    An enhanced status code in the text (RFC 3463) decides if it says more than the reply code.
    Otherwise RFC 5321, section 4.2.1, applies: 4yz is transient, 5yz is permanent, and 421 closes
    the whole service. 530 asks for credentials or encryption first (RFC 4954, section 6; RFC 3207,
    section 4), so the transport's configuration is wrong, not the mail. smtplib returns a code of 0
    or less for a line that is not a reply.
    """
    text = reply_text(words)
    enhanced = _ENHANCED.match(text)
    if 400 <= code < 500 and _THROTTLED.search(text):
        kind = Kind.THROTTLED
    elif enhanced and enhanced[1] in _BY_ENHANCED_CODE:
        kind = _BY_ENHANCED_CODE[enhanced[1]]
    elif code in (421, 530):
        kind = Kind.OUTAGE
    else:
        kind = Kind.PERMANENT if 500 <= code < 600 else Kind.TRANSIENT
    return Failure(kind=kind, code=code if code > 0 else None, reply=text)


def classify(error: Exception, stage: Stage) -> Failure:
    """Classify an exception from a transport, given how far the dialogue had come."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return mildest(classify_reply(*reply) for reply in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code > 0:
        failure = classify_reply(error.smtp_code, error.smtp_error)
        in_session = stage is not Stage.CONNECT or failure.kind is Kind.THROTTLED
        return failure if in_session else replace(failure, kind=Kind.OUTAGE)
    return Failure(
        kind=_kind_without_reply(error, stage),
        reply=reply_text(f"{type(error).__name__}: {error}"),
    )


def _kind_without_reply(error: Exception, stage: Stage) -> Kind:
    if stage is Stage.CONNECT:
        return Kind.OUTAGE
    if stage is Stage.ENVELOPE:
        # Anything else, such as a time limit of the site, may pass.
        return Kind.MESSAGE if isinstance(error, _UNSENDABLE) else Kind.TRANSIENT
    if stage is Stage.UNSEEN and isinstance(error, (ConnectionRefusedError, socket.gaierror)):
        return Kind.OUTAGE
    return Kind.UNKNOWN


def mildest(failures: Iterable[Failure]) -> Failure:
    """Return the most hopeful failure: one recipient to retry keeps the mail alive."""
    return min(failures, key=lambda failure: _MILDEST_FIRST.index(failure.kind))


def at_positions(result: Result, tried: Sequence[int]) -> Result:
    """Return a result whose refusals are numbered among all recipients, not among those tried.

    Refusals beyond those tried are dropped: they concern recipients that a site's own backend
    added, such as an archive.
    """
    known = ((index, it) for index, it in result.refused.items() if index < len(tried))
    refused = {tried[index]: failure for index, failure in known}
    return replace(result, refused=refused)


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
        if result.failure.kind in (Kind.UNKNOWN, Kind.WORKER_LOST):
            for_now = {p: it for p, it in result.refused.items() if p not in refused_for_good}
            decision = replace(decision, not_accepted=for_now)
        if decision.moves[-1].target is not lifecycle.Status.FAILED:
            return replace(decision, refused=refused_for_good)
        refused = {p: result.refused.get(p, result.failure) for p in outstanding}
        if accepted_before:
            moves = (*decision.moves[:-1], lifecycle.SUCCEED)
            return replace(decision, moves=moves, refused=refused)
        return replace(decision, refused=refused_for_good)
    if len(refused_for_good) < len(result.refused):
        decision = _after_failure(mildest(result.refused.values()), policy)
        if decision.moves == (lifecycle.POSTPONE,):
            accepted = frozenset(outstanding).difference(result.refused)
            return replace(decision, accepted=accepted, refused=refused_for_good)
    return Decision(moves=(lifecycle.SUCCEED,), refused=result.refused)


def _after_failure(failure: Failure, policy: Policy) -> Decision:
    uses_try = failure.kind in _BUDGETED
    over = policy.too_old or (uses_try and policy.tries >= policy.max_retries)
    delay = 0.0
    if failure.kind in (Kind.UNKNOWN, Kind.WORKER_LOST):
        if policy.on_unknown == "hold":
            moves: tuple[lifecycle.Move, ...] = (lifecycle.LOSE,)
        elif policy.on_unknown == "fail" or over:
            moves = (lifecycle.LOSE, lifecycle.WRITE_OFF)
        else:
            moves = (lifecycle.LOSE, lifecycle.RESEND)
            # The mail has already waited for the lost worker's lease to end.
            delay = 0.0 if failure.kind is Kind.WORKER_LOST else policy.retry_delay
    elif failure.kind in _FOR_GOOD or over:
        moves = (lifecycle.GIVE_UP,)
    else:
        moves = (lifecycle.POSTPONE,)
        # During an outage, the transport's breaker holds the mail and releases it at the end.
        usual = {Kind.OUTAGE: 0.0, Kind.THROTTLED: THROTTLE_SECONDS}
        delay = usual.get(failure.kind, policy.retry_delay)
        if failure.retry_after is not None and failure.kind is not Kind.OUTAGE:
            delay = failure.retry_after
    return Decision(moves=moves, failure=failure, delay=delay, uses_try=uses_try)
