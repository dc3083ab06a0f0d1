"""Claim mail beside a backlog of a slowed domain at the head of the queue, and measure how long.

    python -m benchmarks.slowed_backlog --rows 100000

Mail to another domain is queued, claimed and taken out one by one on PostgreSQL, each time as a new
task of the same worker process does it; then the health check is made. Both without a backlog, and
beside one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.kills import set_up
from devservers.postgres import PostgresServer

_CLAIMS = 100
_SLOW, _FAST = "slow.example", "fast.example"


def main() -> None:
    """Measure without and with a backlog, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="mails of the slowed domain")
    rows = parser.parse_args().rows
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder, durable=True))
        postgres.create_database("epica_mail")
        set_up(postgres.django_settings("epica_mail"), 25)  # nothing is sent
        _slow_down()
        print(
            "| milliseconds | first claim | claims, p50 | p95 | mean "
            "| empty queue, p50 | health |\n|---|---|---|---|---|---|---|"
        )
        _measure(0)
        _store_backlog(rows)
        _measure(rows)


def _slow_down() -> None:
    from datetime import timedelta

    from django.utils import timezone

    from django_epica_mail.delivery.limits import slowed_domains
    from django_epica_mail.models import SlowedDomain
    from django_epica_mail.retry import Failure, Kind, Scope

    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.1 Rate limited")
    slowed_domains.complain("smtp", _SLOW, failure, time.monotonic() - 9, "default")
    SlowedDomain.objects.update(next_at=timezone.now() + timedelta(hours=1))


def _store_backlog(rows: int) -> None:
    from datetime import timedelta

    from django.utils import timezone

    from benchmarks.rows import analyze, multiply
    from django_epica_mail.models import EmailLog

    _queue(_SLOW)
    log = EmailLog.objects.get(domain=_SLOW)
    log.due_at = timezone.now() - timedelta(days=1)
    log.save()
    multiply(log, rows - 1)
    analyze()


def _measure(rows: int) -> None:
    from django_epica_mail.delivery.limits import scan_starts
    from django_epica_mail.models import EmailLog
    from django_epica_mail.monitoring import health

    claims, empty = [], []
    scan_starts.forget()
    for _ in range(_CLAIMS):
        _queue(_FAST)
        claims.append(_claim(1))
        EmailLog.objects.filter(domain=_FAST).delete()
        empty.append(_claim(0))
    began = time.perf_counter()
    health.measure()
    looked = 1000 * (time.perf_counter() - began)
    first, *others = claims
    p50, p95 = (sorted(others)[int(len(others) * share)] for share in (0.5, 0.95))
    print(
        f"| {rows:,} mails of the slowed domain | {first:.1f} | {p50:.1f} | {p95:.1f} "
        f"| {statistics.mean(claims):.1f} | {statistics.median(empty):.1f} | {looked:.1f} |",
        flush=True,
    )


def _claim(expected: int) -> float:
    """Claim as the first search of a task, and return how many milliseconds it took."""
    from django_epica_mail.delivery import claim
    from django_epica_mail.delivery.limits import scan_starts

    began = time.perf_counter()
    batch = claim.claim("emails", starts=scan_starts.of_queue("emails", "default"))
    took = 1000 * (time.perf_counter() - began)
    assert len(batch.mails if batch else ()) == expected
    return took


def _queue(domain: str) -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    message = EmailMessage("S", "Body " * 50, "from@example.com", [f"to@{domain}"])
    outbox.enqueue(message, queue="emails", transport="smtp")


if __name__ == "__main__":
    main()
