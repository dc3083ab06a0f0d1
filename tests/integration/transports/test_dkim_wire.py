"""DKIM on the wire: what an SMTP server received is verified by dkimpy."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend
from django.urls import include, path

from devservers.smtp import SMTPServer
from django_epica_mail import outbox
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind
from django_epica_mail.transports import connection
from tests.corpus import CORPUS


class SitesOwn(EmailBackend):
    """A site's own backend that sends text instead of bytes."""

    def _send(self, email_message: Any) -> bool:
        assert self.connection is not None
        text = "From: a@example.com\nSubject: own\n\n.dot\nend"
        self.connection.sendmail("a@example.com", email_message.recipients(), text)
        return True


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path / "dkim.pem"
    file.write_bytes(private)
    return file


@pytest.fixture
def sign(smtp: SMTPServer, use_options: Any, key: Path) -> Any:
    """Sign the mail of the transport ``smtp``."""

    def use(backend: str = "django.core.mail.backends.smtp.EmailBackend", **form: Any) -> None:
        form = {"selector": "s1", "key_file": str(key), **form}
        use_options(backend, host="127.0.0.1", port=smtp.port, dkim=form)

    use()
    return use


def verifies(content: bytes, domain: str = "example.com") -> bool:
    """Return whether a received mail verifies by the record that the transport asks for."""
    (signing,) = connection.build("smtp").signer.keys  # type: ignore[attr-defined]
    records = {f"s1._domainkey.{domain}.": signing.record.encode()}
    assert content.startswith(b"DKIM-Signature:")
    return bool(dkimpy.verify(content, dnsfunc=lambda name, timeout=5: records.get(name.decode())))


@pytest.mark.parametrize(("kind", "make"), CORPUS, ids=[kind for kind, _ in CORPUS])
def test_every_kind_of_mail_verifies_as_it_arrives(kind, make, sign, smtp, deliver) -> None:
    message = make()
    outbox.enqueue(message, transport="smtp")
    deliver()
    (arrived,) = smtp.accepted
    assert verifies(arrived.content)


def test_what_the_worker_adds_is_signed_too(sign, smtp, deliver, settings, epica_mail) -> None:
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(BASE_URL="https://www.example.com")
    message = EmailMultiAlternatives("News", "Text", "shop@example.com", ["to@example.com"])
    message.attach_alternative('<p><a href="https://example.com/x">x</a></p>', "text/html")
    outbox.enqueue(
        message,
        transport="smtp",
        category="news",
        track_clicks=True,
        track_opens=True,
        unsubscribe=True,
    )
    deliver()
    content = smtp.accepted[0].content
    assert b"https://www.example.com/mail/" in content
    signed = re.search(rb" h=([\w\s:-]+);", content)
    assert signed is not None
    names = [name.strip() for name in signed[1].split(b":")]
    assert {b"list-unsubscribe", b"list-unsubscribe-post"} <= set(names)
    assert names.count(b"from") == 2
    assert verifies(content)
    assert not dkimpy.verify(
        content.replace(b"One-Click", b"One-Clock"), dnsfunc=lambda *_, **__: b""
    )


def test_a_sites_own_backend_is_signed_at_the_wire(sign, smtp, deliver, queue_mail) -> None:
    sign(f"{__name__}.SitesOwn")
    queue_mail("to@example.com")
    deliver()
    assert b"Subject: own\r\n" in smtp.accepted[0].content
    assert verifies(smtp.accepted[0].content)


def test_a_mail_of_another_domain_goes_unsigned(sign, smtp, deliver, queue_mail) -> None:
    sign(domain="example.net")
    queue_mail("to@example.com")
    assert deliver() == 1
    assert b"DKIM-Signature" not in smtp.accepted[0].content


def test_a_key_that_cannot_be_read_holds_mail_back_until_it_can(
    sign, smtp, deliver, queue_mail, key
) -> None:
    hidden = key.rename(key.with_suffix(".away"))
    mail = queue_mail("to@example.com")
    deliver()
    mail.refresh_from_db()
    assert (mail.status, mail.failure_kind, mail.tries) == ("retrying", Kind.OUTAGE, 0)
    assert "which cannot be read (FileNotFoundError)" in mail.reply
    assert smtp.accepted == []
    hidden.rename(key)
    assert connection.probe("smtp") is None


def test_a_replaced_key_is_used_by_the_next_connection(
    sign, smtp, deliver, queue_mail, key
) -> None:
    queue_mail("to@example.com")
    deliver()
    other = ed25519.Ed25519PrivateKey.generate()
    key.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    connection.close_connections()
    queue_mail("to@example.com")
    deliver()
    first, second = smtp.accepted
    assert not verifies(first.content)
    assert verifies(second.content)


def test_no_key_is_in_rows_or_logs(sign, smtp, deliver, queue_mail, key, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret = key.read_text().splitlines()[1]
    queue_mail("to@example.com")
    deliver()
    key.write_text(key.read_text().replace("BEGIN PRIVATE", "BEGIN EC PRIVATE"))
    connection.close_connections()
    queue_mail("to@example.com")
    deliver()
    stored = "".join(str(row) for row in EmailLog.objects.values_list())
    assert "no usable private key" in stored
    assert secret not in stored
    assert secret not in caplog.text


def test_a_provider_of_anymail_cannot_sign(use_options) -> None:
    use_options("anymail.backends.test.EmailBackend", dkim={"selector": "s", "key_env": "X"})
    failure = connection.probe("smtp")
    assert failure is not None
    assert failure.kind is Kind.OUTAGE
    assert "Only SMTP has the option dkim" in failure.reply
