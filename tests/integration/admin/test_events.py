"""Suppressions and events in the admin."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_epica_mail import suppression
from django_epica_mail.models import EmailEvent, Suppression
from django_epica_mail.suppression import Reason

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("site")]
PAGES = ("suppression", "emailevent")


def page(model: str, view: str, *args: Any) -> str:
    return reverse(f"admin:epica_mail_{model}_{view}", args=args)


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def clerk(*permissions: str) -> Client:
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def happen(kind: str = "opened", **fields: Any) -> EmailEvent:
    now = timezone.now()
    key = f"{kind} {EmailEvent.objects.count()}"
    return EmailEvent.objects.create(kind=kind, key=key, at=now, created_at=now, **fields)


FORM = {"address": "Gone@Example.com", "scope": "", "reason": "manual", "note": "asked us to"}


def test_an_address_is_added_by_hand_and_that_is_logged(root) -> None:
    response = root.post(page("suppression", "add"), FORM)
    assert response.status_code == 302
    row = Suppression.objects.get()
    assert (row.address, row.reason, row.note) == ("gone@example.com", "manual", "asked us to")
    assert suppression.is_suppressed("gone@example.com")
    entry = LogEntry.objects.get()
    assert entry.is_addition()
    assert "gone" not in entry.object_repr.lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"address": "nobody"}, "Enter a valid email address"),
        ({"address": ""}, "This field is required"),
        ({"reason": "x"}, "Select a valid choice"),
        ({"scope": "a\tb"}, "must be a name of 1 to 64 printable characters"),
        ({}, "in the list for the same already"),
    ],
)
def test_what_is_no_new_entry_is_refused_with_a_reason(root, change, words) -> None:
    suppression.add("gone@example.com")
    response = root.post(page("suppression", "add"), {**FORM, **change})
    assert response.status_code == 200
    assert words in response.content.decode()
    assert Suppression.objects.count() == 1


def test_an_entry_is_lifted_by_deleting_it_and_that_is_logged(root) -> None:
    suppression.add("gone@example.com")
    row = Suppression.objects.get()
    assert root.post(page("suppression", "delete", row.pk), {"post": "yes"}).status_code == 302
    assert not suppression.is_suppressed("gone@example.com")
    assert LogEntry.objects.get().is_deletion()


def test_many_entries_are_lifted_at_once(root) -> None:
    for number in range(3):
        suppression.add(f"{number}@example.com")
    ids = [str(pk) for pk in Suppression.objects.values_list("pk", flat=True)[:2]]
    ticked = {"action": "delete_selected", "_selected_action": ids, "post": "yes"}
    response = root.post(page("suppression", "changelist"), ticked, follow=True)
    assert "2 addresses are sent to again" in response.content.decode()
    assert (Suppression.objects.count(), LogEntry.objects.count()) == (1, 2)


def test_an_entry_is_not_changed(root) -> None:
    suppression.add("gone@example.com", reason=Reason.BOUNCE)
    row = Suppression.objects.get()
    assert root.get(page("suppression", "change", row.pk)).status_code == 200
    assert root.post(page("suppression", "change", row.pk), FORM).status_code == 403
    assert Suppression.objects.get().reason == "bounce"


@pytest.mark.parametrize("term", ["gone@example.com", " Gone <GONE@example.com> "])
@pytest.mark.parametrize("erased", [False, True])
def test_an_entry_is_found_by_its_address_also_after_that_was_erased(root, term, erased) -> None:
    suppression.add("gone@example.com", note="the one")
    suppression.add("other@example.com", note="another")
    if erased:
        Suppression.objects.filter(note="the one").update(address="")
    text = root.get(page("suppression", "changelist"), {"q": term}).content.decode()
    assert "the one" in text
    assert "another" not in text
    assert ("(erased)" in text) is erased


def test_chosen_entries_are_exported(root) -> None:
    for number in range(3):
        suppression.add(f"{number}@example.com", note="=1+1")
    ids = [str(pk) for pk in Suppression.objects.order_by("pk").values_list("pk", flat=True)[:2]]
    response = root.post(
        page("suppression", "changelist"), {"action": "export", "_selected_action": ids}
    )
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    text = b"".join(response.streaming_content).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["address"] for row in rows] == ["0@example.com", "1@example.com"]
    assert {row["note"] for row in rows} == {"'=1+1"}


@pytest.mark.parametrize("model", PAGES)
def test_who_may_not_look_sees_nothing(model) -> None:
    suppression.add("gone@example.com")
    happen(address="gone@example.com")
    browser = clerk()
    pk = (Suppression if model == "suppression" else EmailEvent).objects.get().pk
    for view, *args in (("changelist",), ("change", pk), ("delete", pk), ("add",), ("history", pk)):
        assert browser.get(page(model, view, *args)).status_code == 403
    export = {"action": "export", "_selected_action": [str(pk)]}
    assert browser.post(page(model, "changelist"), export).status_code == 403


def test_who_may_only_look_neither_adds_nor_lifts() -> None:
    suppression.add("gone@example.com")
    row = Suppression.objects.get()
    browser = clerk("view_suppression")
    assert browser.get(page("suppression", "changelist")).status_code == 200
    assert browser.get(page("suppression", "change", row.pk)).status_code == 200
    assert browser.post(page("suppression", "add"), FORM).status_code == 403
    deletion = {"post": "yes"}
    assert browser.post(page("suppression", "delete", row.pk), deletion).status_code == 403
    ticked = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    browser.post(page("suppression", "changelist"), ticked)
    assert Suppression.objects.count() == 1


def test_a_form_from_another_site_changes_nothing() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    assert client.post(page("suppression", "add"), FORM).status_code == 403
    assert not Suppression.objects.exists()


def test_events_are_listed_with_a_link_to_their_mail(root, queue_mail) -> None:
    log = queue_mail()
    happen("bounced", email=log, address="to@example.com", reason="permanent")
    happen("delivered", address="<b>@example.com")
    text = root.get(page("emailevent", "changelist")).content.decode()
    assert page("emaillog", "change", log.pk) in text
    assert "permanent" in text
    assert "&lt;b&gt;@example.com" in text


@pytest.mark.parametrize("by", ["id", "address", "provider"])
def test_events_are_found_by_mail_address_and_the_providers_id(root, queue_mail, by) -> None:
    log = queue_mail()
    happen(email=log, address="a@example.com", provider_id="p-1", reason="the one")
    happen(address="b@example.com", provider_id="p-2", reason="another")
    term = {"id": str(log.pk), "address": "A@example.com", "provider": "p-1"}[by]
    text = root.get(page("emailevent", "changelist"), {"q": term}).content.decode()
    assert "the one" in text
    assert "another" not in text


def test_even_a_superuser_makes_changes_and_deletes_no_event(root) -> None:
    event = happen()
    assert root.get(page("emailevent", "change", event.pk)).status_code == 200
    assert root.get(page("emailevent", "add")).status_code == 403
    assert root.post(page("emailevent", "change", event.pk), {"kind": "x"}).status_code == 403
    assert root.post(page("emailevent", "delete", event.pk), {"post": "yes"}).status_code == 403
    assert EmailEvent.objects.get().kind == "opened"


@pytest.mark.parametrize("model", PAGES)
def test_a_list_costs_the_same_for_one_row_and_for_many(
    root, model, queue_mail, django_assert_max_num_queries
) -> None:
    for number in range(30):
        happen(email=queue_mail())
        suppression.add(f"{number}@example.com")
    with django_assert_max_num_queries(5):
        assert root.get(page(model, "changelist")).status_code == 200
