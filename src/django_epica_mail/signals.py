"""Signals that a site can connect to.

An error in a receiver is logged and changes nothing, except in receivers of ``before_send``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from django.dispatch import Signal

from django_epica_mail.lifecycle import Move, Status
from django_epica_mail.retry import Failure

email_moved = Signal()
"""Sent after a change of an e-mail's status is committed.

Arguments: ``sender`` (``EmailLog``), ``email_id`` (``uuid.UUID``), ``move`` (``lifecycle.Move``),
``failure`` (``retry.Failure`` or ``None``).
"""

before_send = Signal()
"""Sent by a worker before each attempt to hand an e-mail to its transport.

Arguments: ``sender`` (``EmailLog``), ``email`` (the ``EmailLog``), ``message`` (the
``EmailMessage`` as it will be sent; do not change its recipients).

A receiver that raises ``exceptions.Veto(reason)`` stops the mail: it becomes ``suppressed``, and
its row stores the reason. Any other exception postpones the mail, like a temporary refusal.
"""

email_event = Signal()
"""Sent once for each recorded event of an e-mail that was sent, such as a bounce.

Arguments: ``sender`` (``EmailEvent``), ``event`` (the ``EmailEvent``; its ``email_id`` is ``None``
if the mail is unknown, or not known yet).
"""

transport_tripped = Signal()
"""Sent when a transport is found out of order. It gets no mail until a probe succeeds.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias), ``failure``
(``retry.Failure``).
"""

transport_recovered = Signal()
"""Sent when a probe succeeds and the transport is in use again.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias).
"""

category_paused = Signal()
"""Sent when bulk mail of a category pauses by itself, until a person resumes it.

Arguments: ``sender`` (``DeliveryGate``), ``category``, ``reason`` (the rates, in English).
"""


logger = logging.getLogger("django_epica_mail")

_concerned = ContextVar[UUID | str | None]("django_epica_mail_concerned", default=None)

_LEVELS = {Status.FAILED: logging.WARNING, Status.UNKNOWN: logging.WARNING}


@contextmanager
def concerning(email_id: UUID | str | None) -> Iterator[None]:
    """Note that what is logged in this thread meanwhile is logged because of one e-mail.

    If that is itself the report of a log line, ``backends`` queues no report of the report.
    """
    token = _concerned.set(email_id)
    try:
        yield
    finally:
        _concerned.reset(token)


def concerned() -> UUID | str | None:
    """Return the e-mail that this thread is concerned with, or ``None``."""
    return _concerned.get()


def tell_moved(sender: type, email_id: UUID, move: Move, failure: Failure | None = None) -> None:
    """Send ``email_moved`` for a move that is committed."""
    with concerning(email_id):
        email_moved.send_robust(sender, email_id=email_id, move=move, failure=failure)


def connect_logging() -> None:
    """Connect the receivers that log moves and the state of transports."""
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
