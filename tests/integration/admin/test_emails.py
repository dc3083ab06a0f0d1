"""The list of e-mails in the admin: its columns, its search, and the number of its queries."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rows import multiply
from django_epica_mail.models import EmailLog
from tests.integration.admin.pages import html_of, url


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
def test_the_form_of_a_term_decides_what_is_searched(listed, queue_mail, term, found) -> None:
    queue_mail("ayse@example.com", subject="Wanted")
    queue_mail("mehmet@example.org", subject="Other one")
    assert listed(q=term) == found


@pytest.mark.parametrize(
    ("mailed", "term"),
    [
        ("v@example.com", '"v"@example.com'),
        ('"john doe"@example.com', '"John Doe"@example.com'),
        ("ann@bücher.example", "Ann@xn--bcher-kva.example"),
        ("ann@bücher.example", "ann@BÜCHER.example"),
        ("ann@bücher.example", "@bücher.example"),
        ("ann@example.com", "Ann Lee <ann@example.com>"),
    ],
)
def test_an_address_is_found_in_any_spelling(listed, queue_mail, mailed, term) -> None:
    queue_mail(mailed, subject="Wanted")
    queue_mail("other@example.org", subject="Other one")
    assert listed(q=term) == ["Wanted"]


def test_a_mail_is_found_by_its_id_and_its_message_id(listed, queue_mail) -> None:
    wanted = queue_mail(subject="Wanted")
    queue_mail()
    assert listed(q=str(wanted.pk)) == ["Wanted"]
    assert listed(q=wanted.pk.hex) == ["Wanted"], "an id without dashes"
    assert listed(q=f" {wanted.message_id} ") == ["Wanted"]


def test_an_address_with_much_mail_is_searched_in_the_newest(
    listed, queue_mail, monkeypatch
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.emails._MOST_LOOKED_UP", 3)
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 4)
    for number in range(6):
        queue_mail("busy@example.com", subject=f"busy {number}")
    queue_mail("calm@example.com", subject="calm")
    assert listed(q="busy@example.com") == ["busy 5", "busy 4", "busy 3"]
    assert listed(q="calm@example.com") == ["calm"]


def test_subjects_are_searched_in_the_newest_mail(listed, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 2)
    for number in range(4):
        queue_mail(subject=f"Order {number}")
    assert listed(q="order") == ["Order 3", "Order 2"]


def test_the_number_of_queries_does_not_grow_with_the_list(
    superuser, queue_mail, django_assert_num_queries
) -> None:
    mail = queue_mail()
    queries = (
        13  # user; choices: 2 queues, 2 transports, categories, batches; ids, page, recipients
    )
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
