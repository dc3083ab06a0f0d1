"""The suppression list in the admin: adding, lifting, finding and exporting entries."""

from __future__ import annotations

import csv
import io
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from django_epica_mail import suppression
from django_epica_mail.models import Suppression
from django_epica_mail.suppression import Reason
from tests.integration.admin.pages import client_of, html_of, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("site")]

FORM = {"address": "Gone@Example.com", "scope": "", "reason": "manual", "note": "asked us to"}


def test_an_address_is_added_by_hand_and_logged(superuser) -> None:
    response = superuser.post(url("suppression_add"), FORM)
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
        ({}, "This address, scope and reason are already listed."),
    ],
)
def test_an_invalid_or_duplicate_entry_is_refused(superuser, change, words) -> None:
    suppression.add("gone@example.com")
    response = superuser.post(url("suppression_add"), {**FORM, **change})
    assert response.status_code == 200
    assert words in response.content.decode()
    assert Suppression.objects.count() == 1


def test_deleting_an_entry_lifts_it_and_is_logged(superuser) -> None:
    suppression.add("gone@example.com")
    row = Suppression.objects.get()
    assert superuser.post(url("suppression_delete", row.pk), {"post": "yes"}).status_code == 302
    assert not suppression.is_suppressed("gone@example.com")
    assert LogEntry.objects.get().is_deletion()


def test_several_entries_are_lifted_at_once(superuser) -> None:
    for number in range(3):
        suppression.add(f"{number}@example.com")
    ids = [str(pk) for pk in Suppression.objects.values_list("pk", flat=True)[:2]]
    ticked = {"action": "delete_selected", "_selected_action": ids, "post": "yes"}
    response = superuser.post(url("suppression_changelist"), ticked, follow=True)
    assert "2 addresses receive e-mail again" in response.content.decode()
    assert (Suppression.objects.count(), LogEntry.objects.count()) == (1, 2)


def test_an_entry_cannot_be_changed(superuser) -> None:
    suppression.add("gone@example.com", reason=Reason.BOUNCE)
    row = Suppression.objects.get()
    assert superuser.get(url("suppression_change", row.pk)).status_code == 200
    assert superuser.post(url("suppression_change", row.pk), FORM).status_code == 403
    assert Suppression.objects.get().reason == "bounce"


@pytest.mark.parametrize("term", ["gone@example.com", " Gone <GONE@example.com> "])
@pytest.mark.parametrize("erased", [False, True])
def test_an_entry_is_found_by_its_address_even_if_erased(superuser, term, erased) -> None:
    suppression.add("gone@example.com", note="the one")
    suppression.add("other@example.com", note="another")
    if erased:
        Suppression.objects.filter(note="the one").update(address="")
    html = html_of(superuser, "suppression_changelist", q=term)
    assert "the one" in html
    assert "another" not in html
    assert ("(erased)" in html) is erased


def test_chosen_entries_are_exported(superuser) -> None:
    for number in range(3):
        suppression.add(f"{number}@example.com", note="=1+1")
    ids = [str(pk) for pk in Suppression.objects.order_by("pk").values_list("pk", flat=True)[:2]]
    chosen = {"action": "export", "_selected_action": ids}
    response = superuser.post(url("suppression_changelist"), chosen)
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    text = b"".join(response.streaming_content).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["address"] for row in rows] == ["0@example.com", "1@example.com"]
    assert {row["note"] for row in rows} == {"'=1+1"}


def test_every_page_requires_permission() -> None:
    suppression.add("gone@example.com")
    client, pk = client_of(), Suppression.objects.get().pk
    for view, *args in (("changelist",), ("change", pk), ("delete", pk), ("add",), ("history", pk)):
        assert client.get(url(f"suppression_{view}", *args)).status_code == 403
    export = {"action": "export", "_selected_action": [str(pk)]}
    assert client.post(url("suppression_changelist"), export).status_code == 403


def test_a_viewer_can_neither_add_nor_lift_entries() -> None:
    suppression.add("gone@example.com")
    row = Suppression.objects.get()
    client = client_of("view_suppression")
    assert client.get(url("suppression_changelist")).status_code == 200
    assert client.get(url("suppression_change", row.pk)).status_code == 200
    assert client.post(url("suppression_add"), FORM).status_code == 403
    deletion = {"post": "yes"}
    assert client.post(url("suppression_delete", row.pk), deletion).status_code == 403
    ticked = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
    client.post(url("suppression_changelist"), ticked)
    assert Suppression.objects.count() == 1


def test_a_form_without_a_csrf_token_changes_nothing() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    assert client.post(url("suppression_add"), FORM).status_code == 403
    assert not Suppression.objects.exists()


def test_the_number_of_queries_is_bounded(superuser, django_assert_max_num_queries) -> None:
    for number in range(30):
        suppression.add(f"{number}@example.com")
    with django_assert_max_num_queries(5):
        html_of(superuser, "suppression_changelist")


def _added(client: Client, address: str) -> tuple[int, str]:
    """Add an address; return all that the answer says, without ids."""
    response = client.post(url("suppression_add"), {**FORM, "address": address}, follow=True)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|csrf\S+ value=\S+", "", response.content.decode())
    return response.status_code, text


def test_who_may_only_add_entries_does_not_learn_which_exist() -> None:
    suppression.add("gone@example.com", note="ours")
    answers = []
    for address in ("gone@example.com", "new@example.com"):
        User.objects.all().delete()
        client = client_of("add_suppression")
        answers.append(_added(client, address))
        page = LogEntry.objects.get().object_id
        answers.append([
            client.get(url(f"suppression_{view}", page)).status_code
            for view in ("history", "change", "delete")
        ])  # fmt: skip
        LogEntry.objects.all().delete()
    assert answers[:2] == answers[2:]
    assert suppression.is_suppressed("new@example.com")
    assert Suppression.objects.get(address="gone@example.com").note == "ours"


def test_who_may_only_add_entries_renews_an_expired_one() -> None:
    yesterday = timezone.now() - timedelta(days=1)
    suppression.add("gone@example.com", expires_at=yesterday)
    client_of("add_suppression").post(url("suppression_add"), FORM)
    assert suppression.is_suppressed("gone@example.com")


def test_a_time_that_no_page_can_show_is_refused(superuser) -> None:
    form = {**FORM, "expires_at_0": "9999-12-31", "expires_at_1": "23:59:59"}
    response = superuser.post(url("suppression_add"), form)
    assert "Leave it empty to suppress the address for good" in response.content.decode()
    assert not Suppression.objects.exists()
