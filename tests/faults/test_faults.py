"""Run the short form of the fault suite: a few minutes with new random seeds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.run import run

SECONDS = float(os.environ.get("EPICA_FAULT_SECONDS", "30"))


@pytest.mark.parametrize(
    "scenario",
    ["postgresql", "postgresql serializable", "mariadb", "rabbitmq", "kills"],
)
def test_nothing_is_lost_and_nothing_arrives_twice(scenario: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("EPICA_FAULT_SEED") or random.randrange(1 << 30))
    print(f"EPICA_FAULT_SEED={seed} replays this run: {scenario}")
    report = run(seed, scenario, tmp_path, seconds=SECONDS)
    print(report)
    assert report.verdict.breaches == []
    assert report.verdict.mails > 100
