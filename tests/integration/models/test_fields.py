"""Databases that cannot store every character: the mail is sent whole, its copies lose some."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection, models

from devservers.smtp_faults import refuse
from django_epica_mail import outbox, suppression
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailAttachment,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    Suppression,
    checks,
    fields,
)
from django_epica_mail.queueing import bulk
from django_epica_mail.queueing.rows import columns
from django_epica_mail.tasks import send_bulk_emails_task

MODELS = (EmailLog, EmailRecipient, EmailAttachment, DeliveryAttempt, EmailEvent, Suppression)
TEXT = "Sipariş 🎉 özeti"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    fields._known.clear()
    columns.columns_of.cache_clear()
    yield
    fields._known.clear()
    columns.columns_of.cache_clear()


class _Database:
    """Stands in for a connection whose character set is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, vendor: str, named: str | None) -> None:
        self.alias, self.settings_dict, self.vendor = "other", {"NAME": "other"}, vendor
        monkeypatch.setattr(fields, "_named", lambda connection: named)


@pytest.mark.parametrize(
    ("vendor", "named", "stored"),
    [
        ("mysql", "utf8mb4", TEXT),
        ("mysql", "utf8", "Sipariş ? özeti"),
        ("mysql", "utf8mb3", "Sipariş ? özeti"),
        ("mysql", "latin1", "Sipari? ? özeti"),
        ("mysql", "latin5", "Sipariş ? özeti"),
        ("mysql", "a set that Python does not know", TEXT),
        ("mysql", None, TEXT),
        ("postgresql", "UTF8", TEXT),
        ("postgresql", "LATIN1", "Sipari? ? özeti"),
        ("postgresql", "WIN1254", "Sipariş ? özeti"),
        ("postgresql", "SQL_ASCII", TEXT),
        ("sqlite", "utf-8", TEXT),
    ],
)
def test_characters_that_a_database_lacks_become_question_marks(
    monkeypatch, vendor, named, stored
) -> None:
    database: Any = _Database(monkeypatch, vendor, named)
    assert fields.storable(TEXT, database) == stored
    assert fields.storable("plain", database) == "plain"
    assert fields.storable(7, database) == 7


def test_the_tests_own_database_stores_everything(db) -> None:
    assert fields.charset_of(connection) is None
    assert checks.check_characters(databases=["default"]) == []
    outbox.enqueue(EmailMessage(TEXT, "Text", None, ["to@example.com"]))
    assert EmailLog.objects.get().subject == TEXT


def test_migrations_see_fields_of_django() -> None:
    for model in MODELS:
        for field in model._meta.concrete_fields:
            if isinstance(field, (fields.CopyCharField, fields.CopyTextField)):
                assert field.deconstruct()[1] in (
                    "django.db.models.CharField",
                    "django.db.models.TextField",
                )
                assert isinstance(field, (models.CharField, models.TextField))


@pytest.fixture(params=["utf8mb3", "latin1"])
def charset(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    """Convert the tables to a character set that lacks some characters."""
    if connection.vendor != "mysql":
        pytest.skip("other databases have one encoding")

    def convert(name: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET foreign_key_checks = 0")
            for model in MODELS:
                cursor.execute(
                    f"ALTER TABLE {model._meta.db_table} CONVERT TO CHARACTER SET {name}"
                )
            cursor.execute("SET foreign_key_checks = 1")

    convert(request.param)
    yield request.param
    for model in MODELS:
        model.objects.all().delete()
    convert("utf8mb4")


def test_mail_is_queued_and_sent_whole_by_such_a_database(charset, smtp, deliver) -> None:
    message = EmailMessage(TEXT, f"Text {TEXT}", f'"{TEXT}" <shop@example.com>', ["to@example.com"])
    message.attach(f"{TEXT}.pdf", b"\0" * 5_000, "application/pdf")
    smtp.inject(refuse("rcpt", 451, f"4.3.0 Later {TEXT}", times=1))
    log = outbox.enqueue(message, category=TEXT, idempotency_key="order-7")
    with pytest.raises(ValueError, match="idempotency_key must have only characters that"):
        outbox.enqueue(EmailMessage(TEXT, TEXT, None, ["b@example.com"]), idempotency_key=TEXT)
    plain = outbox.enqueue(EmailMessage(TEXT, TEXT, None, ["b@example.com"]), category=TEXT)
    batch = bulk.expand(
        send_bulk_emails_task.delay(
            [
                {
                    "subject": TEXT,
                    "message": TEXT,
                    "from_email": None,
                    "recipient_list": ["c@d.ef"],
                },
                {"subject": TEXT, "message": TEXT, "cc": TEXT, "recipient_list": []},
            ]
        ).id
    )
    assert (batch.accepted, len(batch.refused)) == (1, 1)
    assert deliver() == 2
    assert deliver("bulk_emails") == 1
    EmailLog.objects.update(due_at=log.created_at)
    deliver()
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}
    assert {it.header("Subject") for it in smtp.accepted} == {
        "=?utf-8?b?U2lwYXJpxZ8g8J+OiSDDtnpldGk=?="
    }
    log = EmailLog.objects.get(pk=log.pk)
    assert log.message().subject == TEXT
    lost = "Sipariş ? özeti" if charset == "utf8mb3" else "Sipari? ? özeti"
    assert (log.subject, log.category) == (lost, lost)
    assert EmailLog.objects.get(pk=plain.pk).subject == lost
    assert any(lost in it.reply for it in DeliveryAttempt.objects.all())
    suppression.add("x@example.com", note=TEXT)
    (warning,) = checks.check_characters(databases=["default"])
    assert warning.id == "epica_mail.W010"
    assert charset.replace("latin1", "cp1252") in warning.msg
    output = StringIO()
    with pytest.raises(SystemExit):
        call_command("epica_mail", "doctor", "--json", stdout=output)
    assert "epica_mail.W010" in [it["id"] for it in json.loads(output.getvalue())["findings"]]
