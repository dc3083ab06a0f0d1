"""Recipients are removed from a stored message, and nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anymail.message import AnymailMessage
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage

from django_epica_mail import messages
from django_epica_mail.messages.codec import without_recipients
from django_epica_mail.privacy.person import Person
from tests import corpus

ANN = Person("ann@example.com")
KEY = Fernet.generate_key().decode()


def reload(message: EmailMessage, left_out: Person = ANN) -> EmailMessage:
    stored = messages.dump(message)
    blobs = {blob.digest: blob.content for blob in stored.blobs}
    return messages.load(without_recipients(stored.envelope, left_out.is_named), blobs)


@pytest.mark.parametrize("keys", [[], [KEY]])
def test_a_recipient_is_removed_from_every_list(settings: Any, keys) -> None:
    settings.EPICA_MAIL = {"ENCRYPTION_KEYS": keys}
    message = EmailMessage(
        "Subject", "Dear ann@example.com", "shop@example.com",
        ["bob@example.com", "Ann <ANN@example.com>"], cc=("ann@example.com",),
        bcc=["cy@example.com"], headers={"X-A": "1"}, reply_to=["r@example.com"],
    )  # fmt: skip
    message.attach("a.bin", b"\0content", "application/zip")
    back = reload(message)
    assert (back.to, list(back.cc), back.bcc) == (["bob@example.com"], [], ["cy@example.com"])
    assert back.recipients() == ["bob@example.com", "cy@example.com"]
    assert (back.subject, back.body, back.from_email, back.reply_to, back.extra_headers) == (
        message.subject, message.body, message.from_email, message.reply_to, {"X-A": "1"},
    )  # fmt: skip
    assert back.attachments[0][1] == b"\0content"


def test_an_encrypted_message_stays_encrypted(settings: Any) -> None:
    settings.EPICA_MAIL = {"ENCRYPTION_KEYS": [KEY]}
    stored = messages.dump(EmailMessage("S", "secret", None, ["bob@example.com"]))
    assert "secret" not in without_recipients(stored.envelope, ANN.is_named)


def test_computed_recipients_are_removed_too() -> None:
    message = corpus.Archived("S", "B", to=["to@example.com", "ann@example.com"])
    before = message.recipients()
    assert "ann@example.com" in before
    assert reload(message).recipients() == [it for it in before if it != "ann@example.com"]


@pytest.mark.parametrize("kind", [set, tuple, iter, dict.fromkeys])
@pytest.mark.parametrize("base", [EmailMessage, corpus.Signed])
def test_computed_recipients_keep_their_order_in_every_process(kind: Any, base: Any) -> None:
    class Computed(base):  # type: ignore[misc]
        def recipients(self) -> Any:
            return kind([f"{letter}@example.com" for letter in "abcdefgh"])

    message = Computed("S", "B", to=["to@example.com"])
    stored = messages.dump(message)
    assert json.loads(stored.envelope)["recipients"] == list(message.recipients())
    blobs = {blob.digest: blob.content for blob in stored.blobs}
    assert messages.load(stored.envelope, blobs).recipients() == list(message.recipients())


def test_a_message_stored_as_bytes_loses_the_recipient_too() -> None:
    message = corpus.Signed("S", "Body", to=["bob@example.com", "ann@example.com"])
    back = reload(message)
    assert back.recipients() == ["bob@example.com"]
    assert back.to == ["bob@example.com"]


def test_the_recipients_merge_data_is_removed_too() -> None:
    message = AnymailMessage("S", "B", None, ["bob@example.com", "ann@example.com"])
    rows = {"bob@example.com": {"name": "Bob"}, "Ann@example.com": {"name": "Ann"}}
    message.merge_data = message.merge_metadata = rows
    message.merge_headers = rows
    back: Any = reload(message)
    for name in ("merge_data", "merge_metadata", "merge_headers"):
        assert getattr(back, name) == {"bob@example.com": {"name": "Bob"}}


def test_without_a_matching_recipient_nothing_changes() -> None:
    stored = messages.dump(corpus.newsletter())
    unchanged = without_recipients(stored.envelope, Person("nobody@example.com").is_named)
    assert json.loads(unchanged) == json.loads(stored.envelope)
