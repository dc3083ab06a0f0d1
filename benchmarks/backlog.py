"""Measure sweep, claim, clean-up and monitoring among a million rows and among ten thousand.

    python -m benchmarks.backlog --database postgresql --rows 1000000

For each number of rows, two data sets are measured: finished mail with a tenth as much due mail,
and mail scheduled for tomorrow at priority 9 with one mail due at priority 0. Prints the medians
in milliseconds and the memory that the process gained.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil

from devservers.databases import DATABASES

ROUNDS = 7


def main() -> None:
    """Measure few and many rows on the chosen database, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        DATABASES[arguments.database](Path(folder)) as server,
    ):
        server.create_database("epica_mail")
        os.environ["EPICA_TEST_DATABASE_URL"] = server.url("epica_mail")
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        small = measure(arguments.rows // 100)
        large = measure(arguments.rows)
    print(f"\n| {arguments.database} | {arguments.rows // 100:,} rows | {arguments.rows:,} rows |")
    print("|---|---|---|")
    for name, value in small.items():
        print(f"| {name} | {value:.1f} | {large[name]:.1f} |")


def measure(rows: int) -> dict[str, float]:
    """Return the milliseconds, or megabytes gained, of each operation."""
    from benchmarks import pages
    from django_epica_mail import maintenance
    from django_epica_mail.delivery import claim as claims
    from django_epica_mail.delivery import settle
    from django_epica_mail.delivery.limits import waiting
    from django_epica_mail.models import EmailLog
    from django_epica_mail.queueing import dequeue

    def claim() -> None:
        batch = claims.claim("emails")
        assert batch is not None
        settle.Settler(batch.using).release([mail.row for mail in batch.mails])

    def sweep() -> None:
        assert list(dequeue.queues("default"))
        assert waiting.has_claimable("emails", "default")
        maintenance.rescue()
        maintenance.give_up_overdue()
        maintenance.mirror_results()

    empty()
    build_finished_and_due(rows)
    found = {"sweep, ms": median(sweep), "claim of 100 and release, ms": median(claim)}
    found |= measure_monitoring(rows) | pages.measure()
    memory = psutil.Process().memory_info().rss
    started = time.perf_counter()
    deleted = maintenance.cleanup()
    found["clean-up, ms per 500"] = (time.perf_counter() - started) * 1000 / (deleted / 500)
    found["clean-up, MB gained"] = (psutil.Process().memory_info().rss - memory) / 1e6
    empty()
    build_tomorrow(rows)
    found["sweep, all but one scheduled, ms"] = median(sweep)
    found["claim, all but one scheduled, ms"] = median(claim)
    assert EmailLog.objects.count() >= rows
    return found


def measure_monitoring(rows: int) -> dict[str, float]:
    """Return the milliseconds that counting takes, and then each way to monitor."""
    from django.conf import settings
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import path, reverse
    from django.utils import timezone

    from django_epica_mail.models import CountingMark
    from django_epica_mail.monitoring import backlog, health, metrics, totals

    CountingMark.objects.create(pk=1, counted_until=timezone.now() - timedelta(days=3))
    started = time.perf_counter()
    counted = totals.count()
    seconds = time.perf_counter() - started
    assert counted >= rows * 9 // 10
    build_totals()
    settings.ROOT_URLCONF = (path("admin/", admin.site.urls),)
    settings.ALLOWED_HOSTS = ["testserver"]
    browser = Client()
    browser.force_login(User.objects.create_superuser("root"))
    page = reverse("admin:epica_mail_emailtotal_changelist")

    def dashboard() -> None:
        assert browser.get(page, {"period": "30d"}).status_code == 200

    def scrape() -> None:
        assert metrics.exposition("")[0]

    return {
        "counting what ended in three days, ms": seconds * 1000,
        "health check, ms": median(lambda: health.measure() and None),
        "metrics, ms": median(scrape),
        "dashboard of 30 days, ms": median(dashboard),
        "status, ms": median(lambda: backlog.status() and None),
    }


def build_totals() -> None:
    """Store the totals of a month in which each of two queues used two transports."""
    from itertools import product

    from django.utils import timezone

    from django_epica_mail.models import EmailTotal
    from django_epica_mail.monitoring import totals

    hour = totals.hour_of(timezone.now())
    dimensions = product(range(720), ("newsletters", "receipts"), ("a", "b"), EmailTotal.Event)
    EmailTotal.objects.bulk_create(
        [
            EmailTotal(
                hour=hour - number * totals.HOUR,
                queue=queue,
                transport=transport,
                event=event,
                count=1000,
                buckets=[70] * 14,
            )
            for number, queue, transport, event in dimensions
        ],
        batch_size=1000,
    )


def median(work: Callable[[], None]) -> float:
    """Return the median of several rounds in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def empty() -> None:
    """Delete everything, faster than row by row."""
    from django.core.management import call_command

    call_command("flush", interactive=False, verbosity=0)


def build_finished_and_due(rows: int) -> None:
    """Store ``rows`` sent mails, a tenth of them old enough to delete, and a tenth as many due."""
    from benchmarks.rows import analyze, multiply, template
    from django_epica_mail.lifecycle import Status

    day = timedelta(days=1)
    failed = template(Status.FAILED, finished=-2 * day, kind="permanent")
    failed.recipients.update(address="rare@example.com")
    multiply(failed, 99)
    multiply(template(Status.SENT, finished=-2 * day), rows * 9 // 10, advance=show_progress)
    multiply(template(Status.SENT, finished=-40 * day), rows // 10, advance=show_progress)
    multiply(template(Status.QUEUED), rows // 10, advance=show_progress)
    analyze()


def build_tomorrow(rows: int) -> None:
    """Store ``rows`` mails for tomorrow at the highest priority, and a due one at the lowest."""
    from benchmarks.rows import analyze, multiply, template
    from django_epica_mail.lifecycle import Status

    multiply(template(Status.QUEUED, due=timedelta(days=1)), rows, advance=show_progress)
    template(Status.QUEUED, priority=0)
    analyze()


def show_progress(rows: int) -> None:
    """Print a dot."""
    print(".", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
