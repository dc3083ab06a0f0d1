"""Encryption at rest: what is stored, and which keys decrypt it."""

from __future__ import annotations

import base64
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

ROW, OTHER = "envelope/1", "envelope/2"
OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


@pytest.fixture
def keys(settings: Any) -> Any:
    """Set the keys, for example ``keys(NEW, OLD)``."""

    def use(*keys: str) -> None:
        settings.EPICA_MAIL = {"ENCRYPTION_KEYS": list(keys)}

    return use


@pytest.mark.parametrize("content", [b"", b"\x80raw", b"fernet:", b"\0" * 1000])
def test_without_keys_content_is_stored_unchanged(content) -> None:
    assert encryption.seal("text", ROW) == "text"
    assert encryption.seal_bytes(content, ROW) is content
    assert encryption.unseal("text") == "text"
    assert encryption.unseal_bytes(content, len(content), ROW) is content


@pytest.mark.parametrize("content", [b"", b"\x80raw", b"fernet:", b"\0" * 1000])
def test_sealed_content_is_unreadable_until_unsealed(keys, content) -> None:
    keys(NEW)
    sealed = encryption.seal_bytes(content, ROW)
    assert len(sealed) > len(content)
    assert not content or content not in sealed
    assert encryption.unseal_bytes(sealed, len(content), ROW) == content
    text = encryption.seal("secret body", ROW)
    assert "secret" not in text
    assert encryption.unseal(text) == "secret body"


def test_the_same_text_is_encrypted_differently_each_time(keys) -> None:
    keys(NEW)
    assert encryption.seal("text", ROW) != encryption.seal("text", ROW)


def test_content_stored_without_keys_stays_readable(keys) -> None:
    keys(NEW)
    assert encryption.unseal("{}") == "{}"
    assert encryption.unseal_bytes(b"\x80 not sealed", 12, ROW) == b"\x80 not sealed"


def test_every_key_decrypts_and_the_first_one_encrypts(keys) -> None:
    keys(OLD)
    text, content = encryption.seal("text", ROW), encryption.seal_bytes(b"bytes", ROW)
    keys(NEW, OLD)
    assert encryption.unseal(text) == "text"
    assert encryption.unseal_bytes(content, 5, ROW) == b"bytes"
    text, content = encryption.renew(text, ROW), encryption.renew_bytes(content, 5, ROW)
    assert encryption.renew(text, ROW) is text, "already encrypted with the first key"
    assert encryption.renew_bytes(content, 5, ROW) is content
    keys(NEW)
    assert encryption.unseal(text) == "text"
    assert encryption.unseal_bytes(content, 5, ROW) == b"bytes"


@pytest.mark.parametrize("left", [(), (NEW,)])
def test_without_its_key_content_is_refused_with_the_remedy(keys, left) -> None:
    keys(OLD)
    text, content = encryption.seal("text", ROW), encryption.seal_bytes(b"bytes", ROW)
    keys(*left)
    with pytest.raises(MissingKey, match="ENCRYPTION_KEYS") as raised:
        encryption.unseal(text)
    assert OLD not in str(raised.value)
    with pytest.raises(MissingKey):
        encryption.unseal_bytes(content, 5, ROW)


def test_tampered_content_is_refused(keys) -> None:
    keys(NEW)
    text = encryption.seal("text", ROW)
    at = len(text) // 2
    with pytest.raises(MissingKey):
        encryption.unseal(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])


def test_a_stored_message_is_encrypted_completely(keys) -> None:
    keys(NEW)
    message = EmailMessage("Subject", "Body", "from@example.com", ["to@example.com"])
    envelope = encryption.seal(messages.dump(message).envelope, ROW)
    for secret in ("Subject", "Body", "example.com"):
        assert secret not in envelope
    assert messages.load(envelope, {}, ROW).body == "Body"
    keys()
    with pytest.raises(MissingKey):
        messages.load(envelope, {}, ROW)


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
        encryption.seal("text", ROW)


def test_content_moved_to_another_row_is_refused(keys) -> None:
    keys(NEW)
    text, content = encryption.seal("text", ROW), encryption.seal_bytes(b"bytes", ROW)
    relabelled = text.replace(ROW, OTHER)
    for moved in (text, relabelled):
        with pytest.raises(MissingKey):
            encryption.unseal(moved, OTHER)
        with pytest.raises(MissingKey):
            encryption.renew(moved, OTHER)
    with pytest.raises(MissingKey):
        encryption.unseal(relabelled)
    with pytest.raises(MissingKey):
        encryption.unseal_bytes(content, 5, OTHER)
    as_text = (
        "fernet:envelope/1:"
        + base64.urlsafe_b64encode(encryption.seal_bytes(b"{}", "attachment/1")).decode()
    )
    with pytest.raises(MissingKey):
        encryption.unseal(as_text, ROW)


def test_content_of_earlier_versions_is_read_and_bound_when_renewed(keys) -> None:
    keys(NEW)
    earlier = "fernet:" + Fernet(NEW).encrypt(b"text").decode()
    raw = base64.urlsafe_b64decode(Fernet(NEW).encrypt(b"bytes"))
    assert encryption.unseal(earlier, ROW) == "text"
    assert encryption.unseal_bytes(raw, 5, ROW) == b"bytes"
    bound = encryption.renew(earlier, ROW)
    assert bound.startswith(f"fernet:{ROW}:")
    assert encryption.unseal(bound, ROW) == "text"
    assert encryption.unseal_bytes(encryption.renew_bytes(raw, 5, ROW), 5, ROW) == b"bytes"


def test_when_encryption_is_required_nothing_else_is_read(settings) -> None:
    settings.EPICA_MAIL = {"ENCRYPTION_KEYS": [NEW], "ENCRYPTION_REQUIRED": True}
    earlier = "fernet:" + Fernet(NEW).encrypt(b"text").decode()
    raw = base64.urlsafe_b64decode(Fernet(NEW).encrypt(b"bytes"))
    for stored in ("{}", "", earlier):
        for read in (encryption.unseal, encryption.renew):
            with pytest.raises(MissingKey, match="ENCRYPTION_REQUIRED"):
                read(stored, ROW)
    for content, size in ((b"plain", 5), (b"", 0), (raw, 5), (raw, len(raw))):
        with pytest.raises(MissingKey):
            encryption.unseal_bytes(content, size, ROW)
        with pytest.raises(MissingKey):
            encryption.renew_bytes(content, size, ROW)
    assert encryption.unseal(encryption.seal("text", ROW), ROW) == "text"


def test_encryption_is_not_required_without_keys() -> None:
    with pytest.raises(ImproperlyConfigured, match="ENCRYPTION_KEYS"):
        conf.parse({"ENCRYPTION_REQUIRED": True})


def test_the_settings_as_text_show_no_key() -> None:
    assert NEW not in repr(conf.parse({"ENCRYPTION_KEYS": [NEW]}))
