"""A pytest plugin that writes down the outcome of each test and the mails that the queue sent.

``OUTSIDE_RECORD`` names the file: JSON with ``outcomes`` (of each test, by its id) and ``mails``.
"""

import json
import os
from pathlib import Path

outcomes: dict[str, str] = {}
mails = 0


def pytest_sessionstart() -> None:
    """Count what the queue hands to a transport."""
    from django.apps import apps

    if apps.ready and apps.is_installed("django_epica_mail"):
        from django_epica_mail.signals import before_send

        before_send.connect(_count, weak=False)


def _count(**_: object) -> None:
    global mails
    mails += 1


def pytest_runtest_logreport(report) -> None:
    """Keep the worst outcome of a test's set-up, call and clean-up."""
    if report.when == "call" or not report.passed:
        outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
        if outcomes.get(report.nodeid, "passed") == "passed":
            outcomes[report.nodeid] = outcome


def pytest_collectreport(report) -> None:
    """Note what cannot be collected."""
    if report.failed:
        outcomes[report.nodeid] = "collection failed"


def pytest_sessionfinish() -> None:
    """Write the record."""
    record = {"outcomes": outcomes, "mails": mails}
    Path(os.environ["OUTSIDE_RECORD"]).write_text(json.dumps(record))
