"""Send among millions of finished e-mails, and while the clean-up deletes some of them.

    python -m benchmarks.finished --rows 3000000

A site with this package sends on PostgreSQL with durable commits: first in an empty database, then
among finished e-mails without content, a tenth of which are old. The clean-up deletes these beside
100 mails a second. Prints a table in Markdown; the figures of three rounds are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.peers import SUBJECTS
from benchmarks.scenarios import Figures, arrivals, send_through
from benchmarks.testbed import Testbed

_SITE = SUBJECTS[0]
_ROUNDS = 3
_BURST, _PACED = 5_000, 1_000
"""Mails sent as fast as possible, and at 100 a second."""


def main() -> None:
    """Measure without and among finished e-mails, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_000_000, help="finished e-mails")
    rows: int = parser.parse_args().rows
    with ExitStack() as stack:
        testbed = Testbed(stack)
        testbed.prepare(_SITE)
        database = testbed.fresh_database(_SITE)
        empty = _measure(testbed, database)
        _note(f"storing {rows:,} finished e-mails")
        testbed.run(_SITE, 25, database, "finished", str(rows))
        size = testbed.size(database)
        full = _measure(testbed, database)
        full |= _clean(testbed, database, rows // 10)
    full["gigabytes of the database"] = size / 1e9
    print(f"| | empty | among {rows:,} finished |\n|---|---|---|")
    for name, value in full.items():
        print(f"| {name} | {_cell(empty.get(name))} | {_cell(value)} |")


def _measure(testbed: Testbed, database: str) -> Figures:
    rounds = []
    for number in range(1, _ROUNDS + 1):
        found: Figures = {}
        for name, before in (("a backlog, mails/s", True), ("single mails, mails/s", False)):
            run = send_through(
                testbed, _SITE, "single", _BURST, 2, before=before, database=database
            )
            assert run["lost"] == run["twice"] == 0
            found[name] = run["rate"]
        found |= _paced(testbed, database, "100 mails a second")
        rounds.append(found)
        _note(f"round {number}: {found}")
    return {name: statistics.median(it[name] for it in rounds) for name in rounds[0]}


def _clean(testbed: Testbed, database: str, old: int) -> Figures:
    """Send 100 mails a second while the clean-up deletes the old mails."""
    with ThreadPoolExecutor(1) as thread:
        cleaned = thread.submit(testbed.run, _SITE, 25, database, "clean", str(old))
        found = _paced(testbed, database, "the same beside the clean-up")
        _note(f"beside the clean-up: {found}; it {'was' if cleaned.done() else 'was not'} over")
        found["clean-up, mails/s"] = cleaned.result()["rate"]
    return found


def _paced(testbed: Testbed, database: str, name: str) -> Figures:
    found = arrivals(testbed, _SITE, "paced", _PACED, database)
    return {f"{name}, {measure}": value for measure, value in found.items()}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
