"""Sends the e-mails of a batch: over one connection, and over several while the server is slow."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Generic, TypeVar

from django.core.mail import EmailMessage
from django.db import connections

from django_epica_mail import conf
from django_epica_mail.retry import Result
from django_epica_mail.transports import connection as transport_connection
from django_epica_mail.transports.connection import Connection

K = TypeVar("K")

_SLOW = 0.02
"""Seconds. An e-mail that takes longer spends nearly all of them waiting for the server."""


class Sender(Generic[K]):
    """Sends messages for one worker; the caller's keys tell their results apart.

    While the server answers quickly, e-mails go over one connection in the caller's own thread.
    While it is slow, up to ``CONNECTIONS`` e-mails are in flight at once, each on a connection of
    its own, in threads that do no database work.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._stack = ExitStack()
        self._idle: list[Connection] = []
        self._in_flight: dict[Future[Result], tuple[K, Connection]] = {}
        self._done: list[tuple[K, Result]] = []
        self._is_slow = False
        self._seconds = 0.0

    def __enter__(self) -> Sender[K]:
        self._threads = self._stack.enter_context(ThreadPoolExecutor(conf.get().connections))
        self._idle.append(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Return how many e-mails are in flight."""
        return len(self._in_flight)

    @property
    def is_free(self) -> bool:
        """Whether the next message is sent without waiting for another one to finish."""
        return len(self) < (conf.get().connections if self._is_slow else 1)

    @property
    def per_second(self) -> float:
        """About how many messages it can begin in a second."""
        return conf.get().connections / self._seconds if self._is_slow else float("inf")

    def begin(self, key: K, message: EmailMessage) -> None:
        """Send a message; ``finished`` returns its result."""
        connection = self._idle.pop() if self._idle else self._open()
        if self._is_slow and conf.get().connections > 1:
            self._in_flight[self._threads.submit(_send, connection, message)] = key, connection
        else:
            self._end(key, connection, connection.send(message))

    def finished(self, timeout: float | None = None) -> list[tuple[K, Result]]:
        """Return the results since the last call, waiting up to ``timeout`` seconds for one.

        Does not wait if there is a result already. ``None`` waits without a limit.
        """
        if self._in_flight:
            over, _ = wait(
                self._in_flight, 0 if self._done else timeout, return_when=FIRST_COMPLETED
            )
            for future in over:
                self._end(*self._in_flight.pop(future), future.result())
        done, self._done = self._done, []
        return done

    def _open(self) -> Connection:
        return self._stack.enter_context(transport_connection.connection(self._alias))

    def _end(self, key: K, connection: Connection, result: Result) -> None:
        self._idle.append(connection)
        self._done.append((key, result))
        if connection.mails > 1:  # the first one had to connect
            self._seconds = result.seconds or 0.0
            self._is_slow = self._seconds >= _SLOW


def _send(connection: Connection, message: EmailMessage) -> Result:
    try:
        return connection.send(message)
    finally:
        connections.close_all()  # in case a backend of the site's queried the database
