"""Test that an outage of the mail server costs little and the backlog drains by priority."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from devservers.process import wait_until
from tests.acceptance.site import Site
from tests.faults.clocks import Clock
from tests.faults.servers import Postgres

if TYPE_CHECKING:
    from devservers.worker import Worker

MAILS = int(os.environ.get("EPICA_OUTAGE_MAILS", "4000"))
LEVELS = (0, 3, 6, 9)
BREAKER_SECONDS = 5
STEPS = 12
BATCH = 100
PROCESSES = 4


def queue_in_bulk(number: int) -> None:
    """Queue ``number`` mails of each level, the least urgent first."""
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    for level in LEVELS:
        messages = (
            EmailMessage(f"{level}", "Body", None, [f"to.{count}@example.com"])
            for count in range(number)
        )
        outbox.enqueue_many(messages, priority=level)


def _rings(workers: list[Worker]) -> int:
    """Return the number of rings that the workers have received."""
    return sum(
        len(re.findall(r"deliver_emails\S+ received", worker.log_text())) for worker in workers
    )


def _outages(site: Site) -> int:
    rows = site.fetch("SELECT outages FROM epica_mail_deliverygate WHERE scope = 'transport'")
    return int(rows[0][0]) if rows else 0


def _updates(site: Site) -> int:
    """Return the number of mail rows that PostgreSQL has updated."""
    query = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'epica_mail_emaillog'"
    return int(site.fetch(query)[0][0])


def test_an_outage_costs_little_and_drains_by_priority(
    tmp_path: Path,
) -> None:
    database, clock = Postgres(tmp_path), Clock(tmp_path / "clock")
    env = {"SHOP_MORE_APPS": "tests.faults.clocks", **clock.env}
    site = Site(database, "postgresql", tmp_path, {"BREAKER_SECONDS": BREAKER_SECONDS}, env)
    try:
        site.smtp.refuse_connections()
        site.start(queue_in_bulk, MAILS // len(LEVELS)).result(timeout=60 + MAILS / 100)
        workers = site.start_workers(2, concurrency=PROCESSES // 2)
        site.start_beat()
        probes = 0
        for _ in range(STEPS):
            wait_until(
                lambda: _outages(site) > probes and "sending" not in site.statuses(),  # noqa: B023
                timeout=30,
                what="the next probe",
                details=lambda: f"{probes} so far, {site.statuses()}\n{workers[0].log_tail()}",  # noqa: B023
            )
            probes = _outages(site)
            clock.travel(3600 / STEPS)
        assert "transport smtp" in site.command("status")["held_back"]
        rings, updates = _rings(workers), _updates(site)
        print(
            f"An hour of outage, {MAILS} mails: {probes} probes, {rings} rings, "
            f"{updates} updates of rows"
        )
        # Each process claims a whole batch before the outage is known; each probe is one mail.
        assert rings <= 2 * (probes + PROCESSES)
        assert updates <= 2 * (PROCESSES * BATCH + probes)
        assert site.fetch("SELECT count(*) FROM epica_mail_emaillog WHERE tries > 0") == [(0,)]

        site.smtp.listen_again()
        clock.travel(BREAKER_SECONDS + 1)
        site.wait_for(sent=MAILS, timeout=60 + MAILS / 200)
        drained = [int(message.header("Subject")) for message in site.smtp.accepted]
        seconds = site.smtp.accepted[-1].time - site.smtp.accepted[0].time
        rings = _rings(workers) - rings
        print(f"Drained in {seconds:.1f} s ({MAILS / seconds:.0f} mails a second), {rings} rings")
        # One ring per second from the sweep and two per run of a process, not one per mail.
        assert rings <= 4 * PROCESSES + 2 * seconds
        site.require_each_arrived_once(MAILS)
        assert _disorder(drained) <= PROCESSES * BATCH
        assert "transport smtp" not in site.command("status")["held_back"]
    finally:
        site.close()


def _disorder(drained: list[int]) -> int:
    """Return the largest number of mails of a level sent while more urgent mail was waiting."""
    waiting = Counter(drained)
    before: Counter[int] = Counter()
    worst = 0
    for level in drained:
        waiting[level] -= 1
        before[level] += 1
        ahead = [other for other in LEVELS if other > level and waiting[other]]
        if ahead:
            worst = max(worst, before[level])
    return worst
