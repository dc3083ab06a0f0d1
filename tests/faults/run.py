"""One run: a site under load, faults drawn from a seed, and the verdict at the end."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from devservers.process import wait_until
from devservers.smtp_faults import Reply, refuse
from tests.acceptance.site import Site
from tests.faults import faults, traffic
from tests.faults.faults import Fault, Stack
from tests.faults.invariants import Verdict, judge
from tests.faults.servers import Database, MariaDB, Postgres

if TYPE_CHECKING:
    from devservers.smtp_faults import Action, Stage
    from devservers.smtp_session import Session

EPICA_MAIL = {
    "SEND_TIMEOUT": 1.5,
    "BATCH_SECONDS": 1,
    "RUN_SECONDS": 3,
    "RETRY_DELAY": 0.5,
    "MAX_RETRIES": 1000,  # a fault is to be survived, however often it is drawn
    "BREAKER_SECONDS": 1,
    "RING_PAUSE": 1,
}
LEASE_SECONDS = 1 + 2 * 1.5

DATABASES: dict[str, Callable[[Path], Database]] = {
    "postgresql": Postgres,
    "postgresql-repeatable-read": lambda folder: Postgres(folder, "repeatable read"),
    "postgresql-serializable": lambda folder: Postgres(folder, "serializable"),
    "mariadb": MariaDB,
}


@dataclass
class Report:
    """What a run did, and what it found."""

    seed: int
    database: str
    injected: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)


class Greylist:
    """A rule of the SMTP server: refuse each recipient named "later" the first time."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Refuse an address that is seen for the first time."""
        if stage != "rcpt" or not session.recipient.startswith("later"):
            return None
        with self._lock:
            if session.recipient in self._seen:
                return None
            self._seen.add(session.recipient)
        return Reply(451, "4.7.1 Greylisted")


def run(
    seed: int,
    database_name: str,
    folder: Path,
    *,
    seconds: float,
    only: tuple[Fault, ...] = (),
    producers: int = 3,
) -> Report:
    """Put a site under load for so many seconds, inject faults, let it calm down, and judge."""
    rng = random.Random(seed)
    database = DATABASES[database_name](folder)
    drawn = only or faults.COMMON
    if not only and isinstance(database, Postgres):
        drawn += faults.POSTGRES_ONLY
    site = Site(database, database_name, folder, EPICA_MAIL)  # type: ignore[arg-type]
    try:
        site.smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", recipient=_is_never))
        site.smtp.inject(Greylist())
        workers = site.start_workers(2)
        beat = site.start_beat()
        stack = Stack(site, database, workers, LEASE_SECONDS)
        report = Report(seed, database_name)
        journals = [folder / f"journal{number}" for number in range(producers)]
        calls = [
            site.start(traffic.produce, str(journal), rng.randrange(1 << 30), seconds)
            for journal in journals
        ]
        end = time.monotonic() + seconds
        deck: list[Fault] = []
        while time.monotonic() < end:
            # Dealt from a shuffled deck, so that a short run meets many kinds.
            deck = deck or rng.sample(drawn, len(drawn))
            fault = deck.pop()
            report.injected[fault.__name__] += 1
            fault(stack, rng)
        for call in calls:
            call.result(timeout=120)
        wait_until(
            lambda: not site.call(traffic.unfinished),
            timeout=120,
            what=f"all mail of run {seed} to come to an end",
            details=lambda: f"{site.call(traffic.unfinished)}\n{workers[0].log_tail()}",
            interval=0.5,
        )
        rows = site.call(traffic.everything)
        beat.stop()
        for worker in workers:
            worker.stop(timeout=60)
        lines = [line for path in journals for line in path.read_text().splitlines()]
        journal = [json.loads(line) for line in lines]
        report.verdict = judge(journal, rows, site.smtp.accepted, stack.stalls)
        report.verdict.breaches += _leaks(site, database)
        return report
    finally:
        site.close()


def _is_never(address: str) -> bool:
    return address.startswith("never")


def _leaks(site: Site, database: Database) -> list[str]:
    """Name what is still held though every worker has ended."""
    found = []
    if site.smtp.connections.open_now:
        found.append(f"{site.smtp.connections.open_now} connections to the mail server")
    if clients := database.connections():
        found.append(f"{clients} connections to the database")
    with site.redis.client() as client:
        keys = {key.decode() for key in client.keys("*")}
    strange = [key for key in keys if not key.startswith(("_kombu.", "unacked"))]
    strange = [key for key in strange if key not in ("emails", "bulk_emails", "celery")]
    return [f"leaked: {leak}" for leak in [*found, *strange]]
