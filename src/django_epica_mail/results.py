"""Celery results that read a mail's or a batch's row.

The row is authoritative. Callers get an ``EmailResult`` or ``BatchResult``, which reads it; no
result backend is needed. After the settle, outcomes are also copied to Celery's result backend, in
bounded time, for code that only knows the id: ``AsyncResult(id)``, Flower, the admin.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypedDict

from celery import states
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, assert_will_not_block  # type: ignore[attr-defined]
from django.db import router, transaction

from django_epica_mail import replies
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog

logger = logging.getLogger(__name__)

PROGRESS = "PROGRESS"
"""State of a batch that is being expanded; its info is like ``{"done": 500, "total": 2000}``."""

_SHOWN = (
    *("status", "message_id", "failure_kind", "failure_code", "reply"),
    *("finished_at", "worker", "queue"),
)
_FAILED = frozenset({Status.FAILED, Status.SUPPRESSED, Status.UNKNOWN})
_REVOKED = frozenset({Status.CANCELLED, Status.EXPIRED})


def outcome(log: EmailLog) -> tuple[str, Any]:
    """Return the Celery state and the result for a mail's status."""
    if log.status == Status.SENT:
        return states.SUCCESS, {"status": str(log.status), "message_id": log.message_id}
    if log.status in _FAILED:
        return states.FAILURE, _failure(log)
    if log.status in _REVOKED:
        return states.REVOKED, TaskRevokedError(str(log.status))
    if log.status == Status.RETRYING:
        return states.RETRY, _failure(log)
    return states.STARTED if log.status == Status.SENDING else states.PENDING, None


def _failure(log: EmailLog) -> DeliveryFailed:
    code = log.failure_code
    return DeliveryFailed(
        log.failure_kind or log.status, code, replies.enhanced_code(code, log.reply)
    )


class RowResult(AsyncResult):  # type: ignore[type-arg] # generic for type checkers alone
    """An ``AsyncResult`` that reads a row instead of the result backend."""

    def _read(self) -> tuple[str, Any, datetime | None]:
        """Return the state, the result and the time of the end."""
        raise NotImplementedError

    def _get_task_meta(self) -> dict[str, Any]:
        state, value, date_done = self._read()
        if state == states.STARTED and not self.app.conf.task_track_started:
            state = states.PENDING
        return {
            "task_id": self.id,
            "status": state,
            "result": value,
            "traceback": None,
            "children": [],
            "date_done": date_done,
        }

    def get(  # type: ignore[override]
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.1,
        callback: Callable[[str, Any], None] | None = None,
        on_interval: Callable[[], None] | None = None,
        disable_sync_subtasks: bool = True,
        **_: Any,
    ) -> Any:
        """Wait for the end and return the result, polling every ``interval`` seconds.

        Unless ``propagate`` is false, raises the reason if the mail was not sent:
        ``TaskRevokedError`` if it was cancelled or expired, otherwise ``DeliveryFailed``. Raises
        Celery's ``TimeoutError`` after ``timeout`` seconds.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if transaction.get_connection(router.db_for_write(EmailLog)).in_atomic_block:
            warnings.warn(
                "get() waits for a mail that is sent only after the commit of the current "
                "transaction: call it after the commit.",
                RuntimeWarning,
                stacklevel=2,
            )
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while (meta := self._get_task_meta())["status"] not in states.READY_STATES:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise CeleryTimeoutError("The operation timed out.")
            if on_interval is not None:
                on_interval()
            time.sleep(interval)
        if propagate and isinstance(meta["result"], Exception):
            raise meta["result"]
        if callback is not None:
            callback(self.id, meta["result"])
        return meta["result"]

    wait = get  # type: ignore[assignment]

    async def aget(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.1
    ) -> Any:
        """Await the end and return the result, like ``get`` but without holding a thread."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        read = coroutine_of(self._get_task_meta)
        while (meta := await read())["status"] not in states.READY_STATES:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise CeleryTimeoutError("The operation timed out.")
            await asyncio.sleep(interval)
        if propagate and isinstance(meta["result"], Exception):
            raise meta["result"]
        return meta["result"]

    async def astatus(self) -> str:
        """Await the current ``status``."""
        return str((await coroutine_of(self._get_task_meta)())["status"])

    def forget(self) -> None:
        """Do nothing: our clean-up deletes the row, and Celery's its copy in the result backend."""


class EmailResult(RowResult):
    """The handle of one mail; ``id`` is its row's primary key as a string."""

    def _read(self) -> tuple[str, Any, datetime | None]:
        rows = EmailLog.objects.using(router.db_for_write(EmailLog)).only(*_SHOWN)
        log = rows.filter(pk=self.id).first()
        return (states.PENDING, None, None) if log is None else (*outcome(log), log.finished_at)


class BatchResult(RowResult):
    """The handle of one bulk call; ``id`` is its batch's primary key as a string."""

    def _read(self) -> tuple[str, Any, datetime | None]:
        using = router.db_for_write(EmailBatch)
        batch = EmailBatch.objects.using(using).defer("payload").filter(pk=self.id).first()
        if batch is None:
            return states.PENDING, None, None
        if not batch.is_finished:
            return PROGRESS, {"done": batch.position, "total": batch.total}, None
        return states.SUCCESS, batch_report(batch), batch.finished_at


class Refusal(TypedDict):
    """An entry of a bulk call that is not valid mail; holds nothing of the entry itself."""

    index: int
    """Its position in the call, from 0."""
    error: str
    """The class of the error."""
    rule: str
    """The function of this package that refused it, such as ``compose._check_list``."""


def batch_report(batch: EmailBatch) -> dict[str, Any]:
    """Return the outcome of a bulk call: counts, mail ids in order, and refused entries.

    Of these it has what ``Refusal`` has: results are read by anyone who can read logs.
    """
    ids = EmailLog.objects.using(batch._state.db).filter(batch=batch).order_by("pk")
    return {
        "batch": str(batch.pk),
        "accepted": batch.accepted,
        "refused": refusals(batch),
        "ids": [str(pk) for pk in ids.values_list("pk", flat=True)],
    }


def refusals(batch: EmailBatch) -> list[Refusal]:
    """Return the refused entries of a bulk call, without the reasons, which quote them."""
    return [
        Refusal(index=it["index"], error=it.get("error", ""), rule=it.get("rule", ""))
        for it in batch.refused
    ]
