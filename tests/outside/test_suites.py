"""The suites of other projects: each test has the same outcome through the queue as without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.outside.packages import Packages
from tests.outside.suites import SUITES, Suite, run

VERSIONS = {
    "newest Django": (),
    "Django 6.0": ("Django~=6.0.0",),
    "Django 5.2": ("Django~=5.2.0",),
}
"""What is installed over the environment's own packages."""
PARTICULAR = [
    pytest.param(
        suite,
        version,
        id=f"{suite.package}-{version}",
        marks=[] if suite.in_ci and version == "newest Django" else pytest.mark.not_in_ci,
    )
    for suite in SUITES
    for version in VERSIONS
]


@pytest.mark.parametrize(("suite", "version"), PARTICULAR)
def test_a_suite_has_the_same_outcomes_through_the_queue(
    suite: Suite, version: str, packages: Packages, tmp_path: Path
) -> None:
    overlay = packages.overlay(*VERSIONS[version])
    without = run(suite, packages, overlay, tmp_path, queue=False)
    through = run(suite, packages, overlay, tmp_path, queue=True)
    assert without.mails == 0
    assert through.mails >= suite.mails, through.output
    assert without.outcomes.keys() == through.outcomes.keys()
    alike, excepted = without.failures(), suite.exceptions_of(through.outcomes)
    assert alike <= through.failures() <= alike | excepted, through.output
    # A reason may hold on the newest Django only. There it must hold.
    assert VERSIONS[version] or excepted <= through.failures(), through.output
    assert len(without.failures()) < len(without.outcomes) / 20, without.output
