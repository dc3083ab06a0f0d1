"""The list of mails in the admin: columns, filters, search, and what they cost."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from benchmarks.rows import multiply, template
from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.retry import Kind


@pytest.fixture
def browser(site: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def listed(browser: Client) -> Any:
    """Return the subjects that the list shows, as in ``listed(status="sent")``."""

    def subjects(**parameters: Any) -> list[str]:
        page = browser.get(reverse("admin:epica_mail_emaillog_changelist"), parameters)
        assert page.status_code == 200, page.headers
        return re.findall(r"field-title[^>]*><a[^>]*>([^<]*)</a>", page.content.decode())

    return subjects


def text_of(browser: Client, **parameters: Any) -> str:
    page = browser.get(reverse("admin:epica_mail_emaillog_changelist"), parameters)
    assert page.status_code == 200
    return page.content.decode()


def test_the_status_is_a_badge_that_needs_no_inline_style(browser, queue_mail) -> None:
    queue_mail()
    text = text_of(browser)
    assert '<span class="epica-badge epica-queued">queued</span>' in text
    assert "epica_mail/admin.css" in text
    assert 'style="' not in text.partition('id="result_list"')[2]


def test_the_first_recipients_are_named_and_the_others_hinted_at(browser, queue_mail) -> None:
    queue_mail(*(f"r{number}@example.com" for number in range(9)))
    text = text_of(browser)
    assert "r0@example.com, r1@example.com, r2@example.com, …" in text
    assert "r3@example.com" not in text


def test_a_subject_is_shown_as_text(browser, queue_mail) -> None:
    queue_mail(subject="<script>alert(1)</script>")
    assert "<script>alert(1)" not in text_of(browser)


@pytest.fixture
def one_of_each(db: None) -> dict[Status, EmailLog]:
    """Store a mail of each status, as the queue leaves it, with the status as its subject."""
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


def test_mail_the_queue_itself_handled_is_found_by_its_status(
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
    outbox.cancel([queue_mail(subject="called back").pk])
    queue_mail(subject="waiting")
    assert listed(status="failed") == ["refused"]
    assert listed(status="retrying") == ["postponed"]
    assert listed(status="sent") == ["accepted"]
    assert listed(status="cancelled") == ["called back"]
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
    assert listed(batch="nonsense") == []
    assert sorted(listed(since="hour")) == ["bulk", "of a batch"]
    assert sorted(listed(since="day")) == ["bulk", "of a batch", "old"]
    assert listed(since="hour", queue="bulk_emails", status="queued") == ["bulk"]


def test_queues_transports_categories_and_batches_that_there_are_can_be_chosen(
    browser, queue_mail
) -> None:
    queue_mail(queue="rare_queue", transport="old_transport", category="news")
    batch = EmailBatch.objects.create()
    text = text_of(browser)
    for choice in ("queue=rare_queue", "transport=old_transport", "category=news"):
        assert f"?{choice}" in text
    assert f"?batch={batch.pk}" in text


@pytest.mark.parametrize(
    "lookup",
    ["envelope__contains", "envelope", "recipients__address", "lease_token", "status__in", "x"],
)
def test_no_other_column_can_be_asked_about(browser, queue_mail, lookup) -> None:
    queue_mail()
    page = browser.get(reverse("admin:epica_mail_emaillog_changelist"), {lookup: "Body"})
    assert page.status_code == 400 or page.headers["Location"].endswith("?e=1")


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("ayse@example.com", ["Wanted"]),
        ("AYSE@Example.COM", ["Wanted"]),
        ("ayse@", ["Wanted"]),
        ("ays*", ["Wanted"]),
        ("@example.com", ["Wanted"]),
        ("@example.org", ["Other one"]),
        ("wanted", ["Wanted"]),
        ("one other", ["Other one"]),
        ("100%", []),
        ("nobody@example.com", []),
        ("<nothing@example.com>", []),
        ("00000000-0000-7000-8000-000000000000", []),
    ],
)
def test_the_form_of_a_term_says_what_is_searched(listed, queue_mail, term, found) -> None:
    queue_mail("ayse@example.com", subject="Wanted")
    queue_mail("mehmet@example.org", subject="Other one")
    assert listed(q=term) == found


def test_a_mail_is_found_by_its_id_with_and_without_dashes_and_by_its_message_id(
    listed, queue_mail
) -> None:
    wanted = queue_mail(subject="Wanted")
    queue_mail()
    assert listed(q=str(wanted.pk)) == ["Wanted"]
    assert listed(q=wanted.pk.hex) == ["Wanted"]
    assert listed(q=f" {wanted.message_id} ") == ["Wanted"]


def test_an_address_with_very_much_mail_is_searched_among_the_newest(
    listed, queue_mail, monkeypatch
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.emails._MOST_LOOKED_UP", 3)
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 4)
    for number in range(6):
        queue_mail("busy@example.com", subject=f"busy {number}")
    queue_mail("calm@example.com", subject="calm")
    assert listed(q="busy@example.com") == ["busy 5", "busy 4", "busy 3"]
    assert listed(q="calm@example.com") == ["calm"]


def test_words_of_a_subject_are_searched_among_the_newest(listed, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 2)
    for number in range(4):
        queue_mail(subject=f"Order {number}")
    assert listed(q="order") == ["Order 3", "Order 2"]


def test_pages_are_counted_up_to_a_bound_and_hold_the_newest_first(
    browser, queue_mail, monkeypatch
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 150)
    multiply(queue_mail(subject="many"), 200)
    text = text_of(browser)
    assert "150+ e-mails" in text
    ids = [str(pk) for pk in EmailLog.objects.order_by("-pk").values_list("pk", flat=True)]
    shown = re.findall(r"emaillog/([0-9a-f-]{36})/change", text_of(browser, p=3))
    assert shown == ids[100:150]
    assert "p=4" not in text


@pytest.mark.parametrize(("window", "number"), [(500, 0), (60, 40)])
def test_pages_of_a_filter_go_on_where_the_newest_mails_end(
    browser, queue_mail, monkeypatch, window, number
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 100)
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", window)
    multiply(queue_mail(queue="wanted"), 120)
    multiply(queue_mail(), number or 10)
    text = text_of(browser, queue="wanted", p=2)
    assert "100+ e-mails" in text
    shown = re.findall(r"emaillog/([0-9a-f-]{36})/change", text)
    assert len(shown) == 50
    assert shown == sorted(shown, reverse=True)
    assert EmailLog.objects.filter(pk__in=shown, queue="wanted").count() == 50


def test_few_that_are_found_are_counted_exactly_on_every_page(listed, browser, queue_mail) -> None:
    multiply(queue_mail(queue="wanted"), 59)
    multiply(queue_mail(), 10)
    assert "60 e-mails" in text_of(browser, queue="wanted")
    assert len(listed(queue="wanted")) == 50
    assert len(listed(queue="wanted", p=2)) == 10
    assert len(listed(queue="wanted", all="")) == 60


def test_the_list_takes_as_many_queries_for_one_mail_as_for_many_pages(
    browser, queue_mail, django_assert_num_queries
) -> None:
    mail = queue_mail()
    queries = (
        13  # user; choices: 2 queues, 2 transports, categories, batches; ids, page, recipients
    )
    with django_assert_num_queries(queries - 3):
        text_of(browser)
    multiply(mail, 120)
    with django_assert_num_queries(queries - 2):
        text_of(browser, p=2)


def test_a_count_is_never_taken_of_the_whole_table(browser, queue_mail, monkeypatch) -> None:
    from django.db import connection

    queue_mail()
    statements: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        text_of(browser)
        text_of(browser, status="failed")
        text_of(browser, q="word")
    assert statements
    assert not [sql for sql in statements if "COUNT(" in sql.upper() or "DISTINCT" in sql.upper()]
