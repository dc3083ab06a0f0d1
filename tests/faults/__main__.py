"""Run the long form of the fault suite: many runs with random seeds, summed up in a table.

    tox run -e faults-long -- --minutes 60

Prints a line for each run and, at the end, a table in Markdown with a row for each scenario. The
exit code is 1 if an invariant was violated; ``--seed`` with the printed seed repeats that run.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import cycle
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from tests.faults.invariants import Verdict  # noqa: E402 - as below
from tests.faults.run import SCENARIOS, Report, run  # noqa: E402 - imports models, which need django.setup()

SECONDS = 60


def main() -> int:
    """Run scenarios until the time is over, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, help="seed of the first run (default: random)")
    parser.add_argument("--scenario", choices=SCENARIOS, help="run only this scenario")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.minutes * 60
    seeds = random.Random(arguments.seed)
    seed = arguments.seed or seeds.randrange(1 << 30)
    reports: list[Report] = []
    for name in cycle([arguments.scenario] if arguments.scenario else SCENARIOS):
        if reports and time.monotonic() >= end:
            break
        print(f"seed {seed}, {name}: ", end="")
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = run(seed, name, Path(folder), seconds=SECONDS)
            except TimeoutError as error:  # mail that does not come to its end
                report = Report(seed, name, verdict=Verdict(breaches=[str(error)]))
        reports.append(report)
        verdict = report.verdict
        print(f"{verdict.mails} mails, {sum(report.injected.values())} faults")
        for breach in verdict.breaches:
            print(f"  BREACH {breach}")
        seed = seeds.randrange(1 << 30)
    print(table(reports))
    return int(any(report.verdict.breaches for report in reports))


def table(reports: list[Report]) -> str:
    """Return the results by scenario and by fault as tables in Markdown."""
    by_scenario: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        by_scenario[report.scenario].append(report)
    lines = [
        "",
        "| scenario | runs | mails | faults | through `unknown` | accepted twice by `resend` "
        "| breaches |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_scenario.items():
        verdicts = [report.verdict for report in runs]
        numbers = (
            len(runs),
            sum(verdict.mails for verdict in verdicts),
            sum(sum(report.injected.values()) for report in runs),
            sum(verdict.passed_through_unknown for verdict in verdicts),
            sum(verdict.resent for verdict in verdicts),
            sum(len(verdict.breaches) for verdict in verdicts),
        )
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    faults = sum((report.injected for report in reports), Counter())
    lines += ["", "| fault | injected |", "|---|---|"]
    lines += [f"| {fault.replace('_', ' ')} | {count} |" for fault, count in sorted(faults.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
