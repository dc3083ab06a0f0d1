"""Bulk calls in the admin: progress, status counts, refused entries, and links to their e-mails."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from django_epica_mail.clock import uuid7
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk
from tests.integration.admin.pages import client_of, html_of, url


@pytest.fixture
def batch(site: None) -> EmailBatch:
    """Store a finished bulk call of three entries, one of them invalid."""
    entry: dict[str, Any] = {"subject": "News", "message": "B", "from_email": None}
    entries = [{**entry, "recipient_list": [f"r{number}@example.com"]} for number in range(2)]
    entries.append({**entry, "recipient_list": []})
    return bulk.expand(bulk.submit(entries).pk)


def test_the_list_shows_progress_mails_and_refused_entries(superuser, batch) -> None:
    html = html_of(superuser, "emailbatch_changelist")
    assert '<progress max="3" value="3" aria-label="progress"></progress> 3/3' in html
    assert '<td class="field-queued">2</td><td class="field-left_out">1</td>' in html


def test_a_call_that_waits_for_a_worker_shows_no_progress(superuser) -> None:
    bulk.submit([{"subject": "secret words"}])
    html = html_of(superuser, "emailbatch_changelist")
    assert '<progress max="1" value="0"' in html
    assert '<td class="field-left_out">0</td>' in html
    assert "secret words" not in html


def test_the_page_lists_refused_entries_with_reasons(superuser, batch) -> None:
    html = html_of(superuser, "emailbatch_change", batch.pk)
    assert "<td>1</td><td>ValueError</td><td>draft._draft</td><td>2</td>" in html
    assert 'dir="ltr">ValueError: ' in html
    assert f"?batch={batch.pk}" in html


def test_the_page_counts_mails_by_status(superuser, batch) -> None:
    first = EmailLog.objects.filter(batch=batch).first()
    EmailLog.objects.filter(pk=first.pk).update(status="failed", pending=None)
    html = html_of(superuser, "emailbatch_change", batch.pk)
    assert f'?batch={batch.pk}&amp;status=failed">1</a>' in html
    assert f'?batch={batch.pk}&amp;status=queued">1</a>' in html


def test_the_list_never_reads_entries(superuser, batch) -> None:
    from django.db import connection

    statements: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        html_of(superuser, "emailbatch_changelist")
    assert not [sql for sql in statements if "payload" in sql or '"refused"' in sql]


def test_the_payload_cannot_be_queried(superuser, batch) -> None:
    page = superuser.get(url("emailbatch_changelist"), {"payload__contains": "r0"})
    assert page.status_code == 400 or page.headers["Location"].endswith("?e=1")


def test_the_reasons_quote_entries_so_only_readers_of_content_see_them(site) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": "ann@secret.example"}
    batch = bulk.expand(bulk.submit([entry]).pk)
    viewer = client_of("view_emailbatch")
    assert "secret.example" not in html_of(viewer, "emailbatch_change", batch.pk)
    reader = client_of("view_emailbatch", "view_content")
    assert "secret.example" in html_of(reader, "emailbatch_change", batch.pk)


def test_batches_are_listed_and_found_by_a_subject(superuser, batch) -> None:
    other = EmailBatch.objects.create()
    html = html_of(superuser, "emailbatch_changelist")
    assert f'{url("emailbatch_change", batch.pk)}">News</a>' in html
    mail = EmailLog.objects.filter(batch=batch).first()
    for term in ("news", str(batch.pk), str(mail.pk)):
        found = html_of(superuser, "emailbatch_changelist", q=term)
        assert url("emailbatch_change", batch.pk) in found, term
        assert url("emailbatch_change", other.pk) not in found, term
    assert "0 e-mail batches" in html_of(superuser, "emailbatch_changelist", q="nothing like it")


def test_subjects_are_only_for_those_who_may_see_the_mails(site, batch) -> None:
    viewer = client_of("view_emailbatch")
    html = html_of(viewer, "emailbatch_changelist")
    assert str(batch.pk) in html
    assert "News" not in html
    assert url("emailbatch_change", batch.pk) not in html_of(
        viewer, "emailbatch_changelist", q="news"
    )
    assert "News" not in html_of(viewer, "emailbatch_change", batch.pk)


def test_refused_entries_are_grouped_by_reason(superuser) -> None:
    entry: dict[str, Any] = {"subject": "News", "message": "B", "from_email": None}
    entries: list[Any] = [{**entry, "recipient_list": []} for _ in range(12)]
    entries.append("no dict")
    batch = bulk.expand(bulk.submit(entries).pk)
    html = html_of(superuser, "emailbatch_change", batch.pk)
    indexes = ", ".join(map(str, range(10)))
    assert f"<td>12</td><td>ValueError</td><td>draft._draft</td><td>{indexes}, …</td>" in html
    assert "<td>1</td><td>TypeError</td><td>bulk._named</td><td>12</td>" in html


def test_refused_entries_are_a_file_for_readers_of_content(site) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": "=ann@secret.example"}
    batch = bulk.expand(bulk.submit([entry, entry]).pk)
    page = url("emailbatch_refused", batch.pk)
    assert client_of("view_emailbatch").get(page).status_code == 403
    assert client_of("view_content").get(page).status_code == 403
    reader = client_of("view_emailbatch", "view_content")
    answer = reader.get(page)
    rows = list(csv.DictReader(io.StringIO(answer.getvalue().decode("utf-8-sig"))))
    assert [row["index"] for row in rows] == ["0", "1"]
    assert "secret.example" in rows[1]["reason"]
    assert reader.get(url("emailbatch_refused", uuid7())).status_code == 404
