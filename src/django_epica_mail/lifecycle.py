"""The statuses of an e-mail and every legal move between them.

This is the only place that knows them: the model's field, the constraint in the database, the
guarded updates and the diagram in the docs are all made from these values.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Status(TextChoices):
    """Where an e-mail stands."""

    QUEUED = "queued", _("queued")
    """Stored, waiting for a worker; a worker claims it once it is due."""
    SENDING = "sending", _("sending")
    """Claimed by one worker, which holds a lease on it."""
    RETRYING = "retrying", _("retrying")
    """Not accepted yet; will be tried again when it is due."""
    SENT = "sent", _("sent")
    """Accepted for at least one recipient, with none left to try."""
    FAILED = "failed", _("failed")
    """Accepted for no recipient, and not tried again by itself."""
    UNKNOWN = "unknown", _("unknown")
    """Perhaps accepted; the policy ``on_unknown``, a person or a webhook decides."""
    CANCELLED = "cancelled", _("cancelled")
    """Called back before a worker claimed it."""
    EXPIRED = "expired", _("expired")
    """Not sent before its time was over."""
    SUPPRESSED = "suppressed", _("suppressed")
    """Not sent, because every recipient is on the suppression list."""


CLAIMABLE = frozenset({Status.QUEUED, Status.RETRYING})
"""What a worker may claim, once due."""

FINAL = frozenset({Status.SENT, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.SUPPRESSED})
"""What no worker touches again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One legal change of status."""

    name: str
    """The verb, as in the docs and in the ``email_moved`` signal."""
    sources: frozenset[Status]
    """The statuses it may start from."""
    target: Status
    """The status it ends in."""


def _move(name: str, sources: set[Status], target: Status) -> Move:
    return Move(name=name, sources=frozenset(sources), target=target)


CLAIM = _move("claim", {Status.QUEUED, Status.RETRYING}, Status.SENDING)
RELEASE = _move("release", {Status.SENDING}, Status.QUEUED)
SUCCEED = _move("succeed", {Status.SENDING, Status.UNKNOWN}, Status.SENT)
POSTPONE = _move("postpone", {Status.SENDING}, Status.RETRYING)
GIVE_UP = _move("give up", {Status.QUEUED, Status.RETRYING, Status.SENDING}, Status.FAILED)
LOSE = _move("lose", {Status.SENDING}, Status.UNKNOWN)
RESEND = _move("resend", {Status.UNKNOWN}, Status.RETRYING)
WRITE_OFF = _move("write off", {Status.UNKNOWN}, Status.FAILED)
CONFIRM = _move("confirm", {Status.RETRYING, Status.FAILED}, Status.SENT)
CANCEL = _move("cancel", {Status.QUEUED, Status.RETRYING, Status.UNKNOWN}, Status.CANCELLED)
EXPIRE = _move("expire", {Status.QUEUED, Status.RETRYING, Status.SENDING}, Status.EXPIRED)
SUPPRESS = _move("suppress", {Status.QUEUED, Status.RETRYING, Status.SENDING}, Status.SUPPRESSED)
REQUEUE = _move(
    "requeue",
    {Status.FAILED, Status.UNKNOWN, Status.CANCELLED, Status.EXPIRED},
    Status.QUEUED,
)

MOVES = (
    CLAIM,
    RELEASE,
    SUCCEED,
    POSTPONE,
    GIVE_UP,
    LOSE,
    RESEND,
    WRITE_OFF,
    CONFIRM,
    CANCEL,
    EXPIRE,
    SUPPRESS,
    REQUEUE,
)
"""Every move there is, in the order of an e-mail's life."""

PERMITS = 25
"""How many mails of one claim may be with the server, or answered and not yet settled, at a time.

A worker begins mails in claim order and only while it holds a permit, and a permit returns when
the settle of its mail has committed. So of a dead worker's claim, the first ``PERMITS`` mails not
yet settled may have been begun, and the others surely were not. Not a setting: the worker that
died and the sweep that rescues its mail must mean the same number.
"""
