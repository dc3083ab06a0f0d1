"""A message that builds its own MIME is sent as the bytes it built, by every backend."""

from __future__ import annotations

import email
import email.message
import email.policy
import io
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends import console, filebased, locmem, smtp

from devservers.smtp import SMTPServer
from django_epica_mail.exceptions import InvalidHeader
from django_epica_mail.messages import RawMessage, check, dump, load
from django_epica_mail.messages.raw import builds_itself
from tests import corpus

MODERN = django.VERSION >= (6, 0)
FIXED = {"Date": "Mon, 01 Jan 2001 00:00:00 -0000", "Message-ID": "<1@example.com>"}
FIELDS: dict[str, Any] = {
    "subject": "Şubat",
    "body": "Body ğ\n.\nFrom here\n",
    "from_email": "from@example.com",
    "to": ["To <to@example.com>"],
    "bcc": ["hidden@example.com"],
    "headers": FIXED,
}


class SignedForDjango52(EmailMessage):
    """Written before ``policy``: the SMTP backend cannot send it since Django 6.0."""

    def message(self) -> Any:  # type: ignore[override]
        mime = super().message()
        mime["X-Signature"] = "ş" if MODERN else "s"
        return mime


class PreBuilt(EmailMessage):
    """A mail whose MIME exists already and is not built by Django's classes."""

    def message(self, **kwargs: Any) -> Any:
        return email.message_from_bytes(b"Subject: built\nX-Odd:  kept \n\nBody\n", **kwargs)


class Legacy(EmailMessage):
    """A mail built with Python's legacy classes, on every Django."""

    def message(self) -> Any:  # type: ignore[override]
        mime = MIMEText(self.body, "plain", "utf-8")
        mime["Subject"] = self.subject
        return mime


class Hooked(EmailMultiAlternatives):
    """A mail that overrides the private build methods of Django 5.2 and of 6.0."""

    def _create_message(self, msg: Any) -> Any:
        msg.set_payload("encrypted\n")
        return msg

    def _add_bodies(self, msg: Any) -> None:
        msg.set_content("encrypted")


# Passed explicitly: Django must not read them from the settings.
PLAIN: Any = {"username": "", "password": "", "use_tls": False, "use_ssl": False, "timeout": 10}

ALL = [corpus.Signed, SignedForDjango52, PreBuilt, Legacy, Hooked]
# Those that this version of Django's own SMTP backend can send.
SENDABLE = [corpus.Signed, Hooked] if MODERN else [corpus.Signed, SignedForDjango52, Hooked]


def stored(cls: type[EmailMessage]) -> Any:
    form = dump(cls(**FIELDS))
    return load(form.envelope, {blob.digest: blob.content for blob in form.blobs})


@pytest.mark.parametrize("cls", ALL)
def test_it_is_recognised_and_stored_as_one_blob(cls: Any) -> None:
    message = cls(**FIELDS)
    assert builds_itself(message)
    (blob,) = dump(message).blobs
    assert blob.mimetype == "message/rfc822"
    assert b"\n" not in blob.content.replace(b"\r\n", b"")
    assert type(stored(cls)) is RawMessage


def test_a_message_with_a_replaced_method_is_recognised() -> None:
    message: Any = EmailMessage(**FIELDS)
    assert not builds_itself(message)
    message.message = lambda **_: email.message_from_string("Subject: replaced\n\nBody\n")
    assert b"Subject: replaced" in dump(message).blobs[0].content


def test_own_fields_and_recipients_do_not_count_as_building() -> None:
    assert not builds_itself(corpus.newsletter())
    assert not builds_itself(corpus.Archived())


@pytest.mark.parametrize("cls", SENDABLE)
def test_its_bytes_and_envelope_equal_those_sent_directly(cls: Any) -> None:
    assert corpus.wire(stored(cls)) == corpus.wire(cls(**FIELDS))


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (SignedForDjango52, b"\r\nX-Signature: "),
        (PreBuilt, b"Subject: built\r\nX-Odd: "),
        (Legacy, b"Subject: "),
    ],
)
def test_a_message_method_without_policy_works_on_every_django(cls: Any, expected: bytes) -> None:
    assert expected in corpus.wire_bytes(stored(cls))


@pytest.mark.parametrize("cls", ALL)
def test_it_is_sent_byte_for_byte_over_smtp(cls: Any) -> None:
    with SMTPServer() as server:
        backend = smtp.EmailBackend(alias="smtp", host="127.0.0.1", port=server.port, **PLAIN)
        assert backend.send_messages([stored(cls)]) == 1
        (received,) = server.wait_for(1)
    (blob,) = dump(cls(**FIELDS)).blobs
    assert received.content == blob.content
    assert list(received.recipients) == ["to@example.com", "hidden@example.com"]
    assert received.sender == "from@example.com"


@pytest.mark.parametrize("cls", ALL)
def test_the_locmem_backend_stores_the_same_bytes(cls: Any) -> None:
    mail.outbox = []
    locmem.EmailBackend(alias="memory").send_messages([stored(cls)])
    assert corpus.wire(mail.outbox[0]) == corpus.wire(stored(cls))
    assert mail.outbox[0].message()["Subject"] == stored(cls).message()["Subject"]


@pytest.mark.parametrize("cls", SENDABLE)
def test_the_console_and_file_backends_write_the_same_bytes(cls: Any, tmp_path: Path) -> None:
    written = {}
    for way, message in (("direct", cls(**FIELDS)), ("stored", stored(cls))):
        stream = io.StringIO()
        console.EmailBackend(alias="c", stream=stream).send_messages([message])
        filebased.EmailBackend(alias="f", file_path=tmp_path / way).send_messages([message])
        (file,) = (tmp_path / way).iterdir()
        written[way] = stream.getvalue(), file.read_bytes()
    assert written["stored"] == written["direct"]


def test_its_mime_can_be_inspected_but_not_changed() -> None:
    mime = stored(corpus.Signed).message()
    assert mime["X-Signature"] == f"of {len(FIELDS['body'])} characters"
    assert mime.get_content_type() == "text/plain"
    mime["X-Late"] = "1"
    assert b"X-Late" not in mime.as_bytes()


def test_line_ends_follow_the_request() -> None:
    message = stored(corpus.Signed)
    wire = corpus.wire_bytes(message)
    unix = wire.replace(b"\r\n", b"\n")
    mime = message.message()
    assert mime.as_bytes() == unix
    assert mime.as_bytes(linesep="\r\n") == wire
    assert mime.as_bytes(policy=email.policy.SMTP) == wire
    assert message.message(policy=email.policy.SMTP).as_bytes() == wire
    assert message.message(policy=email.policy.SMTP).as_bytes(linesep="\n") == unix
    assert mime.as_bytes(unixfrom=True) == b"From nobody\n" + unix
    assert bytes(mime) == unix


def test_inner_parts_have_their_own_bytes() -> None:
    class Multipart(EmailMessage):
        def message(self, **kwargs: Any) -> Any:
            return corpus.html(headers=FIXED).message(**kwargs)

    text, html = stored(Multipart).message().iter_parts()
    assert text.get_payload().strip() == "Text"
    assert html.as_bytes().strip().endswith(b"<p>HTML</p>")
    assert html.as_bytes().startswith(b"Content-Type: text/html")


def test_storing_it_again_gives_the_same_bytes() -> None:
    first = dump(corpus.Signed(**FIELDS))
    assert dump(stored(corpus.Signed)).blobs == first.blobs


def test_check_and_dump_build_it_only_once() -> None:
    calls = []

    class Counted(EmailMessage):
        def message(self, **kwargs: Any) -> Any:
            calls.append(1)
            return super().message(**kwargs)

    message = Counted(**FIELDS)
    check(message)
    dump(message)
    assert calls == [1]


def test_its_addresses_and_header_names_are_checked() -> None:
    with pytest.raises(InvalidHeader):
        check(corpus.Signed(**{**FIELDS, "headers": {"bcc": "b@example.com"}}))
    with pytest.raises(ValueError, match="address"):
        check(corpus.Signed(**{**FIELDS, "to": ["a@example.com, b@example.com"]}))


def test_its_own_error_is_raised_in_the_caller() -> None:
    class NoKeyError(Exception):
        pass

    class Encrypted(EmailMessage):
        def message(self, **kwargs: Any) -> Any:
            raise NoKeyError

    with pytest.raises(NoKeyError):
        dump(Encrypted(**FIELDS))


def test_fields_it_leaves_out_of_the_mail_are_not_stored() -> None:
    message: Any = Hooked(**FIELDS)
    message.passphrase = "open sesame"
    message.key = object()
    form = dump(message)
    assert "open sesame" not in form.envelope
    assert "From here" not in form.envelope
    assert b"encrypted" in form.blobs[0].content


def _writes_non_ascii_header() -> bool:
    """Return whether this Python writes non-ASCII header text; 3.12.1 does not."""
    try:
        email.policy.SMTP.fold_binary("Subject", "Ş")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("cls", [corpus.Signed, SignedForDjango52, Legacy])
def test_attached_to_another_message_it_keeps_its_own_build(cls: Any) -> None:
    can_be_written = cls is not Legacy or _writes_non_ascii_header()
    inner = cls(**{**FIELDS, "subject": FIELDS["subject"] if can_be_written else "Hi"})
    message = corpus.with_attachment("inner.eml", inner, "message/rfc822")
    check(message)
    form = dump(message)
    back = load(form.envelope, {blob.digest: blob.content for blob in form.blobs})
    assert corpus.wire_bytes(back).count(b"Subject: ") == 2
    if cls is corpus.Signed:
        direct = corpus.normalise(corpus.wire_bytes(message))
        assert corpus.normalise(corpus.wire_bytes(back)) == direct
