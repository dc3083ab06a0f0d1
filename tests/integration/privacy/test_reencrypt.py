"""Encrypted rows, which are sent unchanged, and the rotation of their keys."""

from __future__ import annotations

import json
from email import message_from_bytes
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.db import connection

from django_epica_mail import outbox
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog
from django_epica_mail.privacy import reencrypt
from django_epica_mail.queueing import bulk

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
SECRET = "the-secret-token"


def queue(**options: Any) -> EmailLog:
    message = EmailMessage(f"{SECRET} subject", f"{SECRET} body", None, ["to@example.com"])
    message.attach("a.bin", f"{SECRET} attached".encode(), "application/octet-stream")
    return outbox.enqueue(message, transport="smtp", **options)


def stored() -> str:
    """Return every value of our rows, except the subject, which is stored in clear."""
    values = []
    with connection.cursor() as cursor:
        for model in (EmailLog, EmailAttachment, EmailBatch):
            cursor.execute(f"SELECT * FROM {model._meta.db_table}")
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                values += [
                    bytes(it).decode("latin-1") if isinstance(it, (bytes, memoryview)) else str(it)
                    for name, it in zip(names, row, strict=True)
                    if name != "subject"
                ]
    return "\n".join(values)


def test_waiting_mail_is_encrypted_and_arrives_decrypted(smtp, deliver, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    log = queue()
    bulk.submit([{"subject": "S", "message": SECRET, "recipient_list": ["to@example.com"]}])
    assert SECRET not in stored()
    assert log.subject == f"{SECRET} subject"
    assert deliver() == 1
    (arrived,) = smtp.accepted
    mail = message_from_bytes(arrived.content)
    body, attached = (part.get_payload(decode=True) for part in mail.get_payload())
    assert body.strip() == f"{SECRET} body".encode()
    assert attached == f"{SECRET} attached".encode()


def test_without_keys_content_is_stored_in_clear(smtp) -> None:
    queue()
    assert stored().count(SECRET) == 3, "in the envelope twice, in the attachment once"


def test_a_bulk_call_is_expanded_from_its_encrypted_form(smtp, deliver, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    entry = {"subject": "S", "message": SECRET, "recipient_list": ["to@example.com"]}
    batch = bulk.submit([entry, {**entry, "subject": "T"}])
    assert bulk.expand(batch.pk).accepted == 2
    assert deliver("bulk_emails") == 2


def test_never_stores_neither_subject_nor_content_in_clear(smtp, deliver, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    log = queue(keep_content="never")
    assert log.subject == ""
    assert SECRET not in stored()
    deliver()
    assert message_from_bytes(smtp.accepted[0].content)["Subject"] == f"{SECRET} subject"
    log.refresh_from_db()
    assert (log.status, log.envelope) == ("sent", "")
    assert not EmailAttachment.objects.exists()


def test_never_without_a_key_is_refused_in_the_call(smtp) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"ENCRYPTION_KEYS.*until_sent"):
        queue(keep_content="never")
    assert not EmailLog.objects.exists()
    assert not EmailAttachment.objects.exists()


def test_a_bulk_entry_that_must_not_be_stored_is_refused_alone(smtp) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": ["to@example.com"]}
    batch = bulk.submit([entry, {**entry, "keep_content": "never"}])
    batch = bulk.expand(batch.pk)
    assert batch.accepted == 1
    assert [(it["index"], it["error"]) for it in batch.refused] == [(1, "ImproperlyConfigured")]


def test_mail_waits_for_a_missing_key_and_blocks_no_other(
    smtp, deliver, epica_mail, travel
) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    log = queue(keep_content="until_sent")
    epica_mail(ENCRYPTION_KEYS=[NEW])
    other = queue()
    deliver()
    log.refresh_from_db()
    other.refresh_from_db()
    assert (log.status, other.status) == ("retrying", "sent")
    assert "ENCRYPTION_KEYS" in log.reply
    epica_mail(ENCRYPTION_KEYS=[NEW, OLD])
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"


@pytest.mark.parametrize("what", ["envelope", "attachment"])
def test_content_changed_in_the_database_is_not_sent(smtp, deliver, epica_mail, what) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    log = queue()
    if what == "envelope":
        changed = log.envelope[:-20] + log.envelope[-20:].swapcase()
        EmailLog.objects.update(envelope=changed)
    else:
        content = bytearray(EmailAttachment.objects.get().content)
        content[30] ^= 1
        EmailAttachment.objects.update(content=bytes(content))
    deliver()
    log.refresh_from_db()
    assert log.status == "retrying"
    assert "damaged" in log.reply
    assert smtp.accepted == []


def test_a_repeated_key_recognises_its_encrypted_message(smtp, deliver, epica_mail, caplog) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    first = queue(idempotency_key="k", keep_content="until_sent")
    assert queue(idempotency_key="k").pk == first.pk
    assert caplog.records == []
    outbox.enqueue(EmailMessage("Other", "", None, ["to@example.com"]), idempotency_key="k")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    deliver()
    caplog.clear()
    assert queue(idempotency_key="k").pk == first.pk, "its content has been deleted"
    assert caplog.records == []


def test_rotation_makes_the_old_key_dispensable(smtp, deliver, epica_mail, monkeypatch) -> None:
    monkeypatch.setattr(reencrypt, "_CHUNK", 2)
    plain = queue()
    epica_mail(ENCRYPTION_KEYS=[OLD])
    for _ in range(4):
        queue()
    entry = {"subject": "S", "message": SECRET, "recipient_list": ["to@example.com"]}
    batch = bulk.submit([entry])
    epica_mail(ENCRYPTION_KEYS=[NEW, OLD])
    current = queue()
    seen: list[tuple[int, int]] = []
    done = reencrypt.reencrypt(advance=lambda *at: seen.append(at))
    assert done == {"renewed": 11, "current": 2, "unreadable": 0}
    assert seen == [(number, 13) for number in range(1, 14)]
    epica_mail(ENCRYPTION_KEYS=[NEW])
    assert reencrypt.reencrypt() == {"renewed": 0, "current": 13, "unreadable": 0}
    assert SECRET not in stored()
    assert bulk.expand(batch.pk).accepted == 1
    assert deliver() == 6
    assert {plain.pk, current.pk} < set(
        EmailLog.objects.filter(status="sent").values_list("pk", flat=True)
    )


def test_rotation_leaves_and_reports_unreadable_content(smtp, epica_mail, capsys) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    log = queue()
    epica_mail(ENCRYPTION_KEYS=[NEW])
    with pytest.raises(SystemExit) as ended:
        call_command("epica_mail", "reencrypt", "--json")
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out) == {"renewed": 0, "current": 0, "unreadable": 2}
    assert EmailLog.objects.get(pk=log.pk).envelope == log.envelope


def test_rotation_does_not_bring_back_deleted_content(smtp, epica_mail, monkeypatch) -> None:
    log = queue()
    epica_mail(ENCRYPTION_KEYS=[NEW])

    def forget_first(rows: Any, name: str) -> Any:
        values = list(read(rows, name))
        if name == "envelope":
            EmailLog.objects.update(envelope="")
        return iter(values)

    read = reencrypt._values
    monkeypatch.setattr(reencrypt, "_values", forget_first)
    reencrypt.reencrypt()
    log.refresh_from_db()
    assert log.envelope == ""


def test_rotation_without_keys_is_refused(db) -> None:
    with pytest.raises(CommandError, match="ENCRYPTION_KEYS"):
        call_command("epica_mail", "reencrypt")
