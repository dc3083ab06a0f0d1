"""Run one action in a subject's site, and print what it measured as a line of JSON.

python -m benchmarks.site.driver ACTION N
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

_APART = 0.3
"""Seconds between lone mails: longer than any worker waits for another one."""

_PACE = 0.01
"""Seconds between the calls of a site that sends 100 mails a second."""


def single(number: int) -> dict[str, Any]:
    """Send ``number`` mails one after the other; return times in milliseconds."""
    from benchmarks.site.calls import SINGLE

    send = SINGLE[settings.CALLS]
    times = []
    started = time.time()
    for index in range(number):
        before = time.perf_counter()
        send(index)
        times.append((time.perf_counter() - before) * 1000)
    steady = sorted(times[number // 20 :])  # the first calls open connections
    return {
        "started": started,
        "p50": statistics.median(steady),
        "p99": steady[int(len(steady) * 0.99)],
        "cpu": time.process_time(),
    }


def lone(number: int, apart: float = _APART) -> dict[str, Any]:
    """Send ``number`` mails far apart; return when each was sent, in seconds since the epoch."""
    from benchmarks.site.calls import SINGLE

    send = SINGLE[settings.CALLS]
    calls: list[float] = []
    for index in range(number):
        time.sleep(max(0.0, calls[-1] + apart - time.time()) if calls else 0.0)
        calls.append(time.time())
        send(index)
    return {"calls": calls}


def paced(number: int) -> dict[str, Any]:
    """Send ``number`` mails, 100 a second, as ``lone`` does."""
    return lone(number, _PACE)


def bulk(number: int) -> dict[str, Any]:
    """Send ``number`` mails in one call; ``returned`` is how long it took, in seconds."""
    from benchmarks.site.calls import BULK

    send = BULK[settings.CALLS]
    started = time.time()
    send(range(number))
    return {"started": started, "returned": time.time() - started, "cpu": time.process_time()}


def finished(number: int) -> dict[str, Any]:
    """Store ``number`` sent mails without content, a tenth of them old enough to be deleted."""
    from datetime import timedelta

    from benchmarks.rows import analyze, multiply, template
    from django_epica_mail.lifecycle import Status

    for share, age in ((0.9, timedelta(days=2)), (0.1, timedelta(days=400))):
        log = template(Status.SENT, due=-age, finished=-age)
        log.envelope = ""
        log.save()
        multiply(log, int(number * share) - 1)
    analyze()
    return {}


def clean(number: int) -> dict[str, Any]:
    """Delete the old mails, which must be ``number``; return how many in a second."""
    from django_epica_mail import maintenance

    began = time.perf_counter()
    deleted = maintenance.cleanup()
    assert deleted == number, deleted
    return {"rate": deleted / (time.perf_counter() - began)}


_ACTIONS = {
    "single": single,
    "lone": lone,
    "paced": paced,
    "bulk": bulk,
    "finished": finished,
    "clean": clean,
}


def main() -> None:
    """Run the action that the arguments name."""
    django.setup()
    if settings.USES_CELERY:
        from benchmarks.site import celery  # noqa: F401 - the app that .delay() uses

    action, *arguments = sys.argv[1:]
    if action == "migrate":
        call_command("migrate", verbosity=0, run_syncdb=True)
        return
    print(json.dumps(_ACTIONS[action](int(arguments[0]))))


if __name__ == "__main__":
    main()
