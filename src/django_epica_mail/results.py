"""Celery results: handles that are answered from the rows, and a mirror for everybody else.

The row is the truth. Who called holds an ``EmailResult`` or ``BatchResult``, which reads it: no
result backend is needed, nor waited for. Celery's result backend is told too, after the settle
and in bounded time, for those who only know the id: ``AsyncResult(id)``, Flower, the admin.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import states
from celery.app import app_or_default
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, assert_will_not_block  # type: ignore[attr-defined]
from django.db import router, transaction

from django_epica_mail import conf, forks, lifecycle
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.doorbell import SINGLE_TASK
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog, PendingResult

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


class _Mirror:
    """This process's way to the result backend, and whether it is in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.backends: dict[int, Any] = {}
        self.silent_until = 0.0


_mirror = _Mirror()


def _forget_after_fork() -> None:
    global _mirror
    _mirror = _Mirror()


forks.in_each_child(_forget_after_fork)


def expect(ids: Iterable[UUID], using: str) -> None:
    """Note that the result backend will have to be told of these mails, of those that ask it."""
    rows = EmailLog.objects.using(using).filter(pk__in=ids, store_result=True)
    PendingResult.objects.using(using).bulk_create(
        [
            PendingResult(email_id=pk, due_at=due)
            for pk, due in rows.order_by().values_list("pk", "due_at")
        ],
        ignore_conflicts=True,
    )


def mirror(ids: Iterable[UUID], using: str) -> int:
    """Tell the result backend how mails stand; return of how many it was told.

    Takes a bounded time, never raises for the backend, and leaves the rest to the sweep.
    """
    wanted = list(ids)
    if not wanted or time.monotonic() < _mirror.silent_until:
        return 0
    told = []
    for log in EmailLog.objects.using(using).filter(pk__in=wanted).only(*_SHOWN):
        state, value = outcome(log)
        if state in (states.PENDING, states.STARTED):
            continue
        if not store(str(log.pk), state, value, SINGLE_TASK, worker=log.worker, queue=log.queue):
            break
        if log.status in lifecycle.FINAL or log.status == Status.UNKNOWN:
            told.append(log.pk)
    PendingResult.objects.using(using).filter(email_id__in=told).delete()
    return len(told)


def store(
    result_id: str, state: str, value: Any, task: str, *, worker: str = "", queue: str = ""
) -> bool:
    """Store one result in bounded time; return whether the backend took it, or there is none."""
    context = Context(
        id=result_id,
        task=task,
        args=[result_id],
        kwargs={},
        hostname=worker,
        delivery_info={"routing_key": queue},
        ignore_result=False,
    )
    try:
        backend = _bounded_backend()
        if not isinstance(backend, DisabledBackend):
            backend.store_result(result_id, value, state, request=context)
    except Exception as error:  # noqa: BLE001 - any backend, any error: the row has the truth
        _mirror.silent_until = time.monotonic() + conf.get().ring_pause
        logger.warning(
            "The result backend took no result (%s). It is not tried for %s seconds.",
            type(error).__name__,
            conf.get().ring_pause,
        )
        return False
    return True


def _bounded_backend() -> Any:
    """Return a result backend of our own, which gives up early: the site's keeps its patience."""
    app = app_or_default()
    with _mirror.lock:
        backend = _mirror.backends.get(id(app))
        if backend is None:
            backend = app._get_backend()  # type: ignore[attr-defined]
            timeout = conf.get().ring_timeout
            # Redis and what is like it; a database has the patience of its own connection.
            if isinstance(getattr(backend, "connparams", None), dict):
                backend.connparams.update(socket_timeout=timeout, socket_connect_timeout=timeout)
            backend.retry_policy = {"max_retries": 0, "interval_start": 0}
            backend.always_retry = False
            _mirror.backends[id(app)] = backend
        return backend
