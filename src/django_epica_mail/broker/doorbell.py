"""The doorbell: tells workers through the broker, in bounded time, that a queue has due mail.

The broker never carries the mail itself. A ring that is lost, repeated or late affects only
latency, because the sweep rings again. So a broker that is down is not waited for, and after a
failure it is left alone for a while.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery.app import app_or_default
from celery.exceptions import QueueNotFound
from django.conf import settings
from django.db import transaction

from django_epica_mail import _compat, conf
from django_epica_mail.broker.celery_config import (
    BULK_TASK,
    TASK,
    has_app,
    site_queue,
    task_for_routers,
)
from django_epica_mail.broker.publisher import NO_RETRIES, Busy, Publisher

if TYPE_CHECKING:
    from celery import Celery


logger = logging.getLogger(__name__)

_IMPORTED_BY_A_RING = (
    *("celery.app.amqp", "celery.app.events", "celery.contrib.django.task"),
    *("celery.events.dispatcher", "celery.events.receiver"),
    *("celery.utils.saferepr", "django_epica_mail.backends", "encodings.idna"),
)
"""Modules that Celery, kombu and sockets import when they are first used."""


_rung_meanwhile: ContextVar[list[str] | None] = ContextVar("rung_meanwhile", default=None)
_MOST_EAGER_RUNS = 100


class _NoResult:
    """Stands in for the result of a ring, which would open the site's result backend."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id


class _Bell:
    """This process's record of its rings."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rung_at: dict[str, float] = {}
        self.silent_until = 0.0
        self.publishers: dict[int, Publisher] = {}
        self.refused_until: dict[str, float] = {}
        """By queue whose ring the broker has refused, until when nobody rings for it."""
        self.missing_queues: set[str] = set()


_bell = _Bell()


def _forget_after_fork() -> None:
    global _bell
    _bell = _Bell()


_compat.run_after_fork(_forget_after_fork)


def ring_on_commit(queue: str, *, using: str) -> None:
    """Ring for a queue once the current transaction commits, or at once if there is none."""

    def ring_now() -> None:  # Django 5.2 and 6.0 cannot log the failure of a functools.partial
        _ring_unless_covered(queue)

    transaction.on_commit(ring_now, using=using, robust=True)


def _ring_unless_covered(queue: str) -> None:
    """Ring, unless this process already rang within the window.

    A worker woken by that ring looks again after a full window and so finds this mail too. This is
    why the window is stamped before publishing, and unstamped if publishing fails.
    """
    now = time.monotonic()
    window = conf.get().ring_window
    if now - _bell.rung_at.get(queue, -1e9) < window:
        return  # before Celery's settings are asked, which costs more than all of this
    app = app_or_default()
    if delivers_here(app):
        _deliver_here(app, queue)
        return
    with _bell.lock:
        if now - _bell.rung_at.get(queue, -1e9) < window:
            return
        _bell.rung_at[queue] = now
    if not _publish(app, queue, rung_at=time.time()):
        with _bell.lock:
            if _bell.rung_at.get(queue) == now:
                del _bell.rung_at[queue]


def ring(queue: str, *, after: float | None = None) -> bool:
    """Ring for mail that is committed and due; return whether the broker accepted the ring.

    ``after`` is the seconds until a worker hears it; an eager site, which has none, does not ring
    then. For workers that call for help, and for the sweep. Asks for no second look and stamps no
    window, because it does not cover mail that this process commits next.
    """
    app = app_or_default()
    if delivers_here(app):
        return after is None and _deliver_here(app, queue)
    return _publish(app, queue, rung_at=None, after=after)


def delivers_here(app: Celery | None = None) -> bool:
    """Return whether mail is delivered by the process that commits it, without broker and worker.

    So it is where Celery's ``task_always_eager`` is set and, in development, where
    ``EPICA_MAIL["DELIVER_IN_PROCESS"]`` is. ``app`` is by default the current one.
    """
    app = app or app_or_default()
    return bool(app.conf.task_always_eager) or (settings.DEBUG and conf.get().deliver_in_process)


def _deliver_here(app: Celery, queue: str) -> bool:
    """Deliver the mail of a queue in this process; return ``True``.

    What is rung for meanwhile is delivered afterwards, within ``RUN_SECONDS`` in all.
    """
    outer = _rung_meanwhile.get()
    if outer is not None:
        outer.append(queue)
        return True
    until = time.monotonic() + conf.get().run_seconds
    queues = [queue]
    token = _rung_meanwhile.set(queues)
    try:
        for it in queues:  # which grows meanwhile
            app.tasks[TASK].apply(args=(it,))
            if time.monotonic() > until or len(queues) > _MOST_EAGER_RUNS:
                break
    finally:
        _rung_meanwhile.reset(token)
    return True


def ring_for_batch_on_commit(batch_id: str, *, using: str, queue: str | None = None) -> None:
    """Wake a worker to expand a bulk call once the current transaction commits.

    The ring carries only the batch's id. If it is lost, the sweep rings again.
    """

    def ring_now() -> None:
        ring_for_batch(batch_id, queue=queue)

    transaction.on_commit(ring_now, using=using, robust=True)


def ring_for_batch(batch_id: str, *, queue: str | None = None) -> bool:
    """Wake a worker to expand a bulk call; return whether the broker accepted the ring.

    ``queue`` is the one to ring for; by default, the one where the site routes bulk calls.
    """
    app = app_or_default()
    if delivers_here(app):
        app.tasks[BULK_TASK].run(batch_id)
        return True
    return _publish(app, queue or site_queue(bulk=True), task=BULK_TASK, args=(batch_id,))


def prepare() -> None:
    """Import what this process's first ring needs, so that no request has to wait for it.

    Opens no connection, and leaves errors to the ring. Does nothing before the site has made its
    Celery app: asked now, Celery would make a default one, and the site's own would not become
    that of all threads any more, for the site's own tasks either.
    """
    if not has_app():
        return
    with contextlib.suppress(Exception):
        _publisher(app_or_default())  # imports kombu's transport
        for module in _IMPORTED_BY_A_RING:
            import_module(module)


def needs_second_look(rung_at: float | None) -> bool:
    """Return whether a ring may cover mail committed after it.

    A ring older than the window, plus a second for clock differences, covers only mail that is
    already committed. This drains a backlog of rings at once.
    """
    return rung_at is not None and abs(time.time() - rung_at) <= conf.get().ring_window + 1


def _publish(
    app: Celery,
    queue: str,
    *,
    rung_at: float | None = None,
    after: float | None = None,
    task: str = TASK,
    args: tuple[str, ...] | None = None,
) -> bool:
    with _bell.lock:
        now = time.monotonic()
        if now < max(_bell.silent_until, _bell.refused_until.get(queue, 0.0)):
            return False
        was_silent = _bell.silent_until > 0
        if was_silent:  # this caller finds out whether the broker is back
            _bell.silent_until = now + conf.get().ring_pause

    def send(producer: Any) -> None:
        # Bypasses a task's own apply_async, which is for calls by the site.
        app.send_task(
            task,
            task_type=task_for_routers(app, task),
            result_cls=_NoResult,  # type: ignore[arg-type]
            add_to_parent=False,
            args=args or (queue,),
            kwargs={} if rung_at is None else {"rung_at": rung_at},
            countdown=after,
            queue=queue,
            producer=producer,
            retry=True,
            retry_policy=NO_RETRIES,
            ignore_result=True,
            # The site's time limits are meant for its own tasks and would interrupt a mail.
            time_limit=conf.get().task_seconds,
            soft_time_limit=conf.get().task_seconds,
        )

    publisher = None
    try:
        publisher = _publisher(app)
        publisher.publish(send)
    except Busy:
        # The broker is well: other threads of this process are ringing. The ring is lost.
        logger.info(
            "No producer was free to ring for queue %s. Its mail waits for the sweep.", queue
        )
        return False
    except QueueNotFound:
        # Raised before the broker is asked: the next caller finds out whether it is back.
        with _bell.lock:
            _bell.silent_until = now if was_silent else _bell.silent_until
        _say_queue_is_missing(queue)
        return False
    except Exception as error:  # noqa: BLE001 - the mail is stored, and the sweep will ring
        _be_silent(queue, is_refusal=publisher is not None and publisher.is_refusal(error))
        logger.warning(
            "The broker did not accept a ring for queue %s (%s). Its mail waits for the sweep; "
            "the next ring is attempted in %s seconds.",
            queue,
            type(error).__name__,
            conf.get().ring_pause,
        )
        return False
    if was_silent:
        with _bell.lock:
            _bell.silent_until = 0.0
    return True


def _be_silent(queue: str, *, is_refusal: bool) -> None:
    """Stop ringing for a while: for one queue if the broker is there, and refused it."""
    now = time.monotonic()
    until = now + conf.get().ring_pause
    with _bell.lock:
        if is_refusal:
            _bell.silent_until = 0.0
            waiting = {name: at for name, at in _bell.refused_until.items() if at > now}
            _bell.refused_until = {**waiting, queue: until}
        else:
            _bell.silent_until = until


def _say_queue_is_missing(queue: str) -> None:
    """Log once that a site that creates no queues has not configured one."""
    with _bell.lock:
        is_new = queue not in _bell.missing_queues
        _bell.missing_queues.add(queue)
    if is_new:
        logger.error(
            "The queue %s is not in CELERY_TASK_QUEUES, and CELERY_TASK_CREATE_MISSING_QUEUES is "
            "off: nobody can be rung for it. Its mail waits for a worker that looks at it.",
            queue,
        )


def _publisher(app: Celery) -> Publisher:
    with _bell.lock:
        publisher = _bell.publishers.get(id(app))
        if publisher is None:
            publisher = _bell.publishers[id(app)] = Publisher(app)
        return publisher
