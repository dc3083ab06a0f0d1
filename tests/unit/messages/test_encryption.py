"""Encryption at rest: what is stored, and which keys decrypt it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from django_epica_mail import conf, messages
from django_epica_mail.exceptions import MissingExtra, MissingKey
from django_epica_mail.messages import encryption

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


@pytest.fixture
def keys(settings: Any) -> Any:
    """Set the keys, for example ``keys(NEW, OLD)``."""

    def use(*keys: str) -> None:
        settings.EPICA_MAIL = {"ENCRYPTION_KEYS": list(keys)}

    return use


@pytest.mark.parametrize("content", [b"", b"\x80raw", b"fernet:", b"\0" * 1000])
def test_without_keys_content_is_stored_unchanged(content) -> None:
    assert encryption.seal("text") == "text"
    assert encryption.seal_bytes(content) is content
    assert encryption.unseal("text") == "text"
    assert encryption.unseal_bytes(content, len(content)) is content


@pytest.mark.parametrize("content", [b"", b"\x80raw", b"fernet:", b"\0" * 1000])
def test_sealed_content_is_unreadable_until_unsealed(keys, content) -> None:
    keys(NEW)
    sealed = encryption.seal_bytes(content)
    assert len(sealed) > len(content)
    assert not content or content not in sealed
    assert encryption.unseal_bytes(sealed, len(content)) == content
    text = encryption.seal("secret body")
    assert "secret" not in text
    assert encryption.unseal(text) == "secret body"


def test_the_same_text_is_encrypted_differently_each_time(keys) -> None:
    keys(NEW)
    assert encryption.seal("text") != encryption.seal("text")


def test_content_stored_without_keys_stays_readable(keys) -> None:
    keys(NEW)
    assert encryption.unseal("{}") == "{}"
    assert encryption.unseal_bytes(b"\x80 not sealed", 12) == b"\x80 not sealed"


def test_every_key_decrypts_and_the_first_one_encrypts(keys) -> None:
    keys(OLD)
    text, content = encryption.seal("text"), encryption.seal_bytes(b"bytes")
    keys(NEW, OLD)
    assert encryption.unseal(text) == "text"
    assert encryption.unseal_bytes(content, 5) == b"bytes"
    text, content = encryption.renew(text), encryption.renew_bytes(content, 5)
    assert encryption.renew(text) is text, "already encrypted with the first key"
    assert encryption.renew_bytes(content, 5) is content
    keys(NEW)
    assert encryption.unseal(text) == "text"
    assert encryption.unseal_bytes(content, 5) == b"bytes"


@pytest.mark.parametrize("left", [(), (NEW,)])
def test_without_its_key_content_is_refused_with_the_remedy(keys, left) -> None:
    keys(OLD)
    text, content = encryption.seal("text"), encryption.seal_bytes(b"bytes")
    keys(*left)
    with pytest.raises(MissingKey, match="ENCRYPTION_KEYS") as raised:
        encryption.unseal(text)
    assert OLD not in str(raised.value)
    with pytest.raises(MissingKey):
        encryption.unseal_bytes(content, 5)


def test_tampered_content_is_refused(keys) -> None:
    keys(NEW)
    text = encryption.seal("text")
    at = len(text) // 2
    with pytest.raises(MissingKey):
        encryption.unseal(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])


def test_a_stored_message_is_encrypted_completely(keys) -> None:
    keys(NEW)
    message = EmailMessage("Subject", "Body", "from@example.com", ["to@example.com"])
    stored = messages.dump(message)
    for secret in ("Subject", "Body", "example.com"):
        assert secret not in stored.envelope
    assert messages.load(stored.envelope, {}).body == "Body"
    keys()
    with pytest.raises(MissingKey):
        messages.load(stored.envelope, {})


def test_without_keys_a_stored_message_is_plain_json() -> None:
    message = EmailMessage("Subject", "Body", "from@example.com", ["to@example.com"])
    assert json.loads(messages.dump(message).envelope)["v"] == 1


@pytest.mark.parametrize(
    "value",
    ["a key", 1, ["short"], [b"x" * 44], ["not base64, though it has 44 letters as it"], [None]],
)
def test_an_invalid_key_is_refused_without_revealing_it(value) -> None:
    with pytest.raises(ImproperlyConfigured, match="ENCRYPTION_KEYS") as raised:
        conf.parse({"ENCRYPTION_KEYS": value})
    assert str(value) not in str(raised.value)
    assert "not base64" not in str(raised.value)


def test_without_the_extra_the_error_names_it(keys, monkeypatch) -> None:
    keys(Fernet.generate_key().decode())
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    with pytest.raises(MissingExtra, match=r"django-epica-mail\[encryption\]"):
        encryption.seal("text")
