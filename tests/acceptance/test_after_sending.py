"""Test mail that a worker sends to a provider, and the provider's webhooks about it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from devservers.provider import Provider
from tests.acceptance.databases import Databases
from tests.acceptance.site import Site


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def site(databases: Databases, tmp_path: Path, provider: Provider) -> Iterator[Site]:
    """Open the shop with a worker, and with the provider as its transport."""
    settings = "tests.acceptance.provider_site"
    env = {"DJANGO_SETTINGS_MODULE": settings, "SHOP_AMAZON_URL": provider.amazon_url}
    site = Site(databases, "postgresql", tmp_path, {}, env)
    try:
        site.start_worker()
        yield site
    finally:
        site.close()


def send(address: str, category: str) -> str:
    from django_epica_mail.tasks import send_email_async

    result = send_email_async("Subject", "Text", None, [address], "<p>x</p>", category=category)
    return str(result.id)


def post_event(event: str, message_id: str, email_id: str, to: str) -> int:
    """Post an event of Amazon SES about a mail as SNS does; return the response's status."""
    from django.test import Client

    details: dict[str, Any] = {
        "Delivery": {"recipients": [to], "smtpResponse": "250 OK"},
        "Bounce": {
            "bounceType": "Permanent",
            "bounceSubType": "General",
            "bouncedRecipients": [{"emailAddress": to, "diagnosticCode": "smtp; 550 5.1.1"}],
        },
    }
    header = {"name": "X-Metadata", "value": json.dumps({"epica_mail_id": email_id})}
    mail = {"messageId": message_id, "destination": [to], "headers": [header]}
    notice_id = f"{event}-{message_id}"
    body = {
        "Type": "Notification",
        "MessageId": notice_id,
        "Message": json.dumps({"eventType": event, "mail": mail, event.lower(): details[event]}),
        "Timestamp": "2026-10-01T12:00:01.000Z",
    }
    headers = {
        "Authorization": "Basic " + base64.b64encode(b"user:secret").decode(),
        "X-Amz-Sns-Message-Type": "Notification",
        "X-Amz-Sns-Message-Id": notice_id,
    }
    response = Client(headers=headers).post(
        "/anymail/amazon_ses/tracking/", json.dumps(body), content_type="application/json"
    )
    return response.status_code


def unsubscribe(page: str) -> int:
    """Post to a page as a mail client does; return the response's status."""
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    return client.post(page, {"List-Unsubscribe": "One-Click"}, secure=True).status_code


def test_a_reported_bounce_suppresses_the_address(site, provider) -> None:
    first = site.call(send, "gone@example.com", "order")
    site.wait_for(sent=1)
    (taken,) = provider.taken
    assert taken.metadata["epica_mail_id"] == first
    known = site.fetch("SELECT provider_id FROM epica_mail_deliveryattempt")
    assert known == [(taken.id,)]
    for _ in range(2):
        assert site.call(post_event, "Bounce", taken.id, first, "gone@example.com") == 200
    assert site.fetch("SELECT kind, address, reason FROM epica_mail_emailevent") == [
        ("bounced", "gone@example.com", "permanent")
    ]
    site.call(send, "gone@example.com", "order")
    site.wait_for(sent=1, suppressed=1)
    assert len(provider.taken) == 1


def test_a_webhook_settles_a_mail_whose_response_was_lost(site, provider) -> None:
    provider.lose_answer()
    mail = site.call(send, "to@example.com", "order")
    site.wait_for(unknown=1)
    (taken,) = provider.taken
    assert site.call(post_event, "Delivery", taken.id, mail, "to@example.com") == 200
    site.wait_for(sent=1)
    assert provider.requests == 1


def test_unsubscribing_stops_newsletters_but_not_orders(site, provider) -> None:
    site.call(send, "to@example.com", "news")
    site.wait_for(sent=1)
    wire = base64.b64decode(provider.taken[0].request["Content"]["Raw"]["Data"])
    message = message_from_bytes(wire, policy=policy.default)
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    header = str(message["List-Unsubscribe"]).strip()  # Django 5.2 folds before the long URL
    page = re.fullmatch(r"<https://shop\.example\.com(/\S+)>", header)
    assert page is not None
    assert site.call(unsubscribe, page[1]) == 200
    site.call(send, "to@example.com", "news")
    site.call(send, "to@example.com", "order")
    site.wait_for(sent=2, suppressed=1)
    assert len(provider.taken) == 2
