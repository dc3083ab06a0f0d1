"""Define the faults: each function injects one and ends it again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devservers.smtp_faults import (
    DomainLimit,
    Reply,
    Rule,
    delay,
    drop,
    hang,
    refuse,
    throttle,
)
from tests.faults import traffic
from tests.faults.servers import Postgres

if TYPE_CHECKING:
    from devservers.redis import RedisServer
    from devservers.smtp_faults import Behaviour
    from devservers.worker import Worker
    from tests.acceptance.site import Site
    from tests.faults.brokers import Broker
    from tests.faults.servers import Database


@dataclass
class Stack:
    """The parts of a run that faults act on."""

    site: Site
    database: Database
    broker: Broker
    results: RedisServer
    workers: list[Worker]
    lease_seconds: float
    stalls: int = 0
    """How often a worker was paused for longer than its lease."""


Fault = Callable[[Stack, random.Random], None]


def _last(rng: random.Random, least: float = 0.2, most: float = 2.0) -> None:
    """Sleep for the length of a fault; it is part of the fault, not a wait for an event."""
    time.sleep(rng.uniform(least, most))


# -- workers


def _unless_ended() -> suppress[RuntimeError]:
    """Ignore a worker that has ended on its own; the run starts it again."""
    return suppress(RuntimeError)


def kill_pool_process(stack: Stack, rng: random.Random) -> None:
    """Kill one process of a worker's pool (SIGKILL); the worker replaces it."""
    with _unless_ended():
        rng.choice(stack.workers).kill_child()


def kill_worker(stack: Stack, rng: random.Random) -> None:
    """Kill a whole worker (SIGKILL), and start it again."""
    worker = rng.choice(stack.workers)
    worker.kill()
    worker.start()


def stall_worker(stack: Stack, rng: random.Random) -> None:
    """Pause a worker (SIGSTOP) until its lease has expired and others have claimed its mail."""
    worker = rng.choice(stack.workers)
    with _unless_ended():
        worker.pause()
        stack.stalls += 1
        time.sleep(stack.lease_seconds + rng.uniform(0.5, 2))
        worker.resume()


def shut_down_warm(stack: Stack, rng: random.Random) -> None:
    """Stop a worker under load (SIGTERM): it finishes its claimed mail. Start it again."""
    worker = rng.choice(stack.workers)
    worker.stop(timeout=60)
    worker.start()


def shut_down_cold(stack: Stack, rng: random.Random) -> None:
    """Stop a worker under load with SIGQUIT or, if that fails, SIGKILL, as a supervisor does.

    Celery sometimes loses the exception with which its SIGQUIT handler ends the worker.
    """
    worker = rng.choice(stack.workers)
    with suppress(TimeoutError):
        worker.stop(signal.SIGQUIT, timeout=30)
    worker.start()


# -- broker and result backend


def lose_broker(stack: Stack, rng: random.Random) -> None:
    """Kill the broker for a while; it is empty afterwards."""
    stack.broker.lose(while_down=lambda: _last(rng))


def stall_broker(stack: Stack, rng: random.Random) -> None:
    """Make the broker accept connections but answer nothing."""
    stack.broker.pause()
    _last(rng)
    stack.broker.resume()


def empty_broker(stack: Stack, rng: random.Random) -> None:
    """Delete all messages in the broker."""
    stack.broker.empty()


def fill_broker(stack: Stack, rng: random.Random) -> None:
    """Leave the broker no memory, so that it refuses messages."""
    stack.broker.fill(while_full=lambda: _last(rng))


def shuffle_rings(stack: Stack, rng: random.Random) -> None:
    """Lose, duplicate and reorder the waiting rings."""
    stack.broker.shuffle(rng)


def lose_results(stack: Stack, rng: random.Random) -> None:
    """Kill or pause the result backend for a while."""
    if rng.random() < 0.5:
        stack.results.kill()
        _last(rng)
        stack.results.start()
    else:
        stack.results.pause()
        _last(rng)
        stack.results.resume()


# -- mail server


@contextmanager
def _rule(stack: Stack, rule: Behaviour) -> Iterator[None]:
    stack.site.smtp.inject(rule)
    try:
        yield
    finally:
        stack.site.smtp.withdraw(rule)


def refuse_mail(stack: Stack, rng: random.Random) -> None:
    """Refuse mail temporarily, at a random stage."""
    stage = rng.choice(("mail", "rcpt", "data", "content"))
    with _rule(stack, refuse(stage, 451, "4.3.0 Later", times=rng.randint(1, 30))):
        _last(rng)


def drop_before_content(stack: Stack, rng: random.Random) -> None:
    """Disconnect before the content is sent."""
    stage = rng.choice(("connect", "mail", "rcpt", "data"))
    with _rule(stack, drop(stage, reset=rng.random() < 0.5, times=rng.randint(1, 10))):
        _last(rng)


def drop_after_content(stack: Stack, rng: random.Random) -> None:
    """Disconnect after the final dot, with or without accepting the mail."""
    accepted = rng.random() < 0.5
    with _rule(stack, drop("content", accepted=accepted, times=rng.randint(1, 5))):
        _last(rng)


def hang_server(stack: Stack, rng: random.Random) -> None:
    """Stop replying at a random stage, possibly before the greeting."""
    stage = rng.choice(("connect", "mail", "content"))
    with _rule(stack, hang(stage, times=rng.randint(1, 3))):
        _last(rng, 1, 3)


def slow_server(stack: Stack, rng: random.Random) -> None:
    """Delay replies."""
    with _rule(stack, delay(rng.uniform(0.005, 0.1))):
        _last(rng)


def throttle_server(stack: Stack, rng: random.Random) -> None:
    """Reply 421 after some mails on a connection."""
    with _rule(stack, throttle(rng.randint(1, 20), "4.3.2 Closing the connection")):
        _last(rng)


def accept_by_other_codes(stack: Stack, rng: random.Random) -> None:
    """Accept senders, recipients or mail with a 2xx code other than 250."""
    stage = rng.choice(("mail", "rcpt", "content"))
    with _rule(stack, Rule(stage, Reply(rng.choice((251, 252, 299)), "2.5.0 Will try"))):
        _last(rng)


def limit_recipients(stack: Stack, rng: random.Random) -> None:
    """Take one or two recipients in a transaction, and refuse the rest."""
    most = rng.randint(1, 2)
    reply = Reply(*rng.choice(((452, "4.5.3 Too many recipients"), (552, "5.5.3 Too many"))))
    with _rule(stack, Rule("rcpt", reply, lambda session: len(session.recipients) >= most)):
        _last(rng)


def limit_sessions(stack: Stack, rng: random.Random) -> None:
    """Refuse all but the first mails on a connection.

    For now: a transport that refused another mail twice is not asked twice again for an hour.
    """
    after, stage = rng.randint(1, 10), rng.choice(("mail", "rcpt", "content"))
    reply = Reply(rng.choice((450, 452)), "4.5.0 Too many messages in this session")
    with _rule(stack, Rule(stage, reply, lambda session: session.accepted >= after)):
        _last(rng)


def limit_domain(stack: Stack, rng: random.Random) -> None:
    """Take few recipients of a domain in any second."""
    with _rule(stack, DomainLimit(traffic.LIMITED, rng.randint(1, 5))):
        _last(rng)


def refuse_connections(stack: Stack, rng: random.Random) -> None:
    """Stop listening and end all connections for a while."""
    stack.site.smtp.refuse_connections()
    stack.site.smtp.cut_connections()
    _last(rng, 0.5, 4)
    stack.site.smtp.listen_again()


# -- database


def restart_database(stack: Stack, rng: random.Random) -> None:
    """Restart the database."""
    stack.database.restart()


def crash_database(stack: Stack, rng: random.Random) -> None:
    """Kill the database, and start it again."""
    stack.database.crash()


def cut_database(stack: Stack, rng: random.Random) -> None:
    """Terminate all connections to the database, up to four times."""
    for _ in range(rng.randint(1, 4)):
        stack.database.cut()
        _last(rng, 0.05, 0.3)


def stall_database(stack: Stack, rng: random.Random) -> None:
    """Pause the database for a while."""
    stack.database.pause()
    _last(rng, 0.2, 1.5)
    stack.database.resume()


def fill_disk(stack: Stack, rng: random.Random) -> None:
    """Make every insert of a mail fail for a while, as on a full disk."""
    stack.database.refuse_inserts()
    _last(rng)
    stack.database.accept_inserts()


def time_out_statements(stack: Stack, rng: random.Random) -> None:
    """Make the statements of new connections time out after 3 ms (PostgreSQL)."""
    assert isinstance(stack.database, Postgres)
    stack.database.execute("ALTER DATABASE shop SET statement_timeout = '3ms'")
    stack.database.cut()
    _last(rng)
    stack.database.execute("ALTER DATABASE shop RESET statement_timeout")
    stack.database.cut()


# -- content


def spoil_envelopes(stack: Stack, rng: random.Random) -> None:
    """Make some waiting mails unreadable."""
    stack.database.execute(
        f"UPDATE epica_mail_emaillog SET envelope = '{traffic.SPOILED}' "
        f"WHERE id IN (SELECT id FROM (SELECT id FROM epica_mail_emaillog "
        f"WHERE status IN ('queued', 'retrying') LIMIT {rng.randint(1, 3)}) AS waiting)"
    )


WORKERS: tuple[Fault, ...] = (
    kill_pool_process,
    kill_worker,
    stall_worker,
    shut_down_warm,
    shut_down_cold,
)
KILLS: tuple[Fault, ...] = (kill_pool_process, kill_pool_process, kill_worker, shut_down_cold)
BROKER: tuple[Fault, ...] = (
    lose_broker,
    stall_broker,
    empty_broker,
    fill_broker,
    shuffle_rings,
    lose_results,
)
MAIL_SERVER: tuple[Fault, ...] = (
    refuse_mail,
    drop_before_content,
    drop_after_content,
    hang_server,
    slow_server,
    throttle_server,
    accept_by_other_codes,
    limit_recipients,
    limit_sessions,
    limit_domain,
    refuse_connections,
)
DATABASE: tuple[Fault, ...] = (
    restart_database,
    crash_database,
    cut_database,
    stall_database,
    fill_disk,
    spoil_envelopes,
)
EVERYTHING = (*WORKERS, *BROKER, *MAIL_SERVER, *DATABASE)
POSTGRES_ONLY: tuple[Fault, ...] = (time_out_statements,)
