"""Attacks by somebody who can write to the database: what is sent is what the site has stored."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.db.models import JSONField, Value
from django.urls import include, path
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import messages, outbox
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.messages import encryption
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.export import export
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk
from django_epica_mail.results import BatchResult

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


SERVED = (path("mail/", include("django_epica_mail.urls")),)


def reset(**options: Any) -> EmailLog:
    """Queue a mail whose content is not kept, with a link worth a password."""
    message = EmailMessage("Reset 4711", SECRET_LINK, None, ["to@example.com"])
    message.content_subtype = "html"
    return outbox.enqueue(message, transport="smtp", keep_content="never", **options)


SECRET_LINK = '<a href="https://site.example/reset/s3cret">x</a>'


def test_an_addition_written_into_a_row_writes_no_links_into_its_mail(
    strict, smtp, deliver, epica_mail, settings
) -> None:
    epica_mail(BASE_URL="https://site.example")
    settings.ROOT_URLCONF = SERVED
    reset()
    EmailLog.objects.update(additions="clicks opens unsubscribe", keep_content="always")
    assert deliver() == 1
    sent = smtp.accepted[0].content
    assert b"https://site.example/reset/s3cret" in sent.replace(b"=\r\n", b"")
    assert b"/mail/" not in sent
    assert b"List-Unsubscribe" not in sent
    assert EmailLog.objects.get().envelope == "", "its content is still never kept"


def test_an_addition_removed_from_a_row_is_made(
    strict, smtp, deliver, epica_mail, settings
) -> None:
    epica_mail(BASE_URL="https://site.example")
    settings.ROOT_URLCONF = SERVED
    message = EmailMessage("News", "B", None, ["to@example.com"])
    outbox.enqueue(message, transport="smtp", unsubscribe=True, category="news")
    EmailLog.objects.update(additions="")
    deliver()
    assert b"List-Unsubscribe" in smtp.accepted[0].content


def test_what_a_row_says_of_keeping_does_not_uncover_a_subject(strict, smtp) -> None:
    log = reset()
    EmailLog.objects.update(keep_content="always", status="failed")
    (again,) = outbox.send_again([log.pk])
    again.refresh_from_db()
    assert (again.subject, again.keep_content) == ("", "never")


def test_an_idempotency_key_used_again_with_other_terms_is_the_same_message(
    strict, smtp, caplog
) -> None:
    first = outbox.enqueue(
        EmailMessage("S", "B", None, ["to@example.com"]), transport="smtp", idempotency_key="k"
    )
    second = reset(idempotency_key="other")
    assert first.pk != second.pk
    outbox.enqueue(
        EmailMessage("S", "B", None, ["to@example.com"]),
        transport="smtp", idempotency_key="k", keep_content="never",
    )  # fmt: skip
    assert "different message" not in caplog.text
    outbox.enqueue(
        EmailMessage("S", "C", None, ["to@example.com"]), transport="smtp", idempotency_key="k"
    )
    assert "different message" in caplog.text


@pytest.mark.parametrize("additions", ["", "clicks"])
def test_a_row_of_an_earlier_version_keeps_its_columns(
    strict, smtp, deliver, epica_mail, settings, additions
) -> None:
    epica_mail(BASE_URL="https://site.example")
    settings.ROOT_URLCONF = SERVED
    log = reset()
    message = log.message()
    place = encryption.envelope_of(log.pk)
    envelope = encryption.seal(messages.dump(message).envelope, place)
    EmailLog.objects.update(envelope=envelope, additions=additions, keep_content="always")
    assert deliver() == 1
    assert (b"/mail/" in smtp.accepted[0].content) is bool(additions)
    assert EmailLog.objects.get().envelope == envelope


DAMAGED: list[Any] = [
    {}, 0, "x", Value(None, JSONField()), [1], ["x"], [None], [{}], [{"index": "x"}],
    [{"index": 0}], [[[]]], [{"index": True, "reason": []}],
    [{"index": 0, "reason": 1}], [{"index": 0, "reason": "", "error": {}}], {"reason": "x"},
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED)
def test_lists_that_somebody_has_damaged_stop_nothing(
    strict, smtp, deliver, damaged, queue_mail
) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": []}
    hurt, batch = (bulk.expand(bulk.submit([entry]).pk) for _ in range(2))
    EmailBatch.objects.filter(pk=hurt.pk).update(refused=damaged)
    log, other = queue(), queue()
    EmailLog.objects.filter(pk=log.pk).update(fallbacks=damaged)
    assert reencrypt()["unreadable"] == 0
    assert erase(Person("nobody@example.com"))["unreadable"] == []
    assert BatchResult(str(hurt.pk)).result["refused"] == []
    assert bulk.reason(EmailBatch.objects.get(pk=batch.pk), 0)
    smtp.inject(refuse("mail", 451, "4.3.0 later", times=1))
    deliver()
    log.refresh_from_db()
    other.refresh_from_db()
    assert sorted([log.status, other.status]) == ["retrying", "sent"]


@pytest.mark.parametrize(
    "damaged",
    [
        *({"retry_delays": it} for it in ("x", "1e999", "nan 1", "-5", "[1]", "1e308 1e308")),
        *({"retry_delay": it} for it in (1e308, -1e308)),
    ],
    ids=str,
)
def test_delays_that_somebody_has_damaged_stop_nothing(strict, smtp, deliver, damaged) -> None:
    log, other = queue(), queue()
    EmailLog.objects.filter(pk=log.pk).update(**damaged)
    assert deliver() == 2
    log, other = queue(), queue()
    EmailLog.objects.filter(pk=log.pk).update(**damaged)
    smtp.inject(refuse("mail", 451, "4.3.0 later"))
    assert deliver() == 2
    for row in (log, other):
        row.refresh_from_db()
        assert row.status == "retrying"


ENVELOPES = [
    "x", "[]", "{}", "null", '{"v": 1}', '{"v": 1, "state": 1}', '{"v": 1, "raw": 1}', "[" * 9000,
    '{"v": 1, "class": 1, "state": {}}', '{"v": 1, "state": {"to": {"$": "uuid", "v": "x"}}}',
    EVIL.replace('"to": [', '"to": [['), EVIL.replace('"v": 1', '"v": 1, "terms": []'),
    EVIL.replace('"v": 1', '"v": 1, "attachments": [1]'), "fernet:", "fernet:x:y", "fernet:ü",
    '"to ann@example.com', '{"v": 1, "state": {"to": ["ann@example.com"]}}',
]  # fmt: skip


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("keys", [[], [KEY]])
def test_an_envelope_that_somebody_has_damaged_stops_nothing(
    smtp, deliver, epica_mail, envelope, keys
) -> None:
    epica_mail(ENCRYPTION_KEYS=keys)
    hurt, other = queue(), queue()
    message = EmailMessage("S", "B", None, ["ann@example.com", "bob@example.com"])
    named = outbox.enqueue(message, transport="smtp", send_at=timezone.now() + timedelta(days=1))
    batch = bulk.submit([])
    rows = EmailLog.objects.filter(pk__in=[hurt.pk, named.pk])
    rows.update(envelope=envelope)
    EmailBatch.objects.update(payload=envelope)
    if keys:
        reencrypt()
    assert export(Person("ann@example.com"))["mails"][-1]["id"] == str(named.pk)
    done = erase(Person("ann@example.com"))
    assert str(named.pk) in done["left"] + done["unreadable"]
    assert len(done["unreadable"]) <= 2, batch
    deliver()
    hurt.refresh_from_db()
    other.refresh_from_db()
    assert (hurt.status in ("failed", "retrying"), other.status) == (True, "sent")
    assert [it.recipients for it in smtp.accepted] == [("to@example.com",)]


FIELDS: list[tuple[str, Any]] = [
    *(("reply_to", it) for it in (5, True, {"$": "float", "v": "nan"})),
    *(("extra_headers", it) for it in (5, "x", ["x"], [[1]])),
    ("body", {"$": "dict", "v": [[{"$": "tuple", "v": []}, 1]]}),
    ("x", float("nan")),
]


@pytest.mark.parametrize(("name", "value"), FIELDS, ids=str)
def test_a_field_of_a_message_that_somebody_has_damaged_stops_nothing(
    smtp, deliver, name, value
) -> None:
    hurt, other, waiting = (
        outbox.enqueue(
            EmailMessage("S", "B", None, ["ann@example.com", "bob@example.com"]),
            transport="smtp",
            send_at=send_at,
        )
        for send_at in (None, None, timezone.now() + timedelta(days=1))
    )
    deliver()
    for log in (hurt, waiting):
        form = json.loads(log.envelope)
        form["state"][name] = value
        EmailLog.objects.filter(pk=log.pk).update(envelope=json.dumps(form))
    found = json.dumps(export(Person("ann@example.com")), default=str)
    assert all(str(it.pk) in found for it in (hurt, other, waiting))
    assert str(other.pk) not in erase(Person("ann@example.com"), dry_run=True)["unreadable"]
    again = outbox.send_again([hurt.pk, other.pk])
    assert len(again) in (1, 2)
    done = erase(Person("ann@example.com"))
    assert {str(it.pk) for it in (hurt, other)}.isdisjoint(done["left"])
    assert "ann@" not in "".join(EmailLog.objects.get(pk=other.pk).envelope)
