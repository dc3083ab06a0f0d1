"""The admin: everything to look at, nothing to change by hand."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog

MODELS = ("emaillog", "emailbatch", "deliverygate")


@pytest.fixture
def browser(site: None) -> Client:
    """Return the browser of a superuser."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def rows(smtp: Any, queue_mail: Any, deliver: Any) -> dict[str, Any]:
    """Return one row of each model that the admin shows."""
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    log = queue_mail("refused@example.com", subject="A failed mail")
    deliver()
    outbox.pause(queue="bulk_emails")
    return {
        "emaillog": log,
        "emailbatch": EmailBatch.objects.create(total=3),
        "deliverygate": DeliveryGate.objects.get(),
    }


def page(model: str, view: str, *args: Any) -> str:
    return reverse(f"admin:epica_mail_{model}_{view}", args=args)


@pytest.mark.parametrize("model", MODELS)
def test_the_list_and_each_row_can_be_looked_at(browser, rows, model) -> None:
    listed = browser.get(page(model, "changelist"))
    assert listed.status_code == 200
    assert page(model, "change", rows[model].pk) in listed.content.decode()
    assert browser.get(page(model, "change", rows[model].pk)).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_even_a_superuser_adds_changes_and_deletes_nothing(browser, rows, model) -> None:
    row = rows[model]
    before = type(row).objects.values().get(pk=row.pk)
    assert browser.get(page(model, "add")).status_code == 403
    assert browser.post(page(model, "change", row.pk), {"status": "sent"}).status_code == 403
    assert browser.post(page(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    ticked = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    browser.post(page(model, "changelist"), ticked)
    assert type(row).objects.values().get(pk=row.pk) == before


def test_a_mails_page_tells_its_recipients_and_tries(browser, rows) -> None:
    text = browser.get(page("emaillog", "change", rows["emaillog"].pk)).content.decode()
    assert "refused@example.com" in text
    assert "5.1.1 No such user" in text
    assert "A failed mail" in text


def test_a_mails_content_is_not_shown(browser, queue_mail) -> None:
    log = queue_mail()
    EmailLog.objects.update(envelope='{"v": 1, "body": "the secret code is 4711"}')
    text = browser.get(page("emaillog", "change", log.pk)).content.decode()
    assert "4711" not in text


@pytest.mark.parametrize("term", ["id", "message_id", "address"])
def test_a_mail_is_found_by_its_id_its_message_id_and_its_recipient(
    browser, queue_mail, term
) -> None:
    wanted = queue_mail("wanted@example.com", subject="The wanted one")
    queue_mail("other@example.com", subject="Another one")
    terms = {"id": wanted.pk, "message_id": wanted.message_id, "address": "wanted@example.com"}
    text = browser.get(page("emaillog", "changelist"), {"q": terms[term]}).content.decode()
    assert "The wanted one" in text
    assert "Another one" not in text


def test_who_may_not_look_sees_nothing(site, rows) -> None:
    clerk = User.objects.create_user("clerk", is_staff=True)
    browser = Client()
    browser.force_login(clerk)
    assert browser.get(page("emaillog", "changelist")).status_code == 403
    clerk.user_permissions.add(Permission.objects.get(codename="view_emaillog"))
    assert browser.get(page("emaillog", "changelist")).status_code == 200
    assert browser.get(page("deliverygate", "changelist")).status_code == 403
