"""Mirrors results in Celery's result backend, after the settle and in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import states
from celery.app import app_or_default
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from django.db import transaction

from django_epica_mail import _compat, clock, conf, lifecycle
from django_epica_mail.broker.celery_config import SINGLE_TASK
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, PendingResult
from django_epica_mail.results import _SHOWN, logger, outcome


class _Mirror:
    """This process's connections to result backends, and until when to leave them alone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.backends: dict[int, Any] = {}
        self.silent_until = 0.0


_mirror = _Mirror()


def _forget_after_fork() -> None:
    global _mirror
    _mirror = _Mirror()


_compat.run_after_fork(_forget_after_fork)


def expect(ids: Iterable[UUID], using: str) -> None:
    """Schedule writing the results of those mails that have ``store_result``."""
    rows = EmailLog.objects.using(using).filter(pk__in=ids, store_result=True)
    PendingResult.objects.using(using).bulk_create(
        [
            PendingResult(email_id=pk, due_at=due)
            for pk, due in rows.order_by().values_list("pk", "due_at")
        ],
        ignore_conflicts=True,
    )


def mirror(ids: Iterable[UUID], using: str) -> int:
    """Write the current results of mails to the result backend; return how many are done.

    Takes bounded time and never raises an error of the backend; the sweep continues later, with
    the result that was refused behind the others: it may be the only one that the backend refuses.
    """
    wanted = list(ids)
    if not wanted or time.monotonic() < _mirror.silent_until:
        return 0
    stored = set()
    logs = {it.pk: it for it in EmailLog.objects.using(using).filter(pk__in=wanted).only(*_SHOWN)}
    for log in filter(None, map(logs.get, wanted)):
        state, value = outcome(log)
        if state in (states.PENDING, states.STARTED):
            continue
        if not store(str(log.pk), state, value, SINGLE_TASK, worker=log.worker, queue=log.queue):
            PendingResult.objects.using(using).filter(email_id=log.pk).update(due_at=clock.now())
            break
        if log.status in lifecycle.FINAL or log.status == Status.UNKNOWN:
            stored.add((log.pk, log.status, log.finished_at))
    if stored:
        _forget(stored, using)
    return len(stored)


def _forget(stored: set[tuple[UUID, str, datetime | None]], using: str) -> None:
    """Take mails off the list of pending results unless somebody has queued them again since."""
    with transaction.atomic(using=using):
        rows = EmailLog.objects.using(using).filter(pk__in=[pk for pk, *_ in stored])
        still = stored.intersection(
            rows.skipping_locked().values_list("pk", "status", "finished_at")
        )
        PendingResult.objects.using(using).filter(email_id__in=[pk for pk, *_ in still]).delete()


def store(
    result_id: str, state: str, value: Any, task: str, *, worker: str = "", queue: str = ""
) -> bool:
    """Store one result in bounded time; return ``False`` if the backend did not accept it.

    Without a result backend there is nothing to store, and the answer is ``True``.
    """
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
    except Exception as error:  # noqa: BLE001 - any backend, any error: the row is authoritative
        _mirror.silent_until = time.monotonic() + conf.get().ring_pause
        logger.warning(
            "The result backend did not accept a result (%s). The next attempt is in %s seconds.",
            type(error).__name__,
            conf.get().ring_pause,
        )
        return False
    return True


def _bounded_backend() -> Any:
    """Return our own result backend with a short time-out; the site's keeps its own."""
    app = app_or_default()
    with _mirror.lock:
        backend = _mirror.backends.get(id(app))
        if backend is None:
            backend = app._get_backend()  # type: ignore[attr-defined]
            timeout = conf.get().ring_timeout
            # Redis and similar backends; a database uses its connection's own time-out.
            if isinstance(getattr(backend, "connparams", None), dict):
                backend.connparams.update(socket_timeout=timeout, socket_connect_timeout=timeout)
            backend.retry_policy = {"max_retries": 0, "interval_start": 0}
            backend.always_retry = False
            _mirror.backends[id(app)] = backend
        return backend
