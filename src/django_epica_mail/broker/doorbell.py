"""The doorbell: tells workers through the broker, in bounded time, that a queue has due mail.

The broker never carries the mail itself. A ring that is lost, repeated or late affects only
latency, because the sweep rings again. So a broker that is down is not waited for, and after a
failure it is left alone for a while.
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
from kombu.exceptions import LimitExceeded
from kombu.pools import ProducerPool

from django_epica_mail import _compat, conf
from django_epica_mail.broker.celery_config import BULK_TASK, TASK, site_route
from django_epica_mail.routing import BULK_QUEUE

if TYPE_CHECKING:
    from celery import Celery


logger = logging.getLogger(__name__)

_CONNECTIONS = 4
_NO_RETRIES = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class _Bell:
    """This process's record of its rings."""

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
    """Ring for a queue once the current transaction commits, or at once if there is none."""

    def ring_now() -> None:  # Django 5.2 and 6.0 cannot log the failure of a functools.partial
        _ring_unless_covered(queue)

    transaction.on_commit(ring_now, using=using, robust=True)


def _ring_unless_covered(queue: str) -> None:
    """Ring, unless this process already rang within the window.

    A worker woken by that ring looks again after a full window and so finds this mail too. This is
    why the window is stamped before publishing, and unstamped if publishing fails.
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
    """Ring for mail that is committed and due; return whether the broker accepted the ring.

    For workers that call for help, and for the sweep. Asks for no second look and stamps no window,
    because it does not cover mail that this process commits next.
    """
    return _publish(app_or_default(), queue, rung_at=None)


def ring_for_batch_on_commit(batch_id: str, *, using: str) -> None:
    """Wake a worker to expand a bulk call once the current transaction commits.

    The ring carries only the batch's id. If it is lost, the sweep rings again.
    """

    def ring_now() -> None:
        ring_for_batch(batch_id)

    transaction.on_commit(ring_now, using=using, robust=True)


def ring_for_batch(batch_id: str) -> bool:
    """Wake a worker to expand a bulk call; return whether the broker accepted the ring."""
    app = app_or_default()
    if app.conf.task_always_eager:
        app.tasks[BULK_TASK].run(batch_id)
        return True
    queue = site_route(bulk=True).get("queue") or BULK_QUEUE
    return _publish(app, queue, task=BULK_TASK, args=(batch_id,))


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
    task: str = TASK,
    args: tuple[str, ...] | None = None,
) -> bool:
    with _bell.lock:
        now = time.monotonic()
        if now < _bell.silent_until:
            return False
        was_silent = _bell.silent_until > 0
        if was_silent:  # this caller finds out whether the broker is back
            _bell.silent_until = now + conf.get().ring_pause
    try:
        with _pool(app).acquire(block=True, timeout=conf.get().ring_timeout) as producer:
            # Bypasses a task's own apply_async, which is for calls by the site.
            Task.apply_async(
                app.tasks[task],
                args=args or (queue,),
                kwargs={} if rung_at is None else {"rung_at": rung_at},
                queue=queue,
                producer=producer,
                retry=True,
                retry_policy=_NO_RETRIES,
                ignore_result=True,
                # The site's time limits are meant for its own tasks and would interrupt a mail.
                time_limit=conf.get().task_seconds,
                soft_time_limit=conf.get().task_seconds,
            )
    except LimitExceeded:
        # The broker is well: other threads of this process hold all producers. The ring is lost.
        logger.info(
            "No producer was free to ring for queue %s. Its mail waits for the sweep.", queue
        )
        return False
    except Exception as error:  # noqa: BLE001 - the mail is stored, and the sweep will ring
        with _bell.lock:
            _bell.silent_until = time.monotonic() + conf.get().ring_pause
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


def _pool(app: Celery) -> ProducerPool:
    """Return our own pool of producers, whose sockets time out after ``RING_TIMEOUT``.

    The site's pool uses the site's time-outs: a broker that hangs could block it for ever.
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
    """Return an unopened connection to the broker that times out after ``RING_TIMEOUT``."""
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
