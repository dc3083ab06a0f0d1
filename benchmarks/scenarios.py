"""Define the scenarios: each measures one subject and returns named figures."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.peers import Subject
from benchmarks.testbed import SinkProcess, Testbed, memory

Figures = dict[str, float]

_SILENCE = 20.0
"""Stop waiting after this many seconds without another mail."""


def single_calls(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure what a request pays to send mails one after the other, with no worker running.

    This package is also measured while Redis refuses connections, and while it accepts them but
    does not answer; its peers then raise errors or wait.
    """
    number = str(int(1000 * scale))
    with testbed.sink() as sink:
        found = testbed.run(subject, sink.port, testbed.fresh_database(subject), "single", number)
        figures = {"p50 ms": found["p50"], "p99 ms": found["p99"]}
        for state, broker in _broken_brokers() if subject.calls == "epica" else ():
            database = testbed.fresh_database(subject)
            found = testbed.run(subject, sink.port, database, "single", number, broker=broker)
            figures[f"p50 ms, Redis {state}"] = found["p50"]
    return figures


def _broken_brokers() -> Iterator[tuple[str, str]]:
    """Yield how a broker fails, and the URL of one that fails in this way."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        yield "refuses", address
        taken.listen()
        yield "hangs", address


def steady(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure single mails while a worker of 2, then of 4 processes sends them."""
    number = int(5000 * scale)
    found: Figures = {}
    for processes in (2, 4):
        run = send_through(testbed, subject, "single", number, processes)
        found[f"mails/s -c{processes}"] = run["rate"]
        if processes == 2:
            found["CPU s per 1000"] = run["cpu"]
            found["worker MB"] = run["memory"]
        _add_faults(found, run)
    return found


def bulk(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure one call with many mails until all have arrived."""
    run = send_through(testbed, subject, "bulk", int(10_000 * scale), 2)
    return _add_faults({"mails/s": run["rate"], "call returns s": run["returned"]}, run)


def slow_server(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure single mails over a network with a round trip of 20 ms."""
    run = send_through(testbed, subject, "single", int(500 * scale), 2, delay=0.02)
    return _add_faults({"mails/s": run["rate"]}, run)


def growth(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure a backlog over such a network with 1, 2 and 4 processes, 500 mails for each."""
    found: Figures = {}
    for processes in (1, 2, 4):
        number = int(500 * scale) * processes
        run = send_through(testbed, subject, "single", number, processes, delay=0.02, before=True)
        found[f"mails/s -c{processes}"] = run["rate"]
        _add_faults(found, run)
    return found


def backlog(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure how fast a worker drains a backlog that was queued before it started."""
    run = send_through(testbed, subject, "single", int(5000 * scale), 2, before=True)
    return _add_faults({"mails/s": run["rate"]}, run)


def held_snapshot(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure a backlog as ``backlog`` does, while a transaction keeps an old snapshot open."""
    run = send_through(testbed, subject, "single", int(5000 * scale), 2, before=True, held=True)
    return _add_faults({"mails/s": run["rate"]}, run)


def lone_mail(testbed: Testbed, subject: Subject, scale: float) -> Figures:
    """Measure the time from one call to the mail's arrival, with nothing else to do."""
    number = max(20, int(100 * scale))
    return arrivals(testbed, subject, "lone", number, testbed.fresh_database(subject))


def arrivals(
    testbed: Testbed, subject: Subject, action: str, number: int, database: str
) -> Figures:
    """Measure the times from calls, whose moments the ``action`` returns, to the mails' arrival."""
    with testbed.sink() as sink, testbed.worker(subject, sink.port, database, 2):
        calls = testbed.run(subject, sink.port, database, action, str(number))["calls"]
        arrived = _wait_for(sink, number)["times"]
    took = sorted((arrived[str(it)] - calls[it]) * 1000 for it in range(number // 10, number))
    return {"p50 ms": took[len(took) // 2], "p95 ms": took[int(len(took) * 0.95)]}


SCENARIOS: dict[str, Callable[[Testbed, Subject, float], Figures]] = {
    "A": single_calls,
    "B": steady,
    "C": bulk,
    "D": slow_server,
    "P": backlog,
    "H": held_snapshot,
    "L": lone_mail,
    "G": growth,
}


def send_through(
    testbed: Testbed,
    subject: Subject,
    action: str,
    number: int,
    processes: int,
    *,
    delay: float = 0.0,
    before: bool = False,
    held: bool = False,
    database: str | None = None,
) -> dict[str, Any]:
    """Send mails through a subject's worker; return rate, CPU, memory, and mails lost or doubled.

    ``before`` queues the mails before the worker starts; the rate then counts from the first
    arrival. ``held`` keeps a snapshot open from before the first mail. ``database`` is used in
    place of a fresh one.
    """
    database = database or testbed.fresh_database(subject)
    with ExitStack() as stack:
        sink = stack.enter_context(testbed.sink(delay))
        if held:
            stack.enter_context(testbed.held_snapshot(database))
        if before:
            testbed.run(subject, sink.port, database, action, str(number))
        with testbed.worker(subject, sink.port, database, processes) as worker:
            used = testbed.cpu_seconds(worker)
            measured: dict[str, Any] = {}
            if not before:
                measured = testbed.run(subject, sink.port, database, action, str(number))
            counts = _wait_for(sink, number)
            used = testbed.cpu_seconds(worker) - used + measured.get("cpu", 0.0)
            held = memory(worker) if worker else 0.0
    since = counts["first"] if before else measured["started"]
    return {
        "rate": counts["distinct"] / (counts["last"] - since),
        "returned": measured.get("returned", 0.0),
        "cpu": used * 1000 / number,
        "memory": held,
        "lost": number - counts["distinct"],
        "twice": counts["total"] - counts["distinct"],
    }


def _add_faults(found: Figures, run: dict[str, Any]) -> Figures:
    for name in ("lost", "twice"):
        if run[name]:
            found[name] = found.get(name, 0) + run[name]
    return found


def _wait_for(sink: SinkProcess, number: int) -> dict[str, Any]:
    seen, since = 0, time.monotonic()
    while (counts := sink.counts())["distinct"] < number:
        if counts["distinct"] > seen:
            seen, since = counts["distinct"], time.monotonic()
        if time.monotonic() - since > _SILENCE:
            break
        time.sleep(0.05)
    return counts
