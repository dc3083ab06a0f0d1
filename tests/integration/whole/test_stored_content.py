"""Attacks by somebody who can write to the database: what is sent is what the site has stored."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command

from django_epica_mail import messages, outbox
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk

KEY, OLD = (Fernet.generate_key().decode() for _ in range(2))
EVIL = messages.dump(EmailMessage("S", "Pay here", None, ["evil@example.com"])).envelope


@pytest.fixture
def strict(smtp: Any, epica_mail: Any) -> None:
    """Require that all stored content is encrypted."""
    epica_mail(ENCRYPTION_KEYS=[KEY, OLD], ENCRYPTION_REQUIRED=True)


def queue(body: str = "Body", *, attached: bytes = b"") -> EmailLog:
    message = EmailMessage("Subject", body, None, ["to@example.com"])
    if attached:
        message.attach("a.bin", attached, "application/octet-stream")
    return outbox.enqueue(message, transport="smtp")


def test_what_the_site_itself_encrypted_is_sent(strict, smtp, deliver) -> None:
    queue(attached=b"ours")
    assert deliver() == 1
    assert len(smtp.accepted) == 1


@pytest.mark.parametrize(
    "envelope", [EVIL, "fernet:" + Fernet(KEY).encrypt(EVIL.encode()).decode()]
)
def test_an_envelope_that_is_not_bound_to_its_row_is_not_sent(
    strict, smtp, deliver, envelope
) -> None:
    log = queue()
    EmailLog.objects.update(envelope=envelope)
    deliver()
    log.refresh_from_db()
    assert smtp.accepted == []
    assert "ENCRYPTION_REQUIRED" in log.reply
    with pytest.raises(MissingKey):
        log.message()


@pytest.mark.parametrize("required", [True, False])
def test_the_envelope_of_another_row_is_not_sent(smtp, deliver, epica_mail, required) -> None:
    epica_mail(ENCRYPTION_KEYS=[KEY], ENCRYPTION_REQUIRED=required)
    first, second = queue("to Ann"), queue("to Bob")
    renamed = first.envelope.replace(str(first.pk), str(second.pk))
    for stolen in (first.envelope, renamed):
        EmailLog.objects.filter(pk=second.pk).update(envelope=stolen, due_at=second.created_at)
        deliver()
        second.refresh_from_db()
        assert second.status == "retrying"
        assert not any(b"Subject" in it.content and b"Bob" in it.content for it in smtp.accepted)
    assert len(smtp.accepted) == 1, "the first mail, once"


@pytest.mark.parametrize("keys", [[], [KEY]])
def test_an_attachment_that_was_replaced_is_not_sent(smtp, deliver, epica_mail, keys) -> None:
    epica_mail(ENCRYPTION_KEYS=keys)
    log = queue(attached=b"invoice")
    EmailAttachment.objects.update(content=b"evil", size=4)
    deliver()
    log.refresh_from_db()
    assert smtp.accepted == []
    assert log.status == "failed"
    assert "digest" in log.reply


def test_an_attachment_replaced_with_its_digest_is_not_sent(strict, smtp, deliver) -> None:
    log = queue(attached=b"invoice")
    digest = hashlib.sha256(b"evil").hexdigest()
    EmailAttachment.objects.update(content=b"evil", size=4, digest=digest)
    deliver()
    log.refresh_from_db()
    assert smtp.accepted == []


def test_an_encrypted_attachment_does_not_become_a_message(strict, smtp, deliver) -> None:
    log, other = queue(attached=EVIL.encode()), queue()
    sealed = bytes(log.attachments.get().content)
    token = base64.urlsafe_b64encode(sealed).decode()
    EmailLog.objects.filter(pk=other.pk).update(envelope=f"fernet:envelope/{other.pk}:{token}")
    EmailLog.objects.filter(pk=log.pk).delete()
    deliver()
    assert smtp.accepted == []


@pytest.mark.parametrize("whose", ["plain", "another batch"])
def test_the_entries_of_a_bulk_call_are_its_own(strict, smtp, whose) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": ["to@example.com"]}
    batch, other = bulk.submit([entry]), bulk.submit([entry])
    EmailBatch.objects.filter(pk=batch.pk).update(
        payload=json.dumps([entry]) if whose == "plain" else other.payload
    )
    with pytest.raises(MissingKey):
        bulk.expand(batch.pk)
    assert not EmailLog.objects.exists()


def test_reencrypting_seals_nothing_that_is_not_ours(strict, smtp, deliver) -> None:
    log = queue(attached=b"invoice")
    EmailLog.objects.update(envelope=EVIL)
    EmailAttachment.objects.update(content=b"evil", size=4)
    assert reencrypt() == {"renewed": 0, "current": 0, "unreadable": 2}
    deliver()
    log.refresh_from_db()
    assert smtp.accepted == []
    assert log.envelope == EVIL


def test_the_command_says_when_encryption_can_be_required(
    smtp, deliver, epica_mail, capsys
) -> None:
    queue(attached=b"stored in clear")
    epica_mail(ENCRYPTION_KEYS=[KEY])
    call_command("epica_mail", "reencrypt")
    assert "set EPICA_MAIL['ENCRYPTION_REQUIRED']" in capsys.readouterr().out
    epica_mail(ENCRYPTION_REQUIRED=True)
    assert deliver() == 1
    call_command("epica_mail", "reencrypt")
    assert "ENCRYPTION_REQUIRED" not in capsys.readouterr().out


def test_with_content_left_in_clear_the_command_does_not_say_so(smtp, epica_mail, capsys) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    queue()
    epica_mail(ENCRYPTION_KEYS=[KEY])
    with pytest.raises((SystemExit, CommandError)):
        call_command("epica_mail", "reencrypt")
    assert "ENCRYPTION_REQUIRED" not in capsys.readouterr().out
