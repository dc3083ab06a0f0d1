"""The doorbell: "this queue has something due", said to the broker in bounded time.

The broker never carries content. A ring that is lost, repeated or late changes nothing but
latency, because the sweep rings again; so a broker that is down is not waited for, and not even
asked for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.app import app_or_default
from django.db import transaction
from kombu import Connection
from kombu.pools import ProducerPool

from django_epica_mail import _compat, conf
from django_epica_mail.broker.celery_config import BULK_TASK, TASK, site_route
from django_epica_mail.routing import BULK_QUEUE

if TYPE_CHECKING:
    from celery import Celery


logger = logging.getLogger(__name__)


_CONNECTIONS = 4
_ONE_TRY = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class _Bell:
    """What this process remembers of its rings."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rung_at: dict[str, float] = {}
        self.silent_until = 0.0
        self.pools: dict[int, ProducerPool] = {}


_bell = _Bell()


def _forget_after_fork() -> None:
    global _bell
    _bell = _Bell()


_compat.run_after_fork(_forget_after_fork)


def ring_on_commit(queue: str, *, using: str) -> None:
    """Ring a queue's bell once the present transaction has committed, or at once without one."""

    def ring_now() -> None:  # Django 5.2 and 6.0 cannot log the failure of a functools.partial
        _ring_unless_covered(queue)

    transaction.on_commit(ring_now, using=using, robust=True)


def _ring_unless_covered(queue: str) -> None:
    """Ring, unless this process rang within the window.

    A worker that such a ring wakes looks once more after a whole window, and finds this mail too.
    The window is stamped before publishing, for that reason, and un-stamped if it fails.
    """
    app = app_or_default()
    if app.conf.task_always_eager:
        app.tasks[TASK].apply(args=(queue,))
        return
    now = time.monotonic()
    with _bell.lock:
        if now - _bell.rung_at.get(queue, -1e9) < conf.get().ring_window:
            return
        _bell.rung_at[queue] = now
    if not _publish(app, queue, rung_at=time.time()):
        with _bell.lock:
            if _bell.rung_at.get(queue) == now:
                del _bell.rung_at[queue]


def ring(queue: str) -> bool:
    """Ring for mail that is committed and due; return whether the broker took the ring.

    For workers calling for help and for the sweep. It asks for no second look and stamps no
    window: mail that this process commits next is not covered by it.
    """
    return _publish(app_or_default(), queue, rung_at=None)


def ring_for_batch_on_commit(batch_id: str, *, using: str) -> None:
    """Wake a worker for the expansion of a bulk call once the present transaction has committed.

    The ring carries the batch's id alone. If it is lost, the sweep rings again.
    """

    def ring_now() -> None:
        ring_for_batch(batch_id)

    transaction.on_commit(ring_now, using=using, robust=True)


def ring_for_batch(batch_id: str) -> bool:
    """Wake a worker for the expansion of a bulk call; return whether the broker took the ring."""
    app = app_or_default()
    if app.conf.task_always_eager:
        app.tasks[BULK_TASK].run(batch_id)
        return True
    queue = site_route(bulk=True).get("queue") or BULK_QUEUE
    return _publish(app, queue, task=BULK_TASK, args=(batch_id,))


def needs_second_look(rung_at: float | None) -> bool:
    """Tell whether a ring may cover mail committed after it.

    One that waited longer than the window (and a second for clocks that differ) covers only mail
    that is committed by now, so that a backlog of rings drains at once.
    """
    return rung_at is not None and abs(time.time() - rung_at) <= conf.get().ring_window + 1


def _publish(
    app: Celery,
    queue: str,
    *,
    rung_at: float | None = None,
    task: str = TASK,
    args: tuple[str, ...] | None = None,
) -> bool:
    with _bell.lock:
        now = time.monotonic()
        if now < _bell.silent_until:
            return False
        was_silent = _bell.silent_until > 0
        if was_silent:  # one caller finds out whether the broker is back
            _bell.silent_until = now + conf.get().ring_pause
    try:
        with _pool(app).acquire(block=True, timeout=conf.get().ring_timeout) as producer:
            # Past the override of a task's own apply_async, which is for the site's calls.
            Task.apply_async(
                app.tasks[task],
                args=args or (queue,),
                kwargs={} if rung_at is None else {"rung_at": rung_at},
                queue=queue,
                producer=producer,
                retry=True,
                retry_policy=_ONE_TRY,
                ignore_result=True,
                # The site's own limits are made for its own tasks, and would cut a mail short.
                time_limit=conf.get().task_seconds,
                soft_time_limit=conf.get().task_seconds,
            )
    except Exception as error:  # noqa: BLE001 - the mail is stored, and the sweep will ring
        with _bell.lock:
            _bell.silent_until = time.monotonic() + conf.get().ring_pause
        logger.warning(
            "The broker took no ring for queue %s (%s). Its mail waits for the sweep; "
            "no ring is tried for %s seconds.",
            queue,
            type(error).__name__,
            conf.get().ring_pause,
        )
        return False
    if was_silent:
        with _bell.lock:
            _bell.silent_until = 0.0
    return True


def _pool(app: Celery) -> ProducerPool:
    """Return this package's own producers, whose sockets give up after the ring's time-out.

    The site's own pool keeps its own patience: a broker that hangs would block it for ever.
    """
    with _bell.lock:
        pool = _bell.pools.get(id(app))
        if pool is None:
            connection = bounded_connection(app)
            pool_class = type("RingPool", (ProducerPool,), {"Producer": app.amqp.Producer})
            pool = pool_class(connection.Pool(_CONNECTIONS), limit=_CONNECTIONS)
            _bell.pools[id(app)] = pool
        return pool


def bounded_connection(app: Celery) -> Connection:
    """Return a connection to the broker, yet to be opened, that gives up after ``RING_TIMEOUT``."""
    connection: Connection = app.connection_for_write(
        connect_timeout=conf.get().ring_timeout, transport_options=_socket_timeouts(app)
    )
    return connection


def _socket_timeouts(app: Celery) -> dict[str, Any]:
    timeout = conf.get().ring_timeout
    by_driver: dict[str, dict[str, Any]] = {
        "redis": {"socket_timeout": timeout, "socket_connect_timeout": timeout},
        "amqp": {"read_timeout": timeout, "write_timeout": timeout},
    }
    return by_driver.get(app.connection_for_write().transport.driver_type, {})
