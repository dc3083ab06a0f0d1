"""What all admin pages share: read-only rows, permissions and bounded pagination."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from benchmarks.rows import multiply
from devservers.smtp_faults import refuse
from django_epica_mail import outbox, suppression
from django_epica_mail.admin.base import AtLeast, recent
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailEvent, EmailLog, EmailTotal
from tests.integration.admin.pages import html_of, url

MODELS = ("emaillog", "emailbatch", "deliverygate")


@pytest.fixture
def rows(smtp: Any, queue_mail: Any, deliver: Any) -> dict[str, Any]:
    """Store one row of each model that the admin shows."""
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    log = queue_mail("refused@example.com", subject="A failed mail")
    deliver()
    outbox.pause(queue="bulk_emails")
    return {
        "emaillog": log,
        "emailbatch": EmailBatch.objects.create(total=3),
        "deliverygate": DeliveryGate.objects.get(),
    }


@pytest.mark.parametrize("model", MODELS)
def test_the_list_and_the_page_of_each_row_open(superuser, rows, model) -> None:
    page = url(f"{model}_change", rows[model].pk)
    assert page in html_of(superuser, f"{model}_changelist")
    assert superuser.get(page).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_even_a_superuser_cannot_add_change_or_delete_rows(superuser, rows, model) -> None:
    row = rows[model]
    before = type(row).objects.values().get(pk=row.pk)
    assert superuser.get(url(f"{model}_add")).status_code == 403
    change = superuser.post(url(f"{model}_change", row.pk), {"status": "sent"})
    assert change.status_code == 403
    assert superuser.post(url(f"{model}_delete", row.pk), {"post": "yes"}).status_code == 403
    ticked = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    superuser.post(url(f"{model}_changelist"), ticked)
    assert type(row).objects.values().get(pk=row.pk) == before


def test_viewing_requires_the_permission_of_the_model(site, rows) -> None:
    clerk = User.objects.create_user("clerk", is_staff=True)
    client = Client()
    client.force_login(clerk)
    assert client.get(url("emaillog_changelist")).status_code == 403
    clerk.user_permissions.add(Permission.objects.get(codename="view_emaillog"))
    assert client.get(url("emaillog_changelist")).status_code == 200
    assert client.get(url("deliverygate_changelist")).status_code == 403


def test_recent_rows_are_among_the_newest_of_all_mail(queue_mail, monkeypatch) -> None:
    wanted = [queue_mail(queue="wanted"), queue_mail(), queue_mail(queue="wanted")]
    rows = EmailLog.objects.filter(queue="wanted")
    assert recent(rows).count() == 2, "there is less mail than the window holds"
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 2)
    assert list(recent(rows)) == [wanted[-1]]


def test_pages_are_counted_up_to_a_limit_newest_first(superuser, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 150)
    multiply(queue_mail(subject="many"), 200)
    assert "150+ e-mails" in html_of(superuser, "emaillog_changelist")
    ids = [str(pk) for pk in EmailLog.objects.order_by("-pk").values_list("pk", flat=True)]
    html = html_of(superuser, "emaillog_changelist", p=3)
    assert re.findall(r"emaillog/([0-9a-f-]{36})/change", html) == ids[100:150]
    assert "p=4" not in html_of(superuser, "emaillog_changelist")


@pytest.mark.parametrize(("window", "number"), [(500, 0), (60, 40)])
def test_filtered_pages_continue_beyond_the_newest_mail(
    superuser, queue_mail, monkeypatch, window, number
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 100)
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", window)
    multiply(queue_mail(queue="wanted"), 120)
    multiply(queue_mail(), number or 10)
    html = html_of(superuser, "emaillog_changelist", queue="wanted", p=2)
    assert "100+ e-mails" in html
    shown = re.findall(r"emaillog/([0-9a-f-]{36})/change", html)
    assert len(shown) == 50
    assert shown == sorted(shown, reverse=True)
    assert EmailLog.objects.filter(pk__in=shown, queue="wanted").count() == 50


def test_a_small_result_is_counted_exactly_on_every_page(listed, superuser, queue_mail) -> None:
    multiply(queue_mail(queue="wanted"), 59)
    multiply(queue_mail(), 10)
    assert "60 e-mails" in html_of(superuser, "emaillog_changelist", queue="wanted")
    assert len(listed(queue="wanted")) == 50
    assert len(listed(queue="wanted", p=2)) == 10
    assert len(listed(queue="wanted", all="")) == 60


def test_other_lists_are_counted_up_to_a_limit(superuser, monkeypatch) -> None:
    now = timezone.now()
    for number in range(4):
        EmailEvent.objects.create(kind="opened", key=str(number), at=now, created_at=now)
    assert "4 events" in html_of(superuser, "emailevent_changelist")
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 3)
    assert "3+ events" in html_of(superuser, "emailevent_changelist")


def test_a_lower_bound_is_grouped_once(superuser, queue_mail, monkeypatch, settings) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    monkeypatch.setattr("django_epica_mail.admin.base.MOST", 1150)
    multiply(queue_mail(subject="many"), 1200)
    for query in ({}, {"q": "many"}):
        html = html_of(superuser, "emaillog_changelist", **query)
        assert "1,150+" in html
        assert re.findall(r"[\d,]+,[\d,]*\+", html) == ["1,150+"] * html.count("1,150+")


@pytest.mark.parametrize(
    ("page", "query", "condition"),
    [
        ("emaillog_changelist", {"failure_kind": "permanent"}, '"failure_kind" ='),
        ("emailevent_changelist", {"kind__exact": "opened"}, '"kind" ='),
        ("suppression_changelist", {"reason__exact": "manual"}, '"reason" ='),
    ],
)
def test_rows_that_fit_on_a_page_are_searched_for_once(
    superuser, queue_mail, page, query, condition
) -> None:
    now = timezone.now()
    EmailLog.objects.filter(pk=queue_mail().pk).update(failure_kind="permanent")
    EmailEvent.objects.create(kind="opened", key="k", at=now, created_at=now)
    suppression.add("one@example.com", reason="manual")
    with CaptureQueriesContext(connection) as queries:
        html = html_of(superuser, page, **query)
    assert re.search(r">\s*1 (e-mail|event|suppressed address)", html)
    statements = [it["sql"].replace("`", '"') for it in queries]  # as MariaDB quotes names
    searches = [sql for sql in statements if condition in sql]
    assert len([sql for sql in searches if '"id" IN (' not in sql]) == 1


@pytest.mark.parametrize("theme", ["unfold", "jazzmin"])
def test_a_theme_draws_the_filters_itself(superuser, queue_mail, monkeypatch, theme) -> None:
    queue_mail()
    assert "epica-fold" in html_of(superuser, "emaillog_changelist")
    is_installed = apps.is_installed
    monkeypatch.setattr(apps, "is_installed", lambda name: name == theme or is_installed(name))
    html = html_of(superuser, "emaillog_changelist")
    assert "epica-fold" not in html
    assert "epica-list" not in html
    assert 'href="?status=queued"' in html


def test_a_lower_bound_is_shown_with_a_plus() -> None:
    assert str(AtLeast(10_000)) == "10,000+"
    assert AtLeast(10_000) == 10_000


PAGES = {
    "emaillog_changelist": (
        *("status", "failure_kind", "queue", "transport", "category", "batch", "since"),
        *("q", "o", "p", "all", "id", "batch__id__exact", "_changelist_filters", "_facets"),
    ),
    "emailevent_changelist": ("kind__exact", "is_machine__exact", "q", "address", "p", "source"),
    "suppression_changelist": ("q", "reason__exact", "scope", "p", "note", "digest"),
    "emailbatch_changelist": ("q", "p", "id"),
    "deliverygate_changelist": ("q", "name"),
    "emailtotal_changelist": ("period", "queue", "transport", "workers"),
    "suppression_add": ("address", "scope", "note"),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("value", ["%00", "a%00b", "%ED%A0%80", "%FF", "%F4%90%80%80", "%0"])
def test_no_query_string_is_an_error_of_the_server(superuser, queue_mail, name, value) -> None:
    queue_mail(category="news")
    for parameter in (*PAGES[name], value):
        answer = superuser.get(f"{url(name)}?{parameter}={value}", follow=True)
        assert answer.status_code in (200, 400), parameter


@pytest.mark.parametrize("value", ["%00", "%ED%A0%80"])
def test_no_path_and_no_query_of_a_row_is_an_error_of_the_server(
    superuser, queue_mail, value
) -> None:
    pages = ["emaillog_change", "emailbatch_change", "emailevent_change", "suppression_change"]
    for page in pages:
        path = url(page, "id").replace("/id/", f"/{value}/")
        assert superuser.get(path, follow=True).status_code in (200, 404)
        path = url(page, queue_mail().pk)
        assert superuser.get(f"{path}?images={value}&{value}", follow=True).status_code == 200


ALL = (*MODELS, "emailevent", "suppression")
NO_IDS = ["nope", "\0", "' OR 1=1", "00000000-0000-0000-0000-000000000000", "_5F"]


@pytest.mark.parametrize("model", ALL)
def test_what_is_no_id_is_no_error(superuser, rows, model) -> None:
    for action in ("export_csv", "export", "delete_selected"):
        for across in ("0", "1"):
            for chosen in (NO_IDS[:1], NO_IDS):
                form = {"action": action, "_selected_action": chosen, "select_across": across}
                assert superuser.post(url(f"{model}_changelist"), form).status_code < 500
    for text in NO_IDS:
        for view in ("change", "delete", "history"):
            page = f"/admin/epica_mail/{model}/{quote(text)}/{view}/"
            assert superuser.get(page).status_code < 500, (view, text)
            assert superuser.post(page, {"post": "yes"}).status_code < 500, (view, text)


@pytest.mark.parametrize("model", [*ALL, "emailtotal"])
def test_no_query_string_is_an_error(superuser, rows, model) -> None:
    names = (
        *("status", "queue", "category", "batch", "since", "q", "p", "o", "_to_field"),
        *("kind__exact", "is_machine__exact", "reason__exact", "id__in", "period", "workers"),
        *("email__envelope__startswith", "url__regex", "created_at__year", "_changelist_filters"),
    )
    for name in names:
        for value in (["\0", "x"], "-1", "9" * 400):
            answer = superuser.get(url(f"{model}_changelist"), {name: value})
            assert answer.status_code < 500, (name, value)


@pytest.mark.parametrize("damaged", [{}, 0, "x", [1, {}], [{"index": "x"}], {"a": [None]}])
def test_lists_that_somebody_has_damaged_are_no_error(superuser, rows, damaged) -> None:
    EmailLog.objects.update(fallbacks=damaged)
    EmailBatch.objects.update(refused=damaged)
    EmailTotal.objects.update(buckets=damaged)
    for model in ("emaillog", "emailbatch"):
        assert superuser.get(url(f"{model}_change", rows[model].pk)).status_code == 200
        html_of(superuser, f"{model}_changelist")
    html_of(superuser, "emailtotal_changelist")


@pytest.mark.parametrize("name", ["emaillog_changelist", "emailbatch_changelist"])
def test_a_search_for_thousands_of_words_is_no_error(superuser, name) -> None:
    html_of(superuser, name, q=" ".join(f"w{number}" for number in range(1500)))
