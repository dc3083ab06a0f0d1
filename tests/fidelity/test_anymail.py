"""Test that every attribute of an anymail message reaches the provider's backend."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import django
import pytest
from anymail.backends.test import EmailBackend as AnymailBackend
from anymail.message import AnymailMessage
from django.core import mail

from django_epica_mail import outbox
from tests import corpus

BACKEND = "anymail.backends.test.EmailBackend"

ATTRIBUTES: dict[str, Any] = {
    "envelope_sender": "bounces@example.com",
    "metadata": {"order": "7", "count": 3},
    "send_at": datetime(2027, 1, 2, 3, 4, tzinfo=timezone.utc),
    "tags": ["order", "test"],
    "track_clicks": True,
    "track_opens": False,
    "template_id": "tpl-7",
    "merge_data": {"to@example.com": {"name": "Ayşe"}, "cc@example.com": {"name": "Bob"}},
    "merge_global_data": {"site": "Shop"},
    "merge_headers": {"to@example.com": {"X-Row": "1"}},
    "merge_metadata": {"to@example.com": {"row": 1}},
    "esp_extra": {"ip_pool": "bulk", "nested": {"list": [1, 2.5, None, True]}},
}


@pytest.fixture
def anymail(settings: Any, epica_mail: Callable[..., None], db: None) -> None:
    """Deliver with anymail's own test backend."""
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"provider": {"BACKEND": BACKEND}}
        epica_mail(DEFAULT_TRANSPORT="provider")
    else:
        epica_mail(TRANSPORTS={"provider": {"BACKEND": BACKEND}})
    epica_mail(REAL_TRANSPORTS_IN_TESTS=True)


def sent(message: AnymailMessage) -> dict[str, Any]:
    """Return the parameters that anymail's backend would send to the provider's API."""
    options = {"alias": "provider"} if django.VERSION >= (6, 1) else {}
    backend = AnymailBackend(**options)
    backend.send_messages([message])
    return comparable(message.anymail_test_params)


def comparable(params: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if hasattr(value, "b64content"):
            return [value.name, value.mimetype, value.content, value.inline, value.content_id]
        return value if isinstance(value, (int, float, type(None))) else str(value)

    headers = dict(params["extra_headers"].items())
    headers.pop("Message-ID", None)  # the queue sets one, so that every attempt has the same
    metadata = dict(params.get("metadata", {}))
    metadata.pop("epica_mail_id", None)  # which ties the provider's events to the row
    changed = {**params, "extra_headers": headers, "metadata": metadata}
    return {key: plain(value) for key, value in changed.items()}


def message(**attributes: Any) -> AnymailMessage:
    made = AnymailMessage(
        "Subject", "Text", "from@example.com", ["to@example.com"], cc=["cc@example.com"],
        headers={"X-A": "1"},
    )  # fmt: skip
    made.attach_alternative("<p>HTML</p>", "text/html")
    made.attach("a.txt", "content", "text/plain")
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def through_the_queue(anymail: None, deliver: Callable[..., int], monkeypatch: Any) -> Any:
    """Send a message through the queue, and return the parameters of anymail's backend."""
    made: list[dict[str, Any]] = []
    post = AnymailBackend.post_to_esp

    def record(self: Any, payload: Any, queued: Any) -> Any:
        response = post(self, payload, queued)
        made.append(comparable(queued.anymail_test_params))
        return response

    def send(queued: AnymailMessage) -> dict[str, Any]:
        outbox.enqueue(queued)
        monkeypatch.setattr(AnymailBackend, "post_to_esp", record)
        assert deliver() == 1
        (params,) = made
        return params

    return send


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_attribute_arrives(name: str, through_the_queue: Any) -> None:
    value = ATTRIBUTES[name]
    expected = sent(message(**{name: value}))
    assert expected != sent(message()), "the attribute changes nothing, so the test proves nothing"
    assert through_the_queue(message(**{name: value})) == expected


def test_all_attributes_arrive_together(through_the_queue: Any) -> None:
    expected = sent(message(**ATTRIBUTES))
    assert through_the_queue(message(**ATTRIBUTES)) == expected


def test_an_inline_image_arrives_with_its_content_id(through_the_queue: Any) -> None:
    def with_image() -> AnymailMessage:
        made = message()
        made.attach_inline_image(corpus.PNG, "logo.png", idstring="logo", domain="example.com")
        return made

    first, second = with_image(), with_image()
    # attach_inline_image makes a new Content-ID each time; everything else must be equal.
    expected, arrived = sent(first), through_the_queue(second)
    assert len(arrived["attachments"]) == len(expected["attachments"]) == 2
    assert [image[:-1] for image in arrived["attachments"]] == [
        image[:-1] for image in expected["attachments"]
    ]
    assert arrived["attachments"][1][3] is True


def test_every_attribute_of_anymail_is_tested() -> None:
    known = {
        name
        for name in vars(AnymailMessage("S", "B"))
        if name not in vars(mail.EmailMultiAlternatives("S", "B"))
    }
    assert known - {"anymail_status"} <= set(ATTRIBUTES)
