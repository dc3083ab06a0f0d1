"""Run a site under load with faults drawn from a seed, and judge the result."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from devservers.process import wait_until
from devservers.smtp_faults import Reply, refuse
from tests.acceptance.site import Site
from tests.faults import faults, traffic
from tests.faults.brokers import BROKERS, Redis
from tests.faults.clocks import ahead
from tests.faults.faults import Fault, Stack
from tests.faults.invariants import Verdict, judge
from tests.faults.servers import Database, MariaDB, Postgres

if TYPE_CHECKING:
    from devservers.smtp_faults import Action, Stage
    from devservers.smtp_session import Session
    from devservers.worker import Worker

EPICA_MAIL = {
    "SEND_TIMEOUT": 1.5,
    "RUN_SECONDS": 3,
    "RETRY_DELAY": 0.5,
    "MAX_RETRIES": 1000,  # faults must not use up all attempts, however often they occur
    "BREAKER_SECONDS": 1,
    "RING_PAUSE": 1,
}
LEASE_SECONDS = 4 + 1.5
MOST_FILES = 60

# So short that the broker redelivers messages that a worker has reserved but not started.
REDELIVERY = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}

CLOCKS = (0, 75)
"""The seconds by which each worker's clock is ahead; one producer's is behind."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The database, broker and faults of a run."""

    database: Callable[[Path], Database] = Postgres
    broker: str = "redis"
    faults: tuple[Fault, ...] = faults.EVERYTHING + faults.POSTGRES_ONLY


SCENARIOS = {
    "postgresql": Scenario(),
    "postgresql repeatable read": Scenario(database=partial(Postgres, isolation="repeatable read")),
    "postgresql serializable": Scenario(database=partial(Postgres, isolation="serializable")),
    "mariadb": Scenario(database=MariaDB, faults=faults.EVERYTHING),
    "rabbitmq": Scenario(broker="rabbitmq", faults=faults.BROKER + faults.WORKERS),
    "kills": Scenario(faults=faults.KILLS),
}


@dataclass
class Report:
    """The faults and the verdict of a run."""

    seed: int
    scenario: str
    injected: Counter[str] = field(default_factory=Counter)
    restarted: int = 0
    """How often a worker ended on its own and was restarted."""
    verdict: Verdict = field(default_factory=Verdict)


class Greylist:
    """A rule of the SMTP server that refuses each recipient named "later" once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Refuse an address seen for the first time."""
        if stage != "rcpt" or not session.recipient.startswith("later"):
            return None
        with self._lock:
            if session.recipient in self._seen:
                return None
            self._seen.add(session.recipient)
        return Reply(451, "4.7.1 Greylisted")


def run(seed: int, name: str, folder: Path, *, seconds: float, producers: int = 3) -> Report:
    """Inject faults into a site under load for ``seconds``, wait for its mail, and judge."""
    rng = random.Random(seed)
    scenario = SCENARIOS[name]
    with opened(scenario, folder) as stack:
        site, workers = stack.site, stack.workers
        report = Report(seed, name)
        journals = [folder / f"journal{number}" for number in range(producers)]
        calls = [
            site.start_at(
                ahead(-120 if number == 0 else 0),
                traffic.produce,
                str(journal),
                rng.randrange(1 << 30),
                seconds,
            )
            for number, journal in enumerate(journals)
        ]
        end = time.monotonic() + seconds
        remaining: list[Fault] = []
        while time.monotonic() < end:
            # Drawn without replacement, so that a short run has many kinds of faults.
            remaining = remaining or rng.sample(scenario.faults, len(scenario.faults))
            fault = remaining.pop()
            report.injected[fault.__name__] += 1
            fault(stack, rng)
            report.restarted += _restart_ended(workers)
        for call in calls:
            call.result(timeout=120)
        report.restarted += _wait_until_final(stack)
        site.call(traffic.retry_failed)  # must not retry mail that may have been accepted
        report.restarted += _wait_until_final(stack)
        rows = site.call(traffic.everything)
        leaks = _leaked_processes(workers)
        for process in site.celery:
            process.stop(timeout=60)
        lines = [line for path in journals for line in path.read_text().splitlines()]
        journal = [json.loads(line) for line in lines]
        report.verdict = judge(journal, rows, site.smtp.accepted, stack.stalls)
        leaks += _leaks(stack)
        report.verdict.breaches += [f"leaked: {leak}" for leak in leaks]
        return report


@contextmanager
def opened(scenario: Scenario, folder: Path) -> Iterator[Stack]:
    """Start everything a scenario needs, and stop it afterwards."""
    with ExitStack() as ends:
        database = scenario.database(folder)
        broker = BROKERS[scenario.broker](folder)
        ends.callback(broker.close)
        results = Redis(folder / "results")
        ends.callback(results.close)
        broker.start()
        results.start()
        env = {
            "SHOP_BROKER_URL": broker.url(),
            "SHOP_BROKER_OPTIONS": json.dumps(REDELIVERY if scenario.broker == "redis" else {}),
            "SHOP_RESULT_BACKEND": results.url(),
            "SHOP_MORE_APPS": "tests.faults.poison tests.faults.clocks",
        }
        # The database ignores the kind: it is the scenario's own.
        site = Site(database, "", folder, EPICA_MAIL, env)
        ends.callback(site.close)
        site.smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", recipient=_is_never))
        site.smtp.inject(Greylist())
        workers = site.start_workers(len(CLOCKS), envs=[ahead(seconds) for seconds in CLOCKS])
        site.start_beat()
        yield Stack(site, database, broker, results, workers, LEASE_SECONDS)


def _wait_until_final(stack: Stack) -> int:
    """Wait until every mail is final; return how many workers were restarted."""
    site, restarted = stack.site, 0

    def is_over() -> bool:
        nonlocal restarted
        restarted += _restart_ended(stack.workers)  # a worker may end some time after the fault
        return not site.call(traffic.unfinished)

    wait_until(
        is_over,
        timeout=120,
        what="all mail of the run to be final",
        details=lambda: f"{site.call(traffic.unfinished)}\n{stack.workers[0].log_tail()}",
        interval=0.5,
    )
    return restarted


def _is_never(address: str) -> bool:
    return address.startswith("never")


def _restart_ended(workers: list[Worker]) -> int:
    """Restart workers that ended on their own, as systemd would; return their number.

    Celery causes this: for example, kombu does not expect the error of a Redis without memory.
    """
    ended = [worker for worker in workers if not worker.is_alive()]
    for worker in ended:
        worker.start()
    return len(ended)


def _leaked_processes(workers: list[Worker]) -> list[str]:
    """Report processes of workers outside their pool, and files that they do not close.

    A worker or a process that ends meanwhile, as after a fault, has nothing open.
    """
    found = []
    for worker in workers:
        with suppress(RuntimeError, psutil.NoSuchProcess):
            family = psutil.Process(worker.pid).children(recursive=True)
            if len(family) > worker.concurrency:
                found.append(f"{len(family)} processes of {worker!r}")
            most = max((process.num_fds() for process in family), default=0)
            if most > MOST_FILES:
                found.append(f"{most} open files of one process of {worker!r}")
    return found


def _leaks(stack: Stack) -> list[str]:
    """Report what is still open after every worker has ended."""
    found = stack.broker.leaks()
    if stack.site.smtp.connections.open_now:
        found.append(f"{stack.site.smtp.connections.open_now} connections to the mail server")
    # The database notices the end of its clients a moment after they ended.
    with suppress(TimeoutError):
        wait_until(lambda: not stack.database.connections(), timeout=5, what="the database")
    if clients := stack.database.connections():
        found.append(f"{clients} connections to the database")
    return found
