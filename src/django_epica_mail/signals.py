"""Signals a site may listen to.

A receiver that raises is logged and stops nothing, but for those of ``before_send``.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from django.dispatch import Signal

from django_epica_mail.lifecycle import Move, Status
from django_epica_mail.retry import Failure

email_moved = Signal()
"""An e-mail changed its status, and the change is committed.

Arguments: ``sender`` (``EmailLog``), ``email_id`` (``uuid.UUID``), ``move`` (``lifecycle.Move``),
``failure`` (``retry.Failure`` or ``None``).
"""

before_send = Signal()
"""An e-mail is about to be handed to its transport, in a worker, for each try anew.

Arguments: ``sender`` (``EmailLog``), ``email`` (the ``EmailLog``), ``message`` (the
``EmailMessage`` as it will be sent; its recipients are not to be changed).

A receiver that raises ``exceptions.Veto(reason)`` stops the mail: it becomes ``suppressed``, and
its row keeps the reason. One that raises anything else postpones it, as a refusal for now does.
"""

email_event = Signal()
"""Something happened to an e-mail after it was sent, and it is recorded; told once of each event.

Arguments: ``sender`` (``EmailEvent``), ``event`` (the ``EmailEvent``; its ``email_id`` may be
``None`` where the mail is not known, or not known yet).
"""

transport_tripped = Signal()
"""A transport is out of order; no mail is given to it until a probe succeeds.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias), ``failure``
(``retry.Failure``).
"""

transport_recovered = Signal()
"""A probe got through; the transport is in use again.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias).
"""


logger = logging.getLogger("django_epica_mail")

_LEVELS = {Status.FAILED: logging.WARNING, Status.UNKNOWN: logging.WARNING}


def connect_logging() -> None:
    """Start listening."""
    email_moved.connect(_log_move, dispatch_uid="django_epica_mail.logs")
    transport_tripped.connect(_log_trip, dispatch_uid="django_epica_mail.logs")
    transport_recovered.connect(_log_recovery, dispatch_uid="django_epica_mail.logs")


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
