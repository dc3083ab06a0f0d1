"""The list of e-mails in the admin: its rows, all that matches, and its number of queries."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.rows import multiply
from devservers.smtp_faults import refuse
from django_epica_mail.models import EmailLog
from tests.integration.admin.pages import html_of, url

LIST = "emaillog_changelist"


def test_the_status_is_a_badge_without_inline_style(superuser, queue_mail) -> None:
    queue_mail()
    html = html_of(superuser, "emaillog_changelist")
    assert '<span class="epica-badge epica-queued">queued</span>' in html
    assert "epica_mail/admin.css" in html
    assert 'style="' not in html.partition('id="result_list"')[2]


def test_only_the_first_recipients_are_listed(superuser, queue_mail) -> None:
    queue_mail(*(f"r{number}@example.com" for number in range(9)))
    html = html_of(superuser, "emaillog_changelist")
    assert "r0@example.com, r1@example.com, r2@example.com, …" in html
    assert "r3@example.com" not in html


def test_a_subject_is_escaped(superuser, queue_mail) -> None:
    queue_mail(subject="<script>alert(1)</script>")
    assert "<script>alert(1)" not in html_of(superuser, "emaillog_changelist")


def test_the_list_shows_a_line_of_a_subject(superuser, queue_mail) -> None:
    log = queue_mail()
    EmailLog.objects.filter(pk=log.pk).update(subject="x" * 1_000_000)
    html = html_of(superuser, "emaillog_changelist")
    assert "x" * 119 + "…" in html
    assert len(html) < 100_000


@pytest.mark.parametrize(
    "lookup",
    ["envelope__contains", "envelope", "recipients__address", "lease_token", "status__in", "x"],
)
def test_other_columns_cannot_be_queried(superuser, queue_mail, lookup) -> None:
    queue_mail()
    page = superuser.get(url("emaillog_changelist"), {lookup: "Body"})
    assert page.status_code == 400 or page.headers["Location"].endswith("?e=1")


def test_the_number_of_queries_does_not_grow_with_the_list(
    superuser, queue_mail, django_assert_num_queries
) -> None:
    mail = queue_mail()
    # User; choices: slowed domains, codes, 2 queues, 2 transports, categories, batches; ids, page,
    # recipients, and what happened afterwards.
    queries = 16
    with django_assert_num_queries(queries - 3):
        html_of(superuser, "emaillog_changelist")
    multiply(mail, 120)
    with django_assert_num_queries(queries - 2):
        html_of(superuser, "emaillog_changelist", p=2)


def test_the_whole_table_is_never_counted(superuser, queue_mail) -> None:
    from django.db import connection

    queue_mail()
    statements: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        html_of(superuser, "emaillog_changelist")
        html_of(superuser, "emaillog_changelist", status="failed")
        html_of(superuser, "emaillog_changelist", q="word")
    assert statements
    assert not [sql for sql in statements if "COUNT(" in sql.upper() or "DISTINCT" in sql.upper()]


def test_all_that_match_can_be_operated_on_by_those_who_may(
    superuser, viewer, queue_mail, monkeypatch
) -> None:
    queue_mail()
    assert "epica-matching" not in html_of(superuser, LIST), "nothing narrows the list"
    html = html_of(superuser, LIST, status="queued")
    buttons = re.findall(r'name="action" value="([^"]+)"', html)
    assert buttons == ["send_now", "export_csv", "cancel"], "ranked, and only what applies"
    assert buttons == re.findall(r'name="action" value="([^"]+)"', html_of(superuser, LIST, q="to"))
    assert "epica-matching" not in html_of(viewer, LIST, status="queued")
    assert "epica-matching" not in html_of(superuser, LIST, status="failed"), "nothing matches"
    multiply(queue_mail(), 9)
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 5)
    assert "epica-matching" not in html_of(superuser, LIST, status="queued"), "too many at once"


def test_the_reason_stands_under_the_badge(superuser, smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    queue_mail()
    deliver()
    html = html_of(superuser, LIST)
    assert '<span class="epica-under">refused for good, 550</span>' in html
