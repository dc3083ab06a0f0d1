"""What is measured of a subject: each scenario returns named figures."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.machine import Machine, SinkProcess, memory
from benchmarks.peers import Subject

Figures = dict[str, float]

_SILENCE = 20.0
"""Seconds without a further mail after which no more are waited for."""


def single_calls(machine: Machine, subject: Subject, scale: float) -> Figures:
    """Measure what a request pays: mails sent one after the other, with no worker running.

    Of this package also while Redis refuses connections, and while it takes them and is silent;
    its peers raise errors or wait then.
    """
    number = str(int(1000 * scale))
    sink = SinkProcess()
    found: Figures = {}
    try:
        said = machine.run(subject, sink.port, machine.fresh_database(subject), "single", number)
        found = {"p50 ms": said["p50"], "p99 ms": said["p99"]}
        for state, broker in _lost_brokers() if subject.calls == "epica" else ():
            database = machine.fresh_database(subject)
            said = machine.run(subject, sink.port, database, "single", number, broker=broker)
            found[f"p50 ms, Redis {state}"] = said["p50"]
    finally:
        sink.close()
    return found


def _lost_brokers() -> Iterator[tuple[str, str]]:
    """Yield what has become of Redis, and an address at which it is so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        yield "refuses", address
        taken.listen()
        yield "hangs", address


def steady(machine: Machine, subject: Subject, scale: float) -> Figures:
    """Measure single mails while workers of 2, then 4 processes send them."""
    number = int(5000 * scale)
    found: Figures = {}
    for processes in (2, 4):
        run = _through(machine, subject, "single", number, processes)
        found[f"mails/s -c{processes}"] = run["rate"]
        if processes == 2:
            found["CPU s per 1000"] = run["cpu"]
            found["worker MB"] = run["memory"]
        _add_faults(found, run)
    return found


def bulk(machine: Machine, subject: Subject, scale: float) -> Figures:
    """Measure one call with many mails, until all have arrived."""
    run = _through(machine, subject, "bulk", int(10_000 * scale), 2)
    return _add_faults({"mails/s": run["rate"], "call returns s": run["returned"]}, run)


def slow_server(machine: Machine, subject: Subject, scale: float) -> Figures:
    """Measure mails over a network whose round trip is 20 ms."""
    run = _through(machine, subject, "single", int(500 * scale), 2, delay=0.02)
    return _add_faults({"mails/s": run["rate"]}, run)


def backlog(machine: Machine, subject: Subject, scale: float) -> Figures:
    """Measure how a worker drains what was queued before it started."""
    run = _through(machine, subject, "single", int(5000 * scale), 2, before=True)
    return _add_faults({"mails/s": run["rate"]}, run)


SCENARIOS: dict[str, Callable[[Machine, Subject, float], Figures]] = {
    "A": single_calls,
    "B": steady,
    "C": bulk,
    "D": slow_server,
    "P": backlog,
}


def _through(
    machine: Machine,
    subject: Subject,
    action: str,
    number: int,
    processes: int,
    *,
    delay: float = 0.0,
    before: bool = False,
) -> dict[str, Any]:
    """Send mails through a subject's worker, and return rate, CPU, memory and what went wrong.

    ``before`` queues them before the worker starts; then the rate counts from the first arrival.
    """
    sink = SinkProcess(delay)
    database = machine.fresh_database(subject)
    try:
        if before:
            machine.run(subject, sink.port, database, action, str(number))
        with machine.worker(subject, sink.port, database, processes) as worker:
            used = machine.cpu_seconds(worker)
            said: dict[str, Any] = {}
            if not before:
                said = machine.run(subject, sink.port, database, action, str(number))
            counts = _wait_for(sink, number)
            used = machine.cpu_seconds(worker) - used + said.get("cpu", 0.0)
            held = memory(worker) if worker else 0.0
    finally:
        sink.close()
    since = counts["first"] if before else said["started"]
    return {
        "rate": counts["distinct"] / (counts["last"] - since),
        "returned": said.get("returned", 0.0),
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
    while (counts := sink.ask())["distinct"] < number:
        if counts["distinct"] > seen:
            seen, since = counts["distinct"], time.monotonic()
        if time.monotonic() - since > _SILENCE:
            break
        time.sleep(0.05)
    return counts
