"""Rows whose ids are none, where the database has no type for ids: they stop no other mail."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from django_epica_mail import maintenance
from django_epica_mail.delivery import worker
from django_epica_mail.models import EmailLog
from django_epica_mail.models.fields import is_no_key, key_of
from django_epica_mail.privacy import person
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from tests.integration.admin.pages import client_of, url

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="the database takes no other id"
)
WRONG = ["'no-uuid'", "upper(id)", "'0x' || substr(id, 3)", "''", "x'ff'", "CAST(id AS BLOB)"]


def write(column: str, value: str, *ids: uuid.UUID) -> None:
    """Write SQL as somebody does who may write to the database."""
    marks = ", ".join(["%s"] * len(ids))
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA foreign_keys=OFF")
        statement = f"UPDATE epica_mail_emaillog SET {column} = {value} WHERE id IN ({marks})"
        cursor.execute(statement, [it.hex for it in ids])


@pytest.fixture
def written(transactional_db: None) -> Iterator[Any]:
    yield write
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM epica_mail_emailrecipient")
        cursor.execute("DELETE FROM epica_mail_emaillog")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_row_with_a_wrong_id_fails_and_the_mail_behind_it_is_sent(
    written, smtp, queue_mail, wrong
) -> None:
    hurt, other = queue_mail("hurt@example.net"), queue_mail("other@example.net")
    written("id", wrong, hurt.pk)
    worker.deliver("emails")
    maintenance.dispatch()
    other.refresh_from_db()
    (failed,) = EmailLog.objects.exclude(pk=other.pk)
    assert (other.status, failed.status, failed.pending) == ("sent", "failed", None)
    assert "no UUID" in failed.reply


def test_a_head_of_rows_with_wrong_ids_is_set_aside_at_once(written, smtp, queue_mail) -> None:
    for number in range(60):
        written("id", f"'no-uuid-{number}'", queue_mail(f"{number}@example.net").pk)
    other = queue_mail("other@example.net")
    worker.deliver("emails")
    other.refresh_from_db()
    assert other.status == "sent"


@pytest.mark.parametrize("column", ["batch_id", "lease_token"])
def test_mail_of_what_is_no_call_is_sent(written, smtp, queue_mail, column) -> None:
    hurt, _ = queue_mail("hurt@example.net"), queue_mail("other@example.net")
    written(column, "'no-uuid'", hurt.pk)
    worker.deliver("emails")
    maintenance.dispatch()
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}


def test_the_list_shows_the_mail_beside_it(written, site, queue_mail) -> None:
    hurt = queue_mail("hurt@example.net", subject="Hurt")
    queue_mail("other@example.net", subject="Other")
    written("id", "'no-uuid'", hurt.pk)
    page = client_of("view_emaillog").get(url("emaillog_changelist"))
    assert page.status_code == 200
    assert b"Other" in page.content


@pytest.mark.parametrize("size", [1, 2, 200])
def test_an_erasure_passes_over_wrong_ids_and_names_them(
    written, queue_mail, size, monkeypatch
) -> None:
    monkeypatch.setattr(person, "CHUNK", size)
    monkeypatch.setattr(person, "_ROWS", size)
    mails = [queue_mail("ann@example.net") for _ in range(6)]
    for number, wrong in ((0, "'!'"), (2, "upper(id) || '!'"), (3, "x'ff'"), (4, "'zz'")):
        written("id", wrong, mails[number].pk)
    done = erase(Person("ann@example.net"))
    assert (done["deleted"], len(done["unreadable"])) == (2, 4)
    assert not EmailLog.objects.filter(pk__in=[mails[1].pk, mails[5].pk]).exists()
    assert list(person.mentioning(Person("ann@example.net"), EmailLog.objects.all(), ["id"])) == []


def test_what_is_no_id_stands_for_one_of_its_own() -> None:
    key = uuid.uuid4()
    assert key_of(key.hex) == key == key_of(str(key), is_native=True)
    wrong = [key_of(it) for it in ("a", "b", b"a", 7, str(key), key.hex.upper())]
    assert len(set(wrong)) == len(wrong)
    assert all(map(is_no_key, wrong))
    assert not is_no_key(key)
