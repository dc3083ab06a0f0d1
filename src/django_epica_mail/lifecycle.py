"""The statuses of an e-mail and the legal moves between them.

They are defined only here: the model's field, the database constraint, the conditional updates and
the diagram in the docs are all derived from these values.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Status(TextChoices):
    """The status of an e-mail."""

    QUEUED = "queued", _("queued")
    """Stored. A worker claims it once it is due."""
    SENDING = "sending", _("sending")
    """Claimed by a worker, which holds a lease on it."""
    RETRYING = "retrying", _("retrying")
    """Not accepted yet. It is tried again when it is due."""
    SENT = "sent", _("sent")
    """Accepted for at least one recipient, and none is left to try."""
    FAILED = "failed", _("failed")
    """Accepted for no recipient, and not tried again automatically."""
    UNKNOWN = "unknown", _("unknown")
    """Perhaps accepted. The policy ``on_unknown``, a person or a webhook decides."""
    CANCELLED = "cancelled", _("cancelled")
    """Cancelled before a worker claimed it."""
    EXPIRED = "expired", _("expired")
    """Not sent before it expired."""
    SUPPRESSED = "suppressed", _("suppressed")
    """Not sent, because every recipient is on the suppression list."""


CLAIMABLE = frozenset({Status.QUEUED, Status.RETRYING})
"""Statuses in which a worker may claim an e-mail once it is due."""

FINAL = frozenset({Status.SENT, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.SUPPRESSED})
"""Statuses in which no worker touches an e-mail again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One legal change of status."""

    name: str
    """The verb used in the docs and in the ``email_moved`` signal."""
    sources: frozenset[Status]
    """The statuses it may start from."""
    target: Status
    """The status it ends in."""


def _move(name: str, sources: set[Status], target: Status) -> Move:
    return Move(name=name, sources=frozenset(sources), target=target)


CLAIM = _move("claim", {Status.QUEUED, Status.RETRYING}, Status.SENDING)
RELEASE = _move("release", {Status.SENDING}, Status.QUEUED)
SUCCEED = _move("succeed", {Status.SENDING, Status.UNKNOWN}, Status.SENT)
POSTPONE = _move("postpone", {Status.SENDING, Status.RETRYING}, Status.RETRYING)
GIVE_UP = _move("give up", {Status.QUEUED, Status.RETRYING, Status.SENDING}, Status.FAILED)
LOSE = _move("lose", {Status.SENDING}, Status.UNKNOWN)
RESEND = _move("resend", {Status.UNKNOWN}, Status.RETRYING)
WRITE_OFF = _move("write off", {Status.UNKNOWN}, Status.FAILED)
CONFIRM = _move(
    "confirm",
    {Status.QUEUED, Status.RETRYING, Status.FAILED, Status.CANCELLED},
    Status.SENT,
)
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
"""All moves, in the order of an e-mail's life."""
