"""The filters of the list of e-mails: what each finds, and the choices it offers."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from benchmarks.rows import template
from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.retry import Failure, Kind, Scope
from tests.integration.admin.pages import html_of


@pytest.fixture
def one_of_each(db: None) -> dict[Status, EmailLog]:
    """Store an e-mail of each status as the queue leaves it, with the status as its subject."""
    day = timedelta(days=1)
    values: dict[Status, dict[str, Any]] = {
        Status.QUEUED: {},
        Status.SENDING: {"leased": day},
        Status.RETRYING: {"kind": Kind.TRANSIENT},
        Status.SENT: {"finished": -day},
        Status.FAILED: {"finished": -day, "kind": Kind.PERMANENT},
        Status.UNKNOWN: {"kind": Kind.WORKER_LOST},
        Status.CANCELLED: {"finished": -day},
        Status.EXPIRED: {"finished": -day},
        Status.SUPPRESSED: {"finished": -day},
    }
    rows = {}
    for status, how in values.items():
        rows[status] = template(status, **how)
        EmailLog.objects.filter(pk=rows[status].pk).update(subject=status.value)
    return rows


@pytest.mark.parametrize("status", Status)
def test_each_status_can_be_filtered_by(listed, one_of_each, status) -> None:
    assert listed(status=status.value) == [status.value]


def test_mail_handled_by_the_queue_is_found_by_its_status(
    listed, smtp, queue_mail, deliver
) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    queue_mail(subject="refused")
    deliver()
    smtp.inject(refuse("rcpt", 450, "4.2.0 Later", times=1))
    queue_mail(subject="postponed")
    deliver()
    queue_mail(subject="accepted")
    deliver()
    outbox.cancel([queue_mail(subject="withdrawn").pk])
    queue_mail(subject="waiting")
    assert listed(status="failed") == ["refused"]
    assert listed(status="retrying") == ["postponed"]
    assert listed(status="sent") == ["accepted"]
    assert listed(status="cancelled") == ["withdrawn"]
    assert listed(status="queued") == ["waiting"]
    assert listed(failure_kind="permanent") == ["refused"]


def test_filters_by_queue_transport_category_batch_and_time(listed, queue_mail) -> None:
    with time_machine.travel(timezone.now() - timedelta(hours=5)):
        queue_mail(subject="old")
    queue_mail(subject="bulk", queue="bulk_emails", category="news")
    batch = EmailBatch.objects.create()
    queue_mail(subject="of a batch", transport="other")
    EmailLog.objects.filter(subject="of a batch").update(batch=batch)
    assert listed(queue="bulk_emails") == ["bulk"]
    assert listed(transport="other") == ["of a batch"]
    assert listed(category="news") == ["bulk"]
    assert listed(batch=str(batch.pk)) == ["of a batch"]
    assert sorted(listed(since="hour")) == ["bulk", "of a batch"]
    assert sorted(listed(since="day")) == ["bulk", "of a batch", "old"]
    assert listed(since="hour", queue="bulk_emails", status="queued") == ["bulk"]


@pytest.mark.parametrize(
    "name", ["status", "failure_kind", "queue", "transport", "category", "batch", "since"]
)
def test_an_unknown_value_finds_nothing(listed, queue_mail, name) -> None:
    queue_mail(category="news")
    EmailBatch.objects.create()
    assert listed(**{name: "nonsense"}) == []


@pytest.mark.parametrize("name", ["category", "batch"])
def test_a_value_counts_although_there_is_nothing_to_choose_from(listed, queue_mail, name) -> None:
    queue_mail()
    assert listed(**{name: "nonsense"}) == []


def test_existing_values_are_offered_as_choices(superuser, queue_mail) -> None:
    queue_mail(queue="rare_queue", transport="old_transport", category="news")
    batch = EmailBatch.objects.create()
    html = html_of(superuser, "emaillog_changelist")
    for choice in ("queue=rare_queue", "transport=old_transport", "category=news"):
        assert f"?{choice}" in html
    assert f"?batch={batch.pk}" in html


def test_each_queue_is_offered_once_in_order(superuser, queue_mail) -> None:
    for queue in ("b", "a", "c", "b", "a"):
        queue_mail(queue=queue)
    html = html_of(superuser, "emaillog_changelist")
    places = [html.index(f'"?queue={queue}"') for queue in "abc"]
    assert places == sorted(places)
    assert html.count('"?queue=') == 3


def test_only_the_newest_batches_are_offered(superuser, queue_mail) -> None:
    queue_mail()
    batches = [EmailBatch.objects.create() for _ in range(6)]
    html = html_of(superuser, "emaillog_changelist")
    offered = [f"?batch={batch.pk}" in html for batch in batches]
    assert offered == [False, True, True, True, True, True]


def test_only_categories_of_recent_mail_are_offered(superuser, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.changelist.filters._CATEGORIES_OF", 2)
    for category in ("old", "news", "orders"):
        queue_mail(category=category)
    html = html_of(superuser, "emaillog_changelist")
    offered = [f"?category={category}" in html for category in ("old", "news", "orders")]
    assert offered == [False, True, True]


def test_due_mail_to_a_slowed_domain_is_listed(listed, smtp, queue_mail, deliver) -> None:
    queue_mail("a@slow.example", subject="sent before")
    deliver()
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN)
    slowed_domains.complain("smtp", "slow.example", failure, time.monotonic() - 9, "default")
    queue_mail("a@slow.example", subject="waits")
    queue_mail("a@slow.example", subject="later", send_at=timezone.now() + timedelta(hours=1))
    queue_mail("a@fast.example", subject="flows")
    assert listed(slowed="slow.example") == ["waits"]
    assert listed(slowed="unknown.example") == []
