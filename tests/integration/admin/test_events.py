"""Delivery events in the admin: listed, found, linked to their e-mail, and never changed."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from django_epica_mail.models import EmailEvent, EmailLog
from tests.integration.admin.pages import client_of, html_of, url

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("site")]


def happen(kind: str = "opened", **fields: Any) -> EmailEvent:
    """Store an event."""
    now = timezone.now()
    key = f"{kind} {EmailEvent.objects.count()}"
    return EmailEvent.objects.create(kind=kind, key=key, at=now, created_at=now, **fields)


def test_events_are_listed_with_a_link_to_their_mail(superuser, queue_mail) -> None:
    log = queue_mail()
    happen("bounced", email=log, address="to@example.com", reason="permanent")
    happen("delivered", address="<b>@example.com")
    html = html_of(superuser, "emailevent_changelist")
    assert url("emaillog_change", log.pk) in html
    assert "permanent" in html
    assert "&lt;b&gt;@example.com" in html


@pytest.mark.parametrize("by", ["id", "address", "provider"])
def test_events_are_found_by_mail_address_and_provider_id(superuser, queue_mail, by) -> None:
    log = queue_mail()
    happen(email=log, address="a@example.com", provider_id="p-1", reason="the one")
    happen(address="b@example.com", provider_id="p-2", reason="another")
    term = {"id": str(log.pk), "address": "A@example.com", "provider": "p-1"}[by]
    html = html_of(superuser, "emailevent_changelist", q=term)
    assert "the one" in html
    assert "another" not in html


def test_even_a_superuser_cannot_add_change_or_delete_events(superuser) -> None:
    event = happen()
    assert superuser.get(url("emailevent_change", event.pk)).status_code == 200
    assert superuser.get(url("emailevent_add")).status_code == 403
    assert superuser.post(url("emailevent_change", event.pk), {"kind": "x"}).status_code == 403
    assert superuser.post(url("emailevent_delete", event.pk), {"post": "yes"}).status_code == 403
    assert EmailEvent.objects.get().kind == "opened"


def test_every_page_requires_permission() -> None:
    client, pk = client_of(), happen(address="gone@example.com").pk
    for view, *args in (("changelist",), ("change", pk), ("delete", pk), ("add",), ("history", pk)):
        assert client.get(url(f"emailevent_{view}", *args)).status_code == 403
    export = {"action": "export", "_selected_action": [str(pk)]}
    assert client.post(url("emailevent_changelist"), export).status_code == 403


def test_the_number_of_queries_is_bounded(
    superuser, queue_mail, django_assert_max_num_queries
) -> None:
    for _ in range(30):
        happen(email=queue_mail())
    with django_assert_max_num_queries(5):
        html_of(superuser, "emailevent_changelist")


RESET = "https://shop.example.com/reset/the-token/"


def test_links_are_content_so_only_readers_of_content_see_them(site, queue_mail) -> None:
    log = queue_mail()
    event = happen("clicked", email=log, url=RESET)
    viewer = client_of("view_emaillog", "view_emailevent")
    reader = client_of("view_emaillog", "view_emailevent", "view_content")
    for page in (("emailevent_change", event.pk), ("emaillog_change", log.pk)):
        assert "the-token" not in html_of(viewer, *page)
        assert "the-token" in html_of(reader, *page)
    for field in ("url", "url__contains", "url__startswith", "key", "key__startswith"):
        answer = viewer.get(url("emailevent_changelist"), {field: RESET})
        assert answer.status_code == 400 or answer.headers.get("Location", "").endswith("?e=1")


def test_links_are_forgotten_with_the_content(queue_mail) -> None:
    log = queue_mail()
    event = happen("clicked", email=log, url=RESET)
    EmailLog.objects.forget_content([log.pk])
    event.refresh_from_db()
    assert event.url == ""
