"""Celery results: handles that are answered from the rows, and a mirror for everybody else.

The row is the truth. Who called holds an ``EmailResult`` or ``BatchResult``, which reads it: no
result backend is needed, nor waited for. Celery's result backend is told too, after the settle
and in bounded time, for those who only know the id: ``AsyncResult(id)``, Flower, the admin.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery import states
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, assert_will_not_block  # type: ignore[attr-defined]
from django.db import router, transaction

from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog

logger = logging.getLogger(__name__)

PROGRESS = "PROGRESS"
"""The state of a batch that is being expanded; its info is ``{"done": 500, "total": 2000}``."""

_SHOWN = ("status", "message_id", "failure_kind", "failure_code", "finished_at", "worker", "queue")
_FAILED = frozenset({Status.FAILED, Status.SUPPRESSED, Status.UNKNOWN})
_REVOKED = frozenset({Status.CANCELLED, Status.EXPIRED})


def outcome(log: EmailLog) -> tuple[str, Any]:
    """Return the Celery state that a mail's status means, and the result that goes with it."""
    if log.status == Status.SENT:
        return states.SUCCESS, {"status": str(log.status), "message_id": log.message_id}
    if log.status in _FAILED:
        return states.FAILURE, DeliveryFailed(log.failure_kind or log.status, log.failure_code)
    if log.status in _REVOKED:
        return states.REVOKED, TaskRevokedError(str(log.status))
    if log.status == Status.RETRYING:
        return states.RETRY, DeliveryFailed(log.failure_kind, log.failure_code)
    return states.STARTED if log.status == Status.SENDING else states.PENDING, None


class RowResult(AsyncResult):  # type: ignore[type-arg] # generic for type checkers alone
    """An ``AsyncResult`` that is answered by a row, whatever the result backend knows."""

    def _read(self) -> tuple[str, Any, datetime | None]:
        """Return state, result and time of the end."""
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
        """Wait for the end and return the result, looking every ``interval`` seconds.

        Raises the reason (``DeliveryFailed``, or ``TaskRevokedError`` for mail that was cancelled
        or expired) unless ``propagate`` is false, and Celery's ``TimeoutError`` after ``timeout``
        seconds.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if transaction.get_connection(router.db_for_write(EmailLog)).in_atomic_block:
            warnings.warn(
                "get() waits for a mail that is sent only after the commit of the transaction it "
                "is called in: call it after that.",
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
        """Await the end and return the result, as ``get`` does, holding no thread meanwhile."""
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
        """Await what ``status`` says now."""
        return str((await coroutine_of(self._get_task_meta)())["status"])

    def forget(self) -> None:
        """Do nothing: the clean-up deletes rows, and Celery's own its mirror."""


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


def batch_report(batch: EmailBatch) -> dict[str, Any]:
    """Return what a bulk call came to: counts, ids of its mails in order, refused entries."""
    ids = EmailLog.objects.using(batch._state.db).filter(batch=batch).order_by("pk")
    return {
        "batch": str(batch.pk),
        "accepted": batch.accepted,
        "refused": batch.refused,
        "ids": [str(pk) for pk in ids.values_list("pk", flat=True)],
    }
