"""Gates in the admin: every queue and transport, and the buttons to pause, resume and probe."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.models import DeliveryGate, EmailTotal, SlowedDomain
from django_epica_mail.retry import Failure, Kind, Scope
from tests.integration.admin.pages import client_of, html_of, text_in, url

LIST, OPERATE = "deliverygate_changelist", "deliverygate_operate"


@pytest.fixture
def operator(site: None) -> Client:
    """Log in a user who may operate the gates, and needs a CSRF token to do so."""
    return client_of("view_deliverygate", "operate_emaillog", enforce_csrf_checks=True)


def press(client: Client, do: str, **fields: Any) -> Any:
    """Post what a button of the list posts."""
    client.get(url(LIST))
    token = client.cookies["csrftoken"].value
    return client.post(url(OPERATE), {"do": do, **fields, "csrfmiddlewaretoken": token})


def test_queues_and_transports_without_a_gate_are_listed(operator, queue_mail) -> None:
    queue_mail(queue="newsletters")
    text = text_in(html_of(operator, LIST))
    assert "Pause queue newsletters" in text
    assert "Pause transport smtp" in text
    assert not DeliveryGate.objects.exists()


def test_buttons_pause_and_resume_a_queue(operator, smtp, queue_mail, deliver) -> None:
    queue_mail()
    assert press(operator, "pause queue emails")["Location"] == url(LIST)
    assert deliver() == 0
    assert "Resume queue emails" in text_in(html_of(operator, LIST))
    press(operator, "resume queue emails")
    assert deliver() == 1
    logged = LogEntry.objects.order_by("pk").values_list("change_message", "object_repr")
    assert list(logged) == [
        ("Queue emails is paused: its mail waits.", "queue emails"),
        ("Queue emails is resumed; workers start with the next ring.", "queue emails"),
    ]


def test_a_transport_out_of_order_shows_why_and_until_when(operator, db) -> None:
    gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="Connection refused"), "default")
    text = text_in(html_of(operator, LIST))
    assert re.search(
        r"out of order since [\d:]+: Connection refused · One e-mail probes it at", text
    )
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
def test_an_unknown_or_impossible_action_is_refused(operator, do) -> None:
    assert press(operator, do).status_code == 404
    assert not DeliveryGate.objects.exists()


def test_a_transport_that_is_gone_is_paused_while_mail_waits_for_it(operator, queue_mail) -> None:
    mail = queue_mail(transport="gone")
    assert press(operator, "pause transport gone").status_code == 302
    assert DeliveryGate.objects.get(name="gone").paused
    DeliveryGate.objects.all().delete()
    mail.delete()
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    EmailTotal.objects.create(hour=now, queue="emails", transport="gone", event="sent", count=1)
    assert press(operator, "pause transport gone").status_code == 404
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
def test_a_button_redirects_only_within_the_site(operator, wanted, reached) -> None:
    page = press(operator, "pause transport smtp", next=wanted)
    assert page["Location"] == (reached or url(LIST))


def test_pausing_requires_permission_post_and_a_csrf_token(operator, queue_mail) -> None:
    queue_mail()
    viewer = client_of("view_deliverygate", enforce_csrf_checks=True)
    assert "Pause" not in text_in(html_of(viewer, LIST))
    fields = {"do": "pause queue emails"}
    operator.get(url(LIST))
    viewer.cookies["csrftoken"] = operator.cookies["csrftoken"].value
    token = {"csrfmiddlewaretoken": operator.cookies["csrftoken"].value}
    assert viewer.post(url(OPERATE), {**fields, **token}).status_code == 403
    assert operator.get(url(OPERATE), fields).status_code == 405
    assert operator.post(url(OPERATE), fields).status_code == 403
    assert not DeliveryGate.objects.exists()
    outbox.pause(queue="emails")
    assert "paused" in text_in(html_of(viewer, LIST))


def test_a_gate_of_an_unknown_scope_is_not_shown(operator) -> None:
    DeliveryGate.objects.create(scope="evil", name="emails", paused=True)
    html = html_of(operator, LIST)
    assert "evil" not in html
    assert "Pause queue emails" in text_in(html)


def slow_down(domain: str) -> None:
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 <b>too</b> fast")
    slowed_domains.complain("smtp", domain, failure, time.monotonic() - 9, "default")


def test_a_slowed_domain_is_shown_and_a_button_sets_it_free(operator, db) -> None:
    assert "Slowed domains" not in text_in(html_of(operator, LIST))
    slow_down("gmail.example")
    slow_down("other.example")
    page = html_of(operator, LIST)
    assert "Full speed gmail.example" in text_in(page)
    assert "&lt;b&gt;too&lt;/b&gt; fast" in page
    assert press(operator, "resume domain gmail.example")["Location"] == url(LIST)
    assert [it.domain for it in SlowedDomain.objects.all()] == ["other.example"]
    entry = LogEntry.objects.get()
    assert entry.change_message == "Mail to gmail.example goes at full speed again."
    assert entry.object_repr == "smtp gmail.example"
    assert press(operator, "resume domain gmail.example").status_code == 404
    assert press(operator, "pause domain other.example").status_code == 404


def test_who_may_only_look_has_no_button_for_a_slowed_domain(site, db) -> None:
    slow_down("gmail.example")
    reader = client_of("view_deliverygate")
    assert "gmail.example" in html_of(reader, LIST)
    assert "Full speed" not in html_of(reader, LIST)
    assert reader.post(url(OPERATE), {"do": "resume domain gmail.example"}).status_code == 403
    assert SlowedDomain.objects.exists()


def test_a_pause_says_by_whom_and_why_and_can_be_undone(operator) -> None:
    page = operator.get(url(LIST))
    press(operator, "pause queue emails", note="Bounces are checked")
    by = page.context["user"].get_username()
    assert re.search(
        rf"paused by {by} since [\d:]+: Bounces are checked", text_in(html_of(operator, LIST))
    )
    press(operator, "resume queue emails")
    assert 'value="restore queue emails">Undo' in html_of(operator, LIST)
    press(operator, "restore queue emails")
    assert "Bounces are checked" in html_of(operator, LIST)
    assert DeliveryGate.objects.get().paused


def test_whoever_is_named_by_a_number_can_pause(operator, monkeypatch) -> None:
    monkeypatch.setattr(User, "get_username", lambda self: 905551112233)
    assert press(operator, "pause queue emails").status_code == 302
    assert DeliveryGate.objects.get().paused_by == "905551112233"


def test_the_outcome_of_a_probe_is_shown(operator, db) -> None:
    down = Failure(kind=Kind.OUTAGE, reply="Connection refused")
    gates.trip("smtp", down, "default")
    gates.trip("smtp", down, "default", is_probe=True)
    assert re.search(r"The probe of [\d:]+ failed", text_in(html_of(operator, LIST)))
    gates.reset("smtp", "default")
    assert re.search(r"open The probe of [\d:]+ succeeded", text_in(html_of(operator, LIST)))


def test_a_viewer_of_gates_is_told_no_recipient(site, db) -> None:
    DeliveryGate.objects.create(
        scope="transport", name="smtp", outages=1, reason="<ann@example.com> 4.3.2 refused"
    )
    html = html_of(client_of("view_deliverygate"), "deliverygate_changelist")
    assert "4.3.2 refused" in html
    assert "ann@" not in html


def test_a_viewer_of_slowed_domains_is_told_no_recipient(site, db) -> None:
    slow_down("slow.example")
    SlowedDomain.objects.update(reply="451 4.7.650 ann@slow.example too many")
    html = html_of(client_of("view_deliverygate"), "deliverygate_changelist")
    assert "4.7.650" in html
    assert "ann@" not in html


@pytest.mark.parametrize("do", ["resume domain \0", "pause queue \0x", "resume\0 domain x"])
def test_a_nul_in_a_form_is_no_error(operator, db, do) -> None:
    operator.raise_request_exception = False
    assert press(operator, do).status_code == 404


@pytest.mark.parametrize("domain", ["UPPER.example", "ü.example", "<b>%s{}\"'"])
def test_the_button_of_a_damaged_domain_sets_it_free(operator, db, domain) -> None:
    slow_down("slow.example")
    SlowedDomain.objects.update(domain=domain)
    assert press(operator, f"resume domain {domain}")["Location"] == url(LIST)
    assert not SlowedDomain.objects.exists()
