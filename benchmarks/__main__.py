"""Measure this package and its peers alternately in one run, and print medians and ratios.

    python -m benchmarks --rounds 5 --out docs/explanation

Each subject has its own environment, created from PyPI on first use. Compare ratios within one
run only: there the hardware and its other load are the same for all subjects.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from benchmarks import report
from benchmarks.peers import SUBJECTS
from benchmarks.scenarios import SCENARIOS, Figures
from benchmarks.testbed import Testbed


def main() -> None:
    """Measure and print the tables; on request, write tables, figures and chart to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of mails")
    parser.add_argument("--scenarios", default="".join(SCENARIOS))
    parser.add_argument("--subjects", help="names separated by commas (default: all)")
    parser.add_argument(
        "--relaxed", action="store_true", help="commits do not wait for the disk; not how sites run"
    )
    parser.add_argument("--out", type=Path, help="folder for benchmarks.json, .md and .svg")
    arguments = parser.parse_args()
    wanted = arguments.subjects.split(",") if arguments.subjects else None
    subjects = [it for it in SUBJECTS if wanted is None or it.name in wanted]
    rounds: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        testbed = Testbed(stack, durable=not arguments.relaxed)
        for subject in subjects:
            print(f"preparing {subject.name}", flush=True)
            testbed.prepare(subject)
        for number in range(arguments.rounds):
            for scenario in arguments.scenarios:
                for subject in (it for it in subjects if scenario in it.scenarios):
                    found = SCENARIOS[scenario](testbed, subject, arguments.scale)
                    rounds[scenario][subject.name].append(found)
                    shown = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
                    print(f"round {number + 1} {scenario} {subject.name}: {shown}", flush=True)
    print(f"\n{report.table(rounds)}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "benchmarks.json").write_text(json.dumps(rounds, indent=1) + "\n")
        (arguments.out / "benchmarks.md").write_text(report.table(rounds))
        (arguments.out / "benchmarks.svg").write_text(report.chart(rounds))


if __name__ == "__main__":
    main()
