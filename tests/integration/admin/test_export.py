"""The CSV export of e-mails: its columns, its order, and what a spreadsheet makes of it."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterable
from uuid import UUID

from devservers.smtp_faults import refuse
from django_epica_mail.admin.export import COLUMNS, export
from django_epica_mail.models import EmailLog


def exported(ids: Iterable[UUID]) -> list[dict[str, str]]:
    """Export e-mails and parse the file."""
    text = b"".join(export(list(ids)).streaming_content).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def test_the_file_is_a_csv_download(db) -> None:
    response = export([])
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert response["Content-Disposition"] == 'attachment; filename="e-mails.csv"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in response["Cache-Control"]
    header = ",".join(f'"{name}"' for name in (*COLUMNS, "recipients"))
    assert b"".join(response.streaming_content).decode() == f"\ufeff{header}\r\n"


def test_the_export_has_data_but_no_content_and_no_formulas(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "=cmd|' /C calc'!A0", times=1))
    first = queue_mail("a@example.com", "b@example.com", subject='=HYPERLINK("http://x")')
    second = queue_mail(subject=' +1; ığüşöç, "quoted"')
    deliver()
    text = b"".join(export([first.pk, second.pk]).streaming_content).decode("utf-8-sig")
    assert "Body" not in text
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows[str(first.pk)]["subject"] == '\'=HYPERLINK("http://x")'
    assert rows[str(first.pk)]["recipients"] == "a@example.com b@example.com"
    assert rows[str(second.pk)]["subject"] == '\' +1; ığüşöç, "quoted"'
    for row in rows.values():
        assert not [cell for cell in row.values() if cell.strip().startswith(tuple("=+-@"))]


def test_a_row_has_the_values_of_the_mail(queue_mail) -> None:
    mail = queue_mail("Ayşe <ayse@example.com>", priority=3, category="order")
    moment = "2026-01-01T00:00:00+00:00"
    EmailLog.objects.filter(pk=mail.pk).update(created_at=moment)
    (row,) = exported([mail.pk])
    assert (row["status"], row["priority"], row["category"]) == ("queued", "3", "order")
    assert row["message_id"] == mail.message_id
    assert row["created_at"] == "2026-01-01T03:00:00+03:00", "in the site's own time zone"
    assert row["finished_at"] == row["failure_code"] == row["batch_id"] == "", "no value yet"
    assert row["recipients"] == "ayse@example.com"


def test_rows_are_in_the_order_of_the_ids(queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.export._CHUNK", 2)
    ids = [queue_mail().pk for _ in range(5)]
    wanted = [ids[3], ids[0], ids[4], ids[2], ids[1]]
    assert [row["id"] for row in exported(wanted)] == list(map(str, wanted))


def test_a_deleted_mail_is_left_out(queue_mail) -> None:
    mail = queue_mail()
    assert [row["id"] for row in exported([uuid.uuid4(), mail.pk])] == [str(mail.pk)]


def test_a_chunk_takes_two_queries(queue_mail, monkeypatch, django_assert_num_queries) -> None:
    monkeypatch.setattr("django_epica_mail.admin.export._CHUNK", 3)
    ids = [queue_mail().pk for _ in range(6)]
    with django_assert_num_queries(4):
        assert len(exported(ids)) == 6
