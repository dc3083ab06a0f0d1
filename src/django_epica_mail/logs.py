"""Log records of what happens, made by listening to the signals: ids only, never addresses."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from django_epica_mail import signals
from django_epica_mail.lifecycle import Move, Status
from django_epica_mail.retry import Failure

logger = logging.getLogger("django_epica_mail")

_LEVELS = {Status.FAILED: logging.WARNING, Status.UNKNOWN: logging.WARNING}


def connect() -> None:
    """Start listening."""
    signals.email_moved.connect(_log_move, dispatch_uid="django_epica_mail.logs")
    signals.transport_tripped.connect(_log_trip, dispatch_uid="django_epica_mail.logs")
    signals.transport_recovered.connect(_log_recovery, dispatch_uid="django_epica_mail.logs")


def _log_move(*, email_id: UUID, move: Move, failure: Failure | None, **_: Any) -> None:
    kind = failure.kind if failure else ""
    logger.log(
        _LEVELS.get(move.target, logging.DEBUG),
        "E-mail %s: %s, now %s. %s",
        email_id,
        move.name,
        move.target.value,
        kind,
        extra={"email_id": str(email_id), "move": move.name, "failure": str(kind)},
    )


def _log_trip(*, transport: str, failure: Failure, **_: Any) -> None:
    logger.warning(
        "Transport %s is out of order (reply code %s).",
        transport,
        failure.code,
        extra={"transport": transport, "code": failure.code, "failure": str(failure.kind)},
    )


def _log_recovery(*, transport: str, **_: Any) -> None:
    logger.info("Transport %s works again.", transport, extra={"transport": transport})
