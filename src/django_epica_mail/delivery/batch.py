"""What one worker holds: e-mails of one queue and transport, and when it claimed them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django_epica_mail import conf
from django_epica_mail.models import EmailLog


@dataclass(frozen=True, slots=True)
class ClaimedMail:
    """One e-mail that a worker holds, with what was true by the database's clock at the claim."""

    row: EmailLog
    too_old: bool
    """Whether it has waited as long as it may (``give_up_at``)."""
    is_expired: bool
    """Whether it is no longer worth sending (``expires_at``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """E-mails of one queue and transport that one worker holds, in claim order.

    All of them may be begun at once, so a worker that dies leaves each of them in doubt.
    """

    transport: str
    """The alias of their transport."""
    mails: list[ClaimedMail]
    """The e-mails in the order they are begun: by priority, ``due_at``, then id."""
    using: str
    """The alias of the database that holds the rows."""
    claimed_at: float
    """When the claim began, in monotonic seconds of this process."""
    is_probe: bool = False
    """Whether the one e-mail finds out if the transport works again."""
    is_limited: bool = False
    """Whether a rate limit may have made the claim smaller."""
    is_slowed: bool = False
    """Whether it holds only mail to a slowed domain."""
    has_suppressions: bool = False
    """Whether the suppression list has any entry."""
    has_attachments: bool = False
    """Whether any of the e-mails has attachments."""

    @property
    def token(self) -> uuid.UUID | None:
        """What marks the rows as held by this claim."""
        token: uuid.UUID | None = self.mails[0].row.lease_token
        return token

    @property
    def begin_until(self) -> float:
        """The monotonic second until which its e-mails are begun, and then released."""
        return self.claimed_at + conf.BEGIN_SECONDS

    @property
    def outlasts_until(self) -> float:
        """The monotonic second until which the lease outlasts an e-mail begun then."""
        settings = conf.get()
        return self.claimed_at + settings.lease_seconds - settings.send_timeout


def batch_of(
    rows: Sequence[Any],
    using: str,
    claimed_at: float,
    *,
    is_probe: bool = False,
    is_limited: bool = False,
    is_slowed: bool = False,
) -> Batch:
    """Return the batch of claimed rows, which ``dequeue.take`` returns."""
    return Batch(
        transport=rows[0].transport,
        mails=[ClaimedMail(row, bool(row.too_old), bool(row.is_expired)) for row in rows],
        using=using,
        claimed_at=claimed_at,
        is_probe=is_probe,
        is_limited=is_limited,
        is_slowed=is_slowed,
        has_suppressions=any(row.has_suppressions for row in rows),
        has_attachments=any(row.has_attachments for row in rows),
    )
