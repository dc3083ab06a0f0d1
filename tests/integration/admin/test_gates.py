"""Gates in the admin: every queue and transport, and the buttons that hold and let go."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.delivery import gates
from django_epica_mail.models import DeliveryGate
from django_epica_mail.retry import Failure, Kind

LIST = "admin:epica_mail_deliverygate_changelist"
OPERATE = "admin:epica_mail_deliverygate_operate"


def client_of(*permissions: str) -> Client:
    user = User.objects.create_user("-".join(permissions) or "plain", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    return client


@pytest.fixture
def operator(site: None) -> Client:
    return client_of("view_deliverygate", "operate_emaillog")


def press(client: Client, do: str, **fields: Any) -> Any:
    client.get(reverse(LIST))
    token = client.cookies["csrftoken"].value
    return client.post(reverse(OPERATE), {"do": do, **fields, "csrfmiddlewaretoken": token})


def text_of(client: Client) -> str:
    page = client.get(reverse(LIST))
    assert page.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.content.decode()))


def test_queues_and_transports_are_listed_before_anything_held_them_back(
    operator, queue_mail
) -> None:
    queue_mail(queue="newsletters")
    text = text_of(operator)
    assert "Pause queue newsletters" in text
    assert "Pause transport smtp" in text
    assert not DeliveryGate.objects.exists()


def test_a_button_pauses_and_another_lets_go(operator, smtp, queue_mail, deliver) -> None:
    queue_mail()
    assert press(operator, "pause queue emails")["Location"] == reverse(LIST)
    assert deliver() == 0
    assert "Resume queue emails" in text_of(operator)
    press(operator, "resume queue emails")
    assert deliver() == 1
    logged = LogEntry.objects.order_by("pk").values_list("change_message", "object_repr")
    assert list(logged) == [
        ("Queue emails is paused: its mail waits.", "queue emails"),
        ("Queue emails goes on; workers begin with the next ring.", "queue emails"),
    ]


def test_a_transport_that_is_out_of_order_says_why_and_until_when(operator, db) -> None:
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="Connection refused"), "default")
    text = text_of(operator)
    assert "out of order One mail tries it at" in text
    assert "Connection refused" in text
    assert "Try now transport smtp" in text
    assert press(operator, "probe transport smtp").status_code == 302
    row = DeliveryGate.objects.get()
    assert row.open_until is None or row.open_until <= timezone.now()


@pytest.mark.parametrize(
    "do",
    [
        *("", "pause", "pause queue", "pause queue nonsense", "pause planet emails"),
        *("delete queue emails", "probe queue emails", "probe transport smtp"),
    ],
)
def test_what_there_is_not_is_not_done(operator, do) -> None:
    assert press(operator, do).status_code == 404
    assert not DeliveryGate.objects.exists()


@pytest.mark.parametrize(
    ("wanted", "reached"),
    [
        ("/admin/epica_mail/", "/admin/epica_mail/"),
        ("https://evil.example.com/", None),
        ("//evil.example.com", None),
        ("javascript:alert(1)", None),
    ],
)
def test_a_button_leads_back_to_this_site_only(operator, wanted, reached) -> None:
    page = press(operator, "pause transport smtp", next=wanted)
    assert page["Location"] == (reached or reverse(LIST))


def test_pausing_is_neither_for_viewers_nor_by_get_nor_without_djangos_token(
    operator, queue_mail
) -> None:
    queue_mail()
    viewer = client_of("view_deliverygate")
    assert "Pause" not in text_of(viewer)
    fields = {"do": "pause queue emails"}
    operator.get(reverse(LIST))
    viewer.cookies["csrftoken"] = operator.cookies["csrftoken"].value
    token = {"csrfmiddlewaretoken": operator.cookies["csrftoken"].value}
    assert viewer.post(reverse(OPERATE), {**fields, **token}).status_code == 403
    assert operator.get(reverse(OPERATE), fields).status_code == 405
    assert operator.post(reverse(OPERATE), fields).status_code == 403
    assert not DeliveryGate.objects.exists()
    outbox.pause(queue="emails")
    assert "paused" in text_of(viewer)
