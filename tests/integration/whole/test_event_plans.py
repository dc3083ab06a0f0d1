"""A million events cost what they must: each question about them reads few rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from benchmarks.rows import multiply, template
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailEvent, EmailLog, ReputationDay
from django_epica_mail.monitoring import reputation
from django_epica_mail.retry import Kind
from django_epica_mail.tracking import events, evidence
from tests.integration.whole.test_query_plans import Examiner

pytestmark = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="generate_series, and PostgreSQL's planner"
)

MAILS, EVENTS = 50_000, 1_000_000
MOST_ROWS = 2_000

# Nearly all are opens, as it is on a site that tracks; they came within three days.
_FILL = """
    INSERT INTO epica_mail_emailevent (id, email_id, key, kind, at, created_at, source, address,
        provider_id, reason, reply, url, user_agent, ip, is_machine)
    SELECT
        (lpad(to_hex((extract(epoch FROM now() - (%s - n) * interval '250 ms') * 1000)::bigint),
            12, '0') || '7000' || '8' || lpad(to_hex(n), 15, '0'))::uuid,
        mails.ids[1 + n %% %s], 'key ' || n,
        CASE WHEN n %% 19 = 0 THEN 'bounced' ELSE 'opened' END, now(), now(), 'mailbox', '', '',
        CASE WHEN n %% 19 = 0 THEN 'permanent' ELSE '' END, '', '', '', NULL, false
    FROM generate_series(1, %s) AS n,
        (SELECT array_agg(id) AS ids FROM epica_mail_emaillog) AS mails
"""


@pytest.fixture(scope="module")
def million(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Store mail and its events."""
    with django_db_blocker.unblock():
        multiply(template(Status.SENT, finished=-timedelta(days=1)), MAILS - 1)
        unknown = template(Status.UNKNOWN, kind=Kind.UNKNOWN)
        with connection.cursor() as cursor:
            cursor.execute(_FILL, [EVENTS, MAILS, EVENTS])
            cursor.execute("ANALYZE")
        multiply(unknown, 3)
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("TRUNCATE epica_mail_emaillog, epica_mail_emailevent CASCADE")
        cursor.execute("ANALYZE")


@pytest.fixture
def examined(million: None, db: None) -> Iterator[None]:
    """Check what each statement reads."""
    examiner = Examiner(connection)
    with connection.execute_wrapper(examiner):
        yield
    assert examiner.statements
    for statement in examiner.statements:
        about = f"{statement.sql[:2000]}\n{json.dumps(statement.plan, indent=1)}"
        big = {EmailLog._meta.db_table, EmailEvent._meta.db_table}
        assert not statement.scanned & big, f"reads all rows: {about}"
        assert statement.rows <= MOST_ROWS, f"reads {statement.rows} rows: {about}"


def test_the_sweep_counts_the_reports_of_a_window(examined) -> None:
    end = timezone.now() - timedelta(hours=9)
    found = list(reputation._reports(end - timedelta(seconds=60), end, "default"))
    assert 0 < len(found) <= 13


def test_an_event_is_looked_up_once(examined) -> None:
    assert EmailEvent.objects.filter(key="key 77").exists()


def test_what_is_proven_is_found_by_mail(examined) -> None:
    ids = list(EmailLog.objects.order_by("pk").values_list("pk", flat=True)[:20])
    assert events._proven_recipients(ids, "default").keys() == set(ids)


def test_what_waits_for_evidence_is_found(examined, settings) -> None:
    settings.EPICA_MAIL = {"EVIDENCE_WAIT": 60}
    assert len(evidence._due("default")) == 4


def test_rates_are_read_from_days_alone(examined) -> None:
    ReputationDay.objects.create(day=timezone.now().date(), category="news", mails=MAILS)
    assert [it.mails for it in reputation.rates("default")] == [MAILS]


def test_that_nothing_comes_back_is_known_by_an_index(examined, travel) -> None:
    travel(days=30)
    assert not reputation.hears_of_mail("default")


def test_a_report_is_recorded_and_its_mail_suppressed(examined) -> None:
    mail = EmailLog.objects.order_by("pk")[100]
    report = EmailEvent(
        email_id=mail.pk,
        key="a new report",
        kind=events.Kind.BOUNCED,
        reason=events.PERMANENT,
        address="gone@example.com",
        source="mailbox",
        provider_id="its id at the provider",
        at=timezone.now(),
        created_at=timezone.now(),
    )
    assert events.record(report)


def test_the_page_of_a_mail_shows_what_came_back(examined, site, admin_client) -> None:
    mail = EmailLog.objects.order_by("pk")[100]
    page = admin_client.get(f"/admin/epica_mail/emaillog/{mail.pk}/change/")
    assert page.status_code == 200
    assert page.content.decode().count("Opened") >= 10
