"""Run one action in a subject's site, and print what it measured as a line of JSON.

python -m benchmarks.site.driver migrate | single N | lone N | bulk N
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


def lone(number: int) -> dict[str, Any]:
    """Send ``number`` mails far apart; return when each was sent, in seconds since the epoch."""
    from benchmarks.site.calls import SINGLE

    send = SINGLE[settings.CALLS]
    calls = []
    for index in range(number):
        time.sleep(_APART)
        calls.append(time.time())
        send(index)
    return {"calls": calls}


def bulk(number: int) -> dict[str, Any]:
    """Send ``number`` mails in one call; ``returned`` is how long it took, in seconds."""
    from benchmarks.site.calls import BULK

    send = BULK[settings.CALLS]
    started = time.time()
    send(range(number))
    return {"started": started, "returned": time.time() - started, "cpu": time.process_time()}


def main() -> None:
    """Run the action that the arguments name."""
    django.setup()
    if settings.USES_CELERY:
        from benchmarks.site import celery  # noqa: F401 - the app that .delay() uses

    action, *arguments = sys.argv[1:]
    if action == "migrate":
        call_command("migrate", verbosity=0, run_syncdb=True)
        return
    measure = {"single": single, "lone": lone, "bulk": bulk}[action]
    print(json.dumps(measure(int(arguments[0]))))


if __name__ == "__main__":
    main()
