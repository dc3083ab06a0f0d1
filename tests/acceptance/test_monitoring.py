"""Test health check and metrics of a running site: each process reports for all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from devservers.process import wait_until
from tests.acceptance.conftest import OpenSite

TOKEN = "a-token-of-the-tests"


def send(number: int) -> None:
    from django.core.mail import send_mail

    for count in range(number):
        send_mail(f"Subject {count}", "M", None, [f"to{count}@example.com"])


def ask(page: str) -> tuple[int, str]:
    """Request one of the package's pages with the token; return its status and content."""
    from django.test import Client
    from django.urls import reverse

    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = Client(SERVER_NAME="localhost", headers=headers).get(reverse(f"epica_mail:{page}"))
    return response.status_code, response.content.decode()


def count_and_scrape() -> dict[str, float]:
    """Count as the sweeps of the next minutes would; return all samples of the metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    from django_epica_mail import clock
    from django_epica_mail.monitoring import totals

    clock.offset = timedelta(minutes=3)
    totals.count()
    families = text_string_to_metric_families(ask("metrics")[1])
    samples = [sample for family in families for sample in family.samples]
    return {f"{it.name}{sorted(it.labels.items())}": it.value for it in samples}


def forget_everything() -> int:
    from django_epica_mail import maintenance

    return maintenance.cleanup(0)


def is_failing(site: Any, *checks: str) -> bool:
    """Return whether the health check fails, and these checks are among the failing ones."""
    import json

    status, content = site.call(ask, "health")
    found = json.loads(content)["checks"]
    failing = {name for name, check in found.items() if check["status"] == "failing"}
    return status == 503 and failing >= set(checks)


def test_the_health_check_fails_while_no_worker_runs(
    open_site: OpenSite,
) -> None:
    site = open_site(
        MONITORING_TOKEN=TOKEN, HEALTH_NO_WORKER=1, HEALTH_OLDEST_DUE=2, HEALTH_LAST_SWEEP=60
    )
    worker = site.start_worker()
    site.call(send, 1)
    site.wait_for(sent=1)
    assert site.call(ask, "health")[0] == 200
    worker.stop()
    site.call(send, 1)
    wait_until(lambda: is_failing(site, "worker", "backlog"), timeout=60, what="the check to fail")
    site.start_worker()
    site.wait_for(sent=2)
    site.sweep()
    assert site.call(ask, "health")[0] == 200


def test_metrics_cover_all_workers_and_survive_the_clean_up(
    open_site: OpenSite,
) -> None:
    site = open_site("postgresql", MONITORING_TOKEN=TOKEN)
    site.start_workers(2, concurrency=2)
    site.call(send, 250)
    site.wait_for(sent=250)
    labels = "[('queue', 'emails'), ('transport', 'smtp')]"
    first = site.call(count_and_scrape)
    assert first[f"epica_mail_enqueued_total{labels}"] == 250
    assert first[f"epica_mail_sent_total{labels}"] == 250
    assert first[f"epica_mail_delivery_seconds_count{labels}"] == 250
    assert first[f"epica_mail_attempt_seconds_count{labels}"] == 250
    for worker in site.celery:
        worker.kill()
    assert site.call(forget_everything) == 250
    assert site.statuses() == {}
    kept = {name: value for name, value in first.items() if "_total[" in name or "_count[" in name}
    assert kept
    second = site.call(count_and_scrape)
    assert {name: second[name] for name in kept} == kept
