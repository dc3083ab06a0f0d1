"""Bulk calls in the admin: progress, counts, refused entries, and the way to their mails."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk


@pytest.fixture
def browser(site: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def batch(site: None) -> EmailBatch:
    """Return a finished call of three entries, one of which is no mail."""
    entry: dict[str, Any] = {"subject": "News", "message": "B", "from_email": None}
    entries = [{**entry, "recipient_list": [f"r{number}@example.com"]} for number in range(2)]
    entries.append({**entry, "recipient_list": []})
    return bulk.expand(bulk.submit(entries).pk)


def text_of(browser: Client, view: str, *args: Any) -> str:
    page = browser.get(reverse(f"admin:epica_mail_emailbatch_{view}", args=args))
    assert page.status_code == 200
    return page.content.decode()


def test_the_list_tells_progress_mails_and_refused_entries(browser, batch) -> None:
    text = text_of(browser, "changelist")
    assert '<progress max="3" value="3" aria-label="progress"></progress> 3/3' in text
    assert '<td class="field-accepted">2</td><td class="field-refusals">1</td>' in text


def test_a_call_that_waits_for_a_worker_has_not_begun(browser) -> None:
    bulk.submit([{"subject": "secret words"}])
    text = text_of(browser, "changelist")
    assert '<progress max="1" value="0"' in text
    assert '<td class="field-refusals">0</td>' in text
    assert "secret words" not in text


def test_the_page_names_refused_entries_with_their_reasons(browser, batch) -> None:
    text = text_of(browser, "change", batch.pk)
    assert "<td>2</td><td>ValueError: " in text
    assert f"?batch={batch.pk}" in text


def test_the_page_counts_the_mails_by_status(browser, batch) -> None:
    first = EmailLog.objects.filter(batch=batch).first()
    EmailLog.objects.filter(pk=first.pk).update(status="failed", pending=None)
    text = text_of(browser, "change", batch.pk)
    assert f'?batch={batch.pk}&amp;status=failed">1</a>' in text
    assert f'?batch={batch.pk}&amp;status=queued">1</a>' in text


def test_the_list_never_reads_entries(browser, batch, django_assert_num_queries) -> None:
    from django.db import connection

    statements: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        text_of(browser, "changelist")
    assert not [sql for sql in statements if "payload" in sql or '"refused"' in sql]


def test_the_payload_cannot_be_asked_about(browser, batch) -> None:
    address = reverse("admin:epica_mail_emailbatch_changelist")
    page = browser.get(address, {"payload__contains": "r0"})
    assert page.status_code == 400 or page.headers["Location"].endswith("?e=1")
