"""Publishes through whichever of the site's brokers is alive, in bounded time.

The connections are ours: the site's own may wait for a broker that hangs for ever. Those that an
idle time-out has closed meanwhile are replaced at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import QueueNotFound
from kombu import Connection

from django_epica_mail import conf
from django_epica_mail.broker import celery_config

if TYPE_CHECKING:
    from celery import Celery

_CONNECTIONS = 4
"""How many threads of this process publish at the same time."""
NO_RETRIES = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""For kombu, which otherwise tries the same broker again until the time is over."""
_AT_ONCE = 0.25
"""The part of the time for one broker within which a connection shows that it was closed."""


class Busy(Exception):  # noqa: N818
    """Other threads of this process publish, and have not finished in the time allowed."""


class Publisher:
    """The connections of this process to the brokers of one app."""

    def __init__(self, app: Celery) -> None:
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        urls = celery_config.broker_urls(app)
        self._seconds = conf.get().ring_timeout
        share = self._seconds / len(urls) / (1 + _AT_ONCE)
        self._brokers = tuple(_Broker(app, url, share) for url in urls)

    def publish(self, send: Callable[[Any], None]) -> None:
        """Call ``send`` with a producer until one of the brokers has taken what it sends.

        Takes ``RING_TIMEOUT`` at most. Raises ``Busy``, ``QueueNotFound``, or the error of the
        broker tried last.
        """
        if not self._slots.acquire(timeout=self._seconds):
            raise Busy
        try:
            self._publish(send)
        finally:
            self._slots.release()

    def is_refusal(self, error: Exception) -> bool:
        """Return whether a broker has answered with an error, which may concern one queue alone."""
        return any(broker.has_answered(error) for broker in self._brokers)

    def _publish(self, send: Callable[[Any], None]) -> None:
        last: Exception | None = None
        for broker in self._brokers:
            try:
                broker.publish(send)
            except QueueNotFound:
                raise
            except Exception as error:  # noqa: BLE001 - each driver raises its own
                last = error
            else:
                self._prefer(broker)
                return
        if last is not None:
            raise last

    def _prefer(self, broker: _Broker) -> None:
        if self._brokers[0] is not broker:
            self._brokers = (broker, *(it for it in self._brokers if it is not broker))


class _Broker:
    """One broker, and the idle producers that are connected to it."""

    def __init__(self, app: Celery, url: str | None, seconds: float) -> None:
        self._app, self._url, self._seconds = app, url, seconds
        first = self._make()  # which also imports kombu's transport
        self._idle = [first]
        self._lost: tuple[type[Exception], ...] = first.connection.connection_errors
        self._refused: tuple[type[Exception], ...] = first.connection.channel_errors

    def has_answered(self, error: Exception) -> bool:
        """Return whether an error is one that the broker has answered with."""
        own = error.__cause__ or error  # which kombu makes its OperationalError of
        return isinstance(own, self._refused) and not isinstance(own, self._lost)

    def publish(self, send: Callable[[Any], None]) -> None:
        """Call ``send`` with a producer, and again if its connection turns out to be closed."""
        may_be_closed, started = bool(self._idle), time.monotonic()
        try:
            self._publish(send)
        except QueueNotFound:
            raise
        except Exception:
            if not may_be_closed or time.monotonic() - started > self._seconds * _AT_ONCE:
                raise
            self._publish(send)

    def _publish(self, send: Callable[[Any], None]) -> None:
        """Call ``send`` with a producer; after an error, keep no connection to this broker."""
        try:
            producer = self._idle.pop()
        except IndexError:
            producer = self._make()
        try:
            send(producer)
        except BaseException:
            idle, self._idle = self._idle, []
            for it in (producer, *idle):
                _discard(it.connection)
            raise
        self._idle.append(producer)

    def _make(self) -> Any:
        return self._app.amqp.Producer(bounded_connection(self._app, self._url, self._seconds))


def _discard(connection: Any) -> None:
    """Close a broken connection without waiting for the broker, as closing one of AMQP would."""
    close = connection.collect if hasattr(connection.transport, "_collect") else connection.release
    with contextlib.suppress(Exception):
        close()


def bounded_connection(
    app: Celery, url: str | None = None, seconds: float | None = None
) -> Connection:
    """Return an unopened connection to a broker that times out after ``seconds``.

    By default, it is one to all of the site's brokers, and times out after ``RING_TIMEOUT``.
    """
    seconds = conf.get().ring_timeout if seconds is None else seconds
    timeouts = _socket_timeouts(app.connection_for_write(url).transport.driver_type, seconds)
    connection: Connection = app.connection_for_write(
        url, connect_timeout=seconds, transport_options={**NO_RETRIES, **timeouts}
    )
    return connection


def _socket_timeouts(driver: str, seconds: float) -> dict[str, Any]:
    by_driver: dict[str, dict[str, Any]] = {
        "redis": {"socket_timeout": seconds, "socket_connect_timeout": seconds},
        "amqp": {"read_timeout": seconds, "write_timeout": seconds},
    }
    return by_driver.get(driver, {})
