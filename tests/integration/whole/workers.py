"""Workers that stop at every dialogue with the server, and a clock that tests move.

A worker is a thread that runs the real ``worker.deliver``. Only one thread runs at a time: a worker
runs until it waits for the server's reply, and continues when the test gives one. All share the
test's connection, so a transaction held open while waiting would be noticed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Value

from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import worker as delivery_worker
from django_epica_mail.delivery.batch import Batch
from django_epica_mail.retry import Result

_BEGINNING = datetime(2030, 1, 1, tzinfo=timezone.utc)
_TICK = 0.001


class _Moment(Value):
    """A time. MariaDB would return a plain string if it selected the bare parameter."""

    def as_mysql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """Compile to a time with microseconds."""
        sql, params = self.as_sql(compiler, connection)
        return f"CAST({sql} AS datetime(6))", params


class Time:
    """One clock for the database and all workers, which a replay repeats exactly."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Go back to the start."""
        self._seconds = self._jumped = 0.0

    def jump(self, seconds: float) -> None:
        """Step the database's clock on or back; ``monotonic`` does not notice."""
        self._jumped += seconds

    def now(self, delay: timedelta | float = 0) -> Value:
        """Replace ``clock.now``."""
        if not isinstance(delay, timedelta):
            delay = timedelta(seconds=delay)
        return _Moment(self.present(delay), output_field=DateTimeField())

    def present(self, delay: timedelta = timedelta()) -> datetime:
        """Return a later time than any earlier call, as statements never run at the same time.

        Unless the clock has been stepped back in between.
        """
        return self.at(self.monotonic()) + delay

    def at(self, seconds: float) -> datetime:
        """Return the time at a value of ``monotonic`` since the last jump."""
        return _BEGINNING + timedelta(seconds=seconds + self._jumped)

    def monotonic(self) -> float:
        """Replace ``time.monotonic``."""
        self._seconds += _TICK
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Replace ``time.sleep``: move the clock forward."""
        self._seconds += seconds


@dataclass(frozen=True)
class Dialogue:
    """A mail handed to the server, which has not replied yet."""

    mail: UUID
    positions: tuple[int, ...]
    """The recipients of this attempt, as positions among those for whom it was queued."""
    has_file: bool
    """Whether the message has an attachment."""


class Killed(BaseException):
    """Raised in a killed worker, of which no more code may run."""


class _NoDatabase:
    """The connection of a killed worker, whose ``finally`` blocks must not write either."""

    def __getattr__(self, name: str) -> object:
        raise Killed


class Worker(threading.Thread):
    """One run of a worker's task."""

    def __init__(self, connection: BaseDatabaseWrapper, queue: str, time: Time) -> None:
        super().__init__(daemon=True)
        self._connection, self._queue, self._time = connection, queue, time
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._answer: Result | None = None
        self._killed = False
        self._error: BaseException | None = None
        self.batch: Batch | None = None
        self.batch_sought_at = self.holds_until = _BEGINNING
        self.dialogue: Dialogue | None = None
        self.is_over = False

    @property
    def positions(self) -> tuple[int, ...]:
        """The recipients of the current dialogue."""
        assert self.dialogue is not None
        return self.dialogue.positions

    def hold(self, batch: Batch) -> None:
        """Record the batch just claimed, and when it was sought."""
        self.batch, self.batch_sought_at = batch, self._time.at(batch.claimed_at)

    def run(self) -> None:
        """Deliver once, whenever the test lets the worker continue."""
        connections["default"] = self._connection
        self._go.acquire()
        try:
            delivery_worker.deliver(self._queue)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by go_on
            self._error = error
        finally:
            self.is_over = True
            self._stopped.release()

    def go_on(self, answer: Result | None = None) -> None:
        """Run the worker until its next stop; raise its exception."""
        self._answer, self.dialogue = answer, None
        if not self.is_alive():
            self.start()
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """End the worker at once, as SIGKILL would."""
        self._killed = True
        if not self.is_over:
            self.go_on()
        self.join()

    def stop(self, dialogue: Dialogue | None = None) -> Result | None:
        """Wait, in the worker's own thread, for ``go_on``; return the server's reply."""
        self.dialogue = dialogue
        self._stopped.release()
        self._go.acquire()
        if self._killed:
            connections["default"] = _NoDatabase()
            raise Killed
        return self._answer


def address_of(mail: int, position: int) -> str:
    """Return the address of a recipient, which no other mail has."""
    return f"{position}@{mail}.example.com"


def position_of(address: str) -> int:
    """Return the position for which ``address_of`` made an address."""
    return int(address.partition("@")[0])


def _current() -> Worker:
    worker = threading.current_thread()
    assert isinstance(worker, Worker)
    return worker


class _Connection:
    """A connection whose server is the test."""

    mails = 1  # as for the first mail, whose duration is ignored

    def send(self, message: EmailMessage) -> Result:
        """Hand a message to the test and wait for the reply."""
        mail = UUID(re.findall(r"<([0-9a-f-]{36})@", message.extra_headers["Message-ID"])[0])
        positions = tuple(position_of(address) for address in message.recipients())
        answer = _current().stop(Dialogue(mail, positions, bool(message.attachments)))
        assert answer is not None
        return answer


@contextmanager
def connection(alias: str) -> Iterator[_Connection]:
    """Replace ``connection.connection``."""
    yield _Connection()


_batch_of = claims.batch_of


def batch(*args: Any, **options: Any) -> Batch:
    """Replace ``claim.batch_of``, to record what the worker holds."""
    claimed = _batch_of(*args, **options)
    _current().hold(claimed)
    return claimed
