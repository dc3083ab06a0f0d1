"""The metrics: the same from every process, and unaffected by restarts and cleanup."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import include, path, reverse
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox
from django_epica_mail.delivery import claim
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.models import EmailTotal
from django_epica_mail.monitoring import metrics, totals
from django_epica_mail.retry import Failure, Kind, Scope

TOKEN = "a-token-of-the-tests"
LABELS = {"queue": "emails", "transport": "smtp"}
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


@pytest.fixture(autouse=True)
def site(settings: Any, epica_mail: Any, db: None) -> None:
    """Serve the package's URLs on a site with users."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(MONITORING_TOKEN=TOKEN)


@pytest.fixture
def count(travel: Any) -> Any:
    """Count everything up to now, as the sweep does."""

    def run() -> None:
        travel(minutes=2)
        totals.count()

    return run


def scrape(token: str = TOKEN, accept: str = "", client: Client | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Accept": accept}
    return (client or Client()).get(reverse("epica_mail:metrics"), headers=headers)


def value(name: str, /, **labels: str) -> float | None:
    """Return the value of a sample in a scrape, or ``None`` if it is absent."""
    families = text_string_to_metric_families(scrape().content.decode())
    samples = [sample for family in families for sample in family.samples]
    found = [it.value for it in samples if (it.name, it.labels) == (f"epica_mail_{name}", labels)]
    assert len(found) <= 1
    return found[0] if found else None


def test_gauges_are_labelled_by_queue_and_transport(smtp, queue_mail, travel) -> None:
    queue_mail()
    travel(minutes=1)
    claim.claim("emails")
    queue_mail()
    queue_mail(queue="bulk_emails")
    assert value("in_flight", **LABELS) == 1
    assert value("waiting", **LABELS) == value("due", **LABELS) == 1
    assert value("waiting", queue="bulk_emails", transport="smtp") == 1
    travel(seconds=30)
    age = value("oldest_due_seconds", **LABELS)
    assert age is not None
    assert 30 <= age < 60


def test_sent_and_failed_mail_is_counted(smtp, queue_mail, deliver, count) -> None:
    queue_mail()
    deliver()
    smtp.inject(refuse("rcpt", 550, "5.1.1 Gone", times=1))
    smtp.inject(refuse("rcpt", 553, "5.1.3 Bad address", times=1))
    queue_mail()
    queue_mail()
    deliver()
    count()
    assert value("enqueued_total", **LABELS) == 3
    assert value("sent_total", **LABELS) == 1
    assert value("failed_total", **LABELS, failure="permanent") == 2
    assert value("failed_total", **LABELS, failure="outage") == 0
    assert value("attempts_total", **LABELS, failure="") == 1
    assert value("attempts_total", **LABELS, failure="permanent") == 2


def test_a_counter_starts_at_zero(smtp, queue_mail) -> None:
    queue_mail()
    assert value("sent_total", **LABELS) == 0
    assert value("failed_total", **LABELS, failure="permanent") == 0


def test_no_counter_goes_down_when_rows_are_deleted(
    smtp, queue_mail, deliver, count, travel, epica_mail
) -> None:
    epica_mail(KEEP_DAYS=1)
    queue_mail()
    deliver()
    count()
    travel(days=2)
    assert maintenance.cleanup() == 1
    assert value("sent_total", **LABELS) == value("enqueued_total", **LABELS) == 1


def test_times_are_histograms(smtp, queue_mail, deliver, count) -> None:
    queue_mail()
    deliver()
    count()
    for name in ("delivery_seconds", "attempt_seconds"):
        assert value(f"{name}_count", **LABELS) == 1
        assert value(f"{name}_bucket", **LABELS, le="60.0") == 1
        taken = value(f"{name}_sum", **LABELS)
        assert taken is not None
        assert 0 <= taken < 60
    assert value("attempt_seconds_bucket", **LABELS, le="0.005") in (0, 1)


def test_breakers_pauses_and_health_checks_are_exposed(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    assert value("breaker_open", transport="smtp") == 0
    assert value("healthy", check="breaker") == 1
    smtp.refuse_connections()
    deliver()
    outbox.pause(queue="a queue")
    assert value("breaker_open", transport="smtp") == 1
    assert value("paused", scope="queue", name="a queue") == 1
    assert value("healthy", check="breaker") == 0
    assert value("last_sweep_age_seconds") is None
    maintenance.dispatch()
    travel(seconds=40)
    age = value("last_sweep_age_seconds")
    assert age is not None
    assert 40 <= age < 60


def test_only_the_token_or_staff_can_read_them() -> None:
    assert scrape().status_code == 200
    refused = scrape(token="wrong")
    assert (refused.status_code, refused.content) == (401, b"")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    client = Client()
    client.force_login(User.objects.create_user("clerk", is_staff=True))
    assert scrape(token="wrong", client=client).status_code == 401, (
        "a wrong token is refused even with a session"
    )
    assert client.get(reverse("epica_mail:metrics")).status_code == 200
    client.force_login(User.objects.create_user("customer"))
    assert client.get(reverse("epica_mail:metrics")).status_code == 401


def test_the_format_is_the_one_asked_for() -> None:
    openmetrics = scrape(accept="application/openmetrics-text; version=1.0.0")
    assert "openmetrics" in openmetrics.headers["Content-Type"]
    assert openmetrics.content.endswith(b"# EOF\n")
    assert scrape().headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("version", ["abc", "1.x", "", "9" * 5000, "\u00b2", "1..0"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_version_of_a_format_that_is_no_number_asks_for_nothing(kind: str, version: str) -> None:
    answer = scrape(accept=f"{kind};version={version};escaping={version}")
    assert answer.status_code == 200
    assert b"epica_mail_waiting" in answer.content


def test_without_the_package_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=re.escape('"django-epica-mail[metrics]"')):
        metrics.registry()


def test_a_site_can_use_its_own_registry(smtp, queue_mail) -> None:
    queue_mail()
    registry = CollectorRegistry()
    registry.register(metrics.Collector())
    assert registry.get_sample_value("epica_mail_waiting", LABELS) == 1


def slow_down() -> None:
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")
    slowed_domains.complain("smtp", "gmail.example", failure, time.monotonic() - 9, "default")


def test_a_slowed_domain_has_a_rate(db) -> None:
    sample = b'epica_mail_slowed_domain_per_second{domain="gmail.example",transport="smtp"} 8.'
    assert sample not in scrape().content
    slow_down()
    assert sample in scrape().content


def test_what_waits_for_a_slowed_domain_has_its_own_numbers(smtp, queue_mail, travel) -> None:
    queue_mail("to@gmail.example")
    travel(minutes=9)
    slow_down()
    of_domain = {"domain": "gmail.example", "transport": "smtp"}
    assert value("slowed_domain_due", **of_domain) == 1
    assert value("slowed_domain_oldest_due_seconds", **of_domain) == pytest.approx(540, abs=9)
    assert value("oldest_due_seconds", **LABELS) == 0
    assert value("due", **LABELS) == 1


def test_the_reference_lists_each_metric_with_type_and_labels(
    smtp, queue_mail, deliver, count
) -> None:
    queue_mail()
    deliver()
    count()
    maintenance.dispatch()
    outbox.pause(queue="a queue")
    slow_down()
    exposed = {}
    for family in metrics.Collector().collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for it in family.samples for label in it.labels if label != "le"}
        exposed[name] = (family.type, labels)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    written = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert written == exposed


def test_the_cost_of_a_scrape_does_not_depend_on_the_backlog(
    smtp, queue_mail, deliver, count, django_assert_num_queries
) -> None:
    queue_mail()
    deliver()
    count()
    queue_mail()
    with django_assert_num_queries(29):
        scrape()
    for _ in range(20):
        queue_mail()
    with django_assert_num_queries(29):
        scrape()


@pytest.mark.parametrize(
    "damaged",
    [
        *({"buckets": it} for it in ([1] * 60, [10**400], [True, -5, None], {"a": 1})),
        {"count": 2**63 - 1},
        {"seconds": 1e308},
    ],
    ids=lambda it: str(it)[:20],
)
def test_a_damaged_total_stops_no_metrics(smtp, queue_mail, deliver, travel, damaged) -> None:
    queue_mail()
    deliver()
    travel(minutes=10)
    maintenance.dispatch()
    assert EmailTotal.objects.filter(event="sent").update(**damaged) == 2
    text, _type = metrics.exposition("")
    assert b"epica_mail_sent_total" in text
