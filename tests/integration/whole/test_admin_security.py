"""Which visitors may open which page of the admin, for every URL."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.mail import EmailMultiAlternatives
from django.db.models import CharField, TextField
from django.test import Client
from django.urls import reverse

from django_epica_mail import outbox, suppression
from django_epica_mail.admin.operations import OPERATIONS
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailEvent, EmailLog, Suppression
from django_epica_mail.monitoring import totals
from django_epica_mail.queueing import bulk

MODELS = ("emaillog", "emailbatch", "deliverygate", "emailevent")
VIEW = (*(f"view_{model}" for model in MODELS), "view_suppression")
FULL = (*VIEW, "view_content", "operate_emaillog", "add_suppression", "delete_suppression")
VISITORS = {"anonymous": None, "plain": (), "view-only": VIEW, "full": FULL}

LOGIN, OK, NO, WRONG_METHOD = 302, 200, 403, 405


class Page(NamedTuple):
    """A request, and the status code for each visitor, in the order of ``VISITORS``."""

    name: str
    codes: tuple[int, int, int, int]
    method: str = "get"
    args: tuple[str, ...] = ()
    data: dict[str, str] = {}  # noqa: RUF012 - never changed


LOOK = (LOGIN, NO, OK, OK)
READ = (LOGIN, NO, NO, OK)
NOBODY = (LOGIN, NO, NO, NO)
BUTTON = (LOGIN, NO, NO, 302)
WRONG = (LOGIN, WRONG_METHOD, WRONG_METHOD, WRONG_METHOD)

PAGES = [
    *(
        page
        for model in MODELS
        for page in (
            Page(f"{model}_changelist", LOOK),
            Page(f"{model}_change", LOOK, args=(model,)),
            Page(f"{model}_history", LOOK, args=(model,)),
            Page(f"{model}_add", NOBODY),
            Page(f"{model}_add", NOBODY, "post"),
            Page(f"{model}_change", NOBODY, "post", (model,)),
            Page(f"{model}_delete", NOBODY, args=(model,)),
            Page(f"{model}_delete", NOBODY, "post", (model,), {"post": "yes"}),
        )
    ),
    Page("emaillog_html", READ, args=("emaillog",)),
    Page("emaillog_raw", READ, args=("emaillog",)),
    Page("emailbatch_refused", READ, args=("emailbatch",)),
    Page("emaillog_attachment", READ, args=("emaillog", "attachment")),
    Page("emaillog_previews", READ),
    Page("emaillog_preview", READ, data={"template": "emails/welcome", "language": "en"}),
    Page("emailtotal_changelist", LOOK),
    Page("emailtotal_changelist", (LOGIN, NO, WRONG_METHOD, WRONG_METHOD), "post"),
    Page("deliverygate_operate", WRONG, data={"do": "pause transport smtp"}),
    Page("deliverygate_operate", BUTTON, "post", data={"do": "pause transport smtp"}),
    Page("suppression_changelist", LOOK),
    Page("suppression_change", LOOK, args=("suppression",)),
    Page("suppression_change", NOBODY, "post", ("suppression",)),
    Page("suppression_history", LOOK, args=("suppression",)),
    Page("suppression_add", READ),
    Page("suppression_add", READ, "post"),
    Page("suppression_delete", READ, args=("suppression",)),
]


@pytest.fixture
def ids(site: None, epica_mail: Any) -> dict[str, Any]:
    """Store one row of each kind, and return the ids by kind."""
    epica_mail(PREVIEWS={"emails/welcome": {}})
    message = EmailMultiAlternatives("S", "B", None, ["a@example.com"])
    message.attach_alternative("<p>html</p>", "text/html")
    message.attach("a.bin", b"content", "application/octet-stream")
    mail = outbox.enqueue(message, transport="smtp")
    outbox.pause(queue="bulk_emails")
    suppression.add("b@example.com")
    event = EmailEvent.objects.create(
        email=mail, kind=EmailEvent.Kind.OPENED, at=mail.created_at, created_at=mail.created_at
    )
    return {
        "emaillog": mail.pk,
        "attachment": mail.attachments.get().pk,
        "emailbatch": EmailBatch.objects.create(total=3).pk,
        "deliverygate": DeliveryGate.objects.get().pk,
        "emailevent": event.pk,
        "suppression": Suppression.objects.get().pk,
    }


@pytest.fixture(params=VISITORS)
def visitor(request: pytest.FixtureRequest, site: None) -> tuple[int, Client]:
    """Return each visitor's index in ``VISITORS``, and their browser."""
    client, permissions = Client(), VISITORS[request.param]
    if permissions is not None:
        user = User.objects.create_user("visitor", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
    return list(VISITORS).index(request.param), client


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.method} {page.name}")
def test_each_page_is_open_only_to_its_visitors(visitor, ids, page) -> None:
    number, client = visitor
    before = list(EmailLog.objects.values())
    address = reverse(f"admin:epica_mail_{page.name}", args=[ids[kind] for kind in page.args])
    answer = getattr(client, page.method)(address, page.data)
    assert answer.status_code == page.codes[number]
    if number == 0:
        assert answer["Location"].startswith("/admin/login/?next=")
    assert list(EmailLog.objects.values()) == before
    allowed = page.codes[number] == 302 and number > 0
    assert DeliveryGate.objects.filter(name="smtp", paused=True).exists() == allowed


def test_every_url_of_the_admin_is_listed_here() -> None:
    known = {f"epica_mail_{page.name}" for page in PAGES}
    addresses, _app, _namespace = admin.site.urls
    found = {
        pattern.name
        for resolver in addresses
        for pattern in getattr(resolver, "url_patterns", ())
        if (pattern.name or "").startswith("epica_mail_")
    }
    assert found == known


ACTIONS = (
    *("requeue", "cancel", "send_now", "send_again"),
    *("decide_arrived", "decide_resend", "decide_write_off", "export_csv"),
)


@pytest.mark.parametrize("action", ACTIONS)
def test_each_operation_is_for_operators_only(visitor, ids, action) -> None:
    number, client = visitor
    before = list(EmailLog.objects.values())
    fields = {"action": action, "_selected_action": [ids["emaillog"]]}
    answer = client.post(reverse("admin:epica_mail_emaillog_changelist"), fields)
    if number < 3:
        assert answer.status_code == (LOGIN, NO, OK)[number]
        assert "confirmed" not in answer.content.decode()
        client.post(reverse("admin:epica_mail_emaillog_changelist"), {**fields, "confirmed": "yes"})
    assert list(EmailLog.objects.values()) == before


def test_every_operation_is_listed_here(site) -> None:
    assert sorted(operation.name for operation in OPERATIONS) == sorted(ACTIONS)


def test_view_content_without_view_emaillog_shows_nothing(site, ids) -> None:
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_content"))
    client = Client()
    client.force_login(user)
    for name in ("html", "raw", "change"):
        address = reverse(f"admin:epica_mail_emaillog_{name}", args=[ids["emaillog"]])
        assert client.get(address).status_code == NO


HOSTILE = """
<script>parent.document.title = "owned"</script>
<img src=x onerror="fetch('/admin/logout/')">
<meta http-equiv="refresh" content="0; url=https://evil.example.com/">
<base href="https://evil.example.com/" target="_top">
<form action="/admin/auth/user/1/delete/" method="post"><input name="post" value="yes"></form>
<a href="javascript:alert(1)">click</a>
<style>@import "https://evil.example.com/x.css";
input[value^="a"] { background: url(https://evil.example.com/a) }</style>
<iframe src="/admin/"></iframe><object data="/admin/"></object>
"""


def test_a_hostile_mail_is_escaped_on_every_admin_page(site, ids) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    message = EmailMultiAlternatives(HOSTILE.replace("\n", " "), HOSTILE, None, ["a@example.com"])
    message.attach_alternative(HOSTILE, "text/html")
    message.attach('"><script>alert(2)</script>.html', HOSTILE, "text/html")
    message.extra_headers["X-Evil"] = "<script>alert(3)</script>"
    mail = outbox.enqueue(message, transport="smtp", category="<script>alert(4)</script>")
    EmailLog.objects.filter(pk=mail.pk).update(reply="<script>alert(5)</script>")
    mail.delivery_attempts.create(
        number=1,
        transport="<script>",
        worker="<script>",
        created_at=mail.created_at,
        reply="<script>alert(6)</script>",
        failure_kind="transient",
    )
    confirm = {"action": "cancel", "_selected_action": [mail.pk]}
    listing = reverse("admin:epica_mail_emaillog_changelist")
    pages = [
        client.get(listing),
        client.get(listing, {"q": "<script>alert(7)</script>"}),
        client.get(reverse("admin:epica_mail_emaillog_change", args=[mail.pk])),
        client.get(reverse("admin:epica_mail_emaillog_history", args=[mail.pk])),
        client.post(listing, confirm),
    ]
    for page in pages:
        text = page.content.decode()
        for attack in (
            "<script>parent",
            "<script>alert",
            'onerror="fetch',
            "<meta http-equiv",
            "<base",
            'href="javascript:',
            "<style>@import",
            "<object",
        ):
            assert attack not in text
    frame = client.get(reverse("admin:epica_mail_emaillog_html", args=[mail.pk]))
    for attack in ("script", "onerror", "meta", "base", "href", "iframe", "object", "form"):
        assert attack not in frame.content.decode().replace("doctype", "")
    assert frame["Content-Security-Policy"].startswith("sandbox; default-src 'none'; ")
    assert "allow-" not in frame["Content-Security-Policy"]
    assert "script-src" not in frame["Content-Security-Policy"]


def test_no_page_has_an_inline_script_or_style_of_ours(site, ids) -> None:
    from pathlib import Path

    import django_epica_mail

    folder = Path(django_epica_mail.__file__).parent / "templates" / "admin"
    templates = list(folder.rglob("*.html"))
    assert templates
    for template in templates:
        text = template.read_text(encoding="utf-8")
        found = re.search(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:|\|safe", text)
        assert found is None, (template, found)


def test_no_permission_but_view_content_shows_content(site, smtp, deliver, epica_mail) -> None:
    secrets = ("body-s3cret", "link-s3cret", "file-s3cret", "reason-s3cret")
    message = EmailMultiAlternatives("S", "body-s3cret", None, ["a@example.com"])
    message.attach_alternative("<p>body-s3cret</p>", "text/html")
    message.attach("file-s3cret.bin", b"x", "application/octet-stream")
    mail = outbox.enqueue(message, transport="smtp")
    deliver()
    entry = {"subject": "S", "message": "B", "recipient_list": ["reason-s3cret\n@x"]}
    batch = bulk.expand(bulk.submit([entry]).pk)
    assert "reason-s3cret" in bulk.reason(batch, 0)
    event = EmailEvent.objects.create(
        email=mail, kind="clicked", at=mail.created_at, created_at=mail.created_at,
        url="https://e.example/link-s3cret",
    )  # fmt: skip
    rows = {"emaillog": mail.pk, "emailbatch": batch.pk, "emailevent": event.pk}
    attachment = mail.attachments.get().pk
    pages = [
        *(reverse(f"admin:epica_mail_{model}_changelist") for model in rows),
        *(
            reverse(f"admin:epica_mail_{model}_{view}", args=[pk])
            for model, pk in rows.items()
            for view in ("change", "history")
        ),
        *(reverse(f"admin:epica_mail_emaillog_{it}", args=[mail.pk]) for it in ("html", "raw")),
        reverse("admin:epica_mail_emaillog_attachment", args=[mail.pk, attachment]),
        reverse("admin:epica_mail_emailtotal_changelist"),
    ]
    permissions = Permission.objects.filter(
        content_type__app_label="epica_mail", codename__regex="^(view|change|operate)_email"
    )
    client = Client()
    for number, permission in enumerate(permissions.exclude(codename="view_content")):
        user = User.objects.create_user(f"one{number}", is_staff=True)
        user.user_permissions.add(permission)
        client.force_login(user)
        for page in pages:
            text = client.get(page).content.decode()
            assert not [it for it in secrets if it in text], (permission.codename, page)
        for action in [operation.name for operation in OPERATIONS]:
            chosen = {"action": action, "_selected_action": str(mail.pk), "confirmed": "yes"}
            client.post(reverse("admin:epica_mail_emaillog_changelist"), chosen)
    assert EmailLog.objects.count() == 1


MARKUP = "\"'><script>alert(1)</script>{{7*7}}\u202e\x1b[31m"


def test_markup_in_any_column_is_shown_as_text(ids, smtp, deliver) -> None:
    deliver()
    bulk.expand(bulk.submit([{"subject": "S", "recipient_list": []}]).pk)
    totals.count()
    for model in apps.get_app_config("epica_mail").get_models():
        values = {
            column.name: MARKUP[: column.max_length] if column.max_length else MARKUP
            for column in model._meta.concrete_fields
            if isinstance(column, (CharField, TextField))
            and not (column.unique or column.name in NOT_WRITTEN)
        }
        if values:
            model._default_manager.update(**values)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    pages = [reverse("admin:epica_mail_emailtotal_changelist")]
    for model in (EmailLog, EmailBatch, DeliveryGate, EmailEvent, Suppression):
        name = f"admin:epica_mail_{model._meta.model_name}"
        pages.append(reverse(f"{name}_changelist"))
        for pk in model._default_manager.values_list("pk", flat=True):
            pages += [reverse(f"{name}_{view}", args=[pk]) for view in ("change", "history")]
    for page in pages:
        answer = client.get(page)
        assert answer.status_code == 200, page
        assert "<script>alert" not in answer.content.decode(), page


NOT_WRITTEN = frozenset({"status", "envelope", "payload", "scope", "kind", "digest", "key", "name"})
"""Columns that a constraint keeps, that are never shown, or by which rows would be one."""
