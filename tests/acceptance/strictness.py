"""Make skipped tests fail, and show the logs of a failed test's processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_LINES = 60
_EXPLANATION = (
    "An acceptance test must not be skipped, because it then proves nothing: start or install "
    "what it needs, or delete it. Its reason for skipping: "
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped or expectedly failing test fail, and add logs to the report of a failure."""
    report = yield
    _forbid_skip(report)
    if report.failed:
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        for log in sorted(folder.glob("*.log")) if folder else ():
            tail = log.read_text(errors="replace").splitlines()[-_LINES:]
            report.sections.append((log.name, "\n".join(tail)))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Make a skipped module fail."""
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{_EXPLANATION}{getattr(report, 'wasxfail', reason)}"
        vars(report).pop("wasxfail", None)  # it would still mark an expected failure
