"""Times for people, in one 24-hour format."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from datetime import timezone as tz
from typing import Any

import pytest
import time_machine
from django.utils import timezone, translation

from django_epica_mail.admin import times
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailEvent, Suppression
from tests.integration.admin.pages import text_in, url

AT = datetime(2020, 11, 30, 17, 15, tzinfo=tz.utc)  # 20:15 in Istanbul


def test_a_time_of_today_has_no_day() -> None:
    with time_machine.travel(AT, tick=False):
        assert times.clock(AT) == "20:15"
        assert times.clock(AT.replace(month=10)) == "30 Oct 20:15"
        assert times.clock(AT.replace(year=2019)) == "30 Nov 2019 20:15"
    assert times.moment(AT) == "30 Nov 2020 20:15"


def test_the_zone_is_named_with_its_distance_from_utc() -> None:
    assert times.zone() == "Times are those of Europe/Istanbul (UTC+03:00)."


TWELVE_HOURS = re.compile(r"\d [ap]\.m\.|\bnoon\b|\bmidnight\b|\d:\d\d [AP]M")
ZONE = "Times are those of Europe/Istanbul"


@pytest.fixture
def pages(queue_mail: Any) -> dict[str, str]:
    """Store a row of each model with its times, and return the URLs of the pages with times."""
    mail = queue_mail(retry=[60, 300], send_at=timezone.now() + timedelta(days=400))
    at = {"at": AT, "created_at": AT}
    event = EmailEvent.objects.create(email=mail, key="k", kind="bounced", source="ses", **at)
    batch = EmailBatch.objects.create(total=1, created_at=AT, finished_at=AT)
    gate = DeliveryGate.objects.create(
        scope="queue", name="emails", last_sweep_at=AT, paused=True, paused_at=AT, paused_by="eve"
    )
    listed = Suppression.objects.create(
        address="a@example.com", digest="d", reason="manual", created_at=AT, expires_at=AT
    )
    return {
        "dashboard": url("emailtotal_changelist"),
        "mails": url("emaillog_changelist") + "?ended=2026-03-01T08:00:00Z/..",
        "mail": url("emaillog_change", mail.pk),
        "batches": url("emailbatch_changelist"),
        "batch": url("emailbatch_change", batch.pk),
        "events": url("emailevent_changelist"),
        "event": url("emailevent_change", event.pk),
        "suppressions": url("suppression_changelist"),
        "suppression": url("suppression_change", listed.pk),
        "gates": url("deliverygate_changelist"),
        "gate": url("deliverygate_change", gate.pk),
    }


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dashboard", "by eve since 30 Nov 2020 20:15"),
        ("mails", "1 Mar 2026 11:00 - …"),
        ("mail", "30 Nov 2020 20:15:00</time>"),
        ("batches", "30 Nov 2020 20:15</td>"),
        ("batch", "30 Nov 2020 20:15</td>"),
        ("events", "30 Nov 2020 20:15</a>"),
        ("event", "30 Nov 2020 20:15</div>"),
        ("suppressions", "30 Nov 2020 20:15</td>"),
        ("suppression", "30 Nov 2020 20:15</div>"),
        ("gates", "<td>30 Nov 2020 20:15</td>"),
        ("gate", "30 Nov 2020 20:15</div>"),
    ],
)
def test_each_page_has_one_format_and_names_the_zone_once(superuser, pages, name, shown) -> None:
    html = superuser.get(pages[name]).content.decode()
    assert shown in html
    assert not TWELVE_HOURS.search(text_in(html))
    assert html.count(ZONE) == 1


def test_the_months_and_numbers_are_in_the_readers_language(superuser, pages) -> None:
    EmailBatch.objects.update(total=12345, position=12345, accepted=12000)
    with translation.override("tr"):
        html = superuser.get(pages["batch"]).content.decode()
        listed = superuser.get(pages["batches"]).content.decode()
    assert "30 Kas 2020 20:15" in html
    assert "12.345/12.345" in html
    assert "12.000 (" in html
    assert '<td class="field-queued">12.000</td><td class="field-left_out">345</td>' in listed
