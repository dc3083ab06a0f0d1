"""Mail of another package is moved once: into the queue if it waits, as a record if it is over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError
from django.utils import timezone

from django_epica_mail import maintenance, suppression
from django_epica_mail.exceptions import EpicaMailError
from django_epica_mail.management import importers
from django_epica_mail.management.importers.move import Report
from django_epica_mail.models import EmailLog, EmailRecipient
from tests.integration.management.importers.outside import Outside, OutsideMail

pytestmark = pytest.mark.django_db

MODULE = sys.modules[importers.move.__module__]  # the package's attribute is the function
NOTHING = {"queued": 0, "finished": 0, "listed": 0, "already": 0, "refused": []}


def move(source: Outside | None = None, *, dry_run: bool = False, **options: Any) -> Report:
    return importers.move(
        source or Outside(), dry_run=dry_run, days=options.pop("days", 30), **options
    )


def ago(**units: float) -> datetime:
    return timezone.now() - timedelta(**units)


def finished(state: str, **fields: Any) -> OutsideMail:
    values = {"created_at": ago(days=2), "finished_at": ago(days=1), "note": "250 OK", **fields}
    return OutsideMail.objects.create(state=state, **values)


def test_waiting_mail_is_queued_and_sent_by_us_alone(smtp, deliver) -> None:
    row = OutsideMail.objects.create(subject="Order", created_at=ago(hours=3))
    assert move().as_dict() == {**NOTHING, "queued": 1}
    log = EmailLog.objects.get()
    assert (log.status, log.subject, log.priority) == ("queued", "Order", 0)
    assert log.created_at == row.created_at
    assert log.idempotency_key == f"django-outside:outsidemail:{row.pk}"
    row.refresh_from_db()
    assert (row.state, row.note) == ("moved", str(log.pk))
    assert deliver() == 1
    assert [mail.header("Subject") for mail in smtp.accepted] == ["Order"]


def test_moved_mail_rings_the_queue_on_commit(
    smtp, rings, django_capture_on_commit_callbacks
) -> None:
    OutsideMail.objects.create()
    finished("sent")
    with django_capture_on_commit_callbacks(execute=True):
        move()
    assert rings == ["emails"]


def test_a_dry_run_reports_the_same_and_changes_nothing(smtp) -> None:
    OutsideMail.objects.create()
    OutsideMail.objects.create(subject="unreadable")
    finished("sent")
    planned = move(Outside(suppressed=["a@example.com"]), dry_run=True)
    assert not EmailLog.objects.exists()
    assert not suppression.is_suppressed("a@example.com")
    assert OutsideMail.objects.filter(state="moved").count() == 0
    assert (planned.queued, planned.finished, planned.listed) == (1, 1, 1)
    assert move(Outside(suppressed=["a@example.com"])) == planned


def test_a_mail_is_moved_once_however_often_the_move_is_repeated(smtp, deliver) -> None:
    OutsideMail.objects.create()
    finished("sent")
    move()
    OutsideMail.objects.filter(state="moved").update(state="waiting")  # by hand
    assert move().as_dict() == {**NOTHING, "already": 2}
    assert EmailLog.objects.count() == 2
    assert deliver() == 1


class MarksAsSent(Outside):
    """A package in which moved mail counts as sent, as in django-post_office."""

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        ids = [row.pk for row, _ in moved]
        OutsideMail.objects.filter(pk__in=ids).update(state="sent", finished_at=timezone.now())


def test_mail_just_moved_is_not_counted_among_the_finished(smtp) -> None:
    OutsideMail.objects.create()
    finished("sent")
    assert move(MarksAsSent()).as_dict() == {**NOTHING, "queued": 1, "finished": 1}
    assert EmailLog.objects.count() == 2


@pytest.mark.parametrize("state", ["sent", "failed", "cancelled", "suppressed"])
def test_finished_mail_becomes_a_record_that_is_never_sent(smtp, deliver, state) -> None:
    row = finished(state, note="the last words")
    assert move().as_dict() == {**NOTHING, "finished": 1}
    log = EmailLog.objects.get()
    assert (log.status, log.pending, log.reply) == (state, None, "the last words")
    assert (log.created_at, log.finished_at) == (row.created_at, row.finished_at)
    assert log.due_at == row.created_at
    assert deliver() == maintenance.retry_failed() == 0
    assert smtp.accepted == []
    row.refresh_from_db()
    assert row.state == state


def test_a_failure_is_recorded_as_permanent(smtp) -> None:
    finished("failed", note="550 No such user")
    move()
    log = EmailLog.objects.get()
    assert (log.failure_kind, log.reply) == ("permanent", "550 No such user")


def test_only_mail_finished_in_the_last_days_is_copied(smtp) -> None:
    finished("sent", finished_at=ago(days=8))
    finished("sent", finished_at=ago(days=6))
    assert move(days=7).finished == 1
    assert move(days=9).as_dict() == {**NOTHING, "finished": 1, "already": 1}


@pytest.mark.parametrize(("keep", "is_kept"), [("always", True), ("until_sent", False)])
def test_the_content_of_finished_mail_is_kept_only_always(smtp, epica_mail, keep, is_kept) -> None:
    epica_mail(KEEP_CONTENT=keep)
    finished("sent")
    move()
    assert bool(EmailLog.objects.get().envelope) is is_kept


def test_a_row_that_cannot_be_moved_is_reported_and_left(smtp) -> None:
    bad = OutsideMail.objects.create(subject="unreadable")
    nobody = OutsideMail.objects.create(recipient="no\naddress")
    OutsideMail.objects.create()
    report = move()
    assert report.queued == 1
    assert [it["row"] for it in report.refused] == [bad.pk, nobody.pk]
    assert report.refused[0]["reason"] == "LookupError: its template is gone"
    assert report.done == 3
    assert OutsideMail.objects.filter(state="waiting").count() == 2


class BreaksWhileMarking(Outside):
    """A source that fails to mark the second chunk."""

    chunks = 0

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        self.chunks += 1
        if self.chunks == 2:
            raise EpicaMailError("interrupted")
        super().mark(moved)


def test_an_interrupted_move_keeps_whole_chunks_and_can_be_repeated(smtp, monkeypatch) -> None:
    monkeypatch.setattr(MODULE, "CHUNK", 2)
    for _ in range(5):
        OutsideMail.objects.create()
    with pytest.raises(EpicaMailError, match="interrupted"):
        move(BreaksWhileMarking())
    assert EmailLog.objects.count() == EmailRecipient.objects.count() == 2
    assert OutsideMail.objects.filter(state="moved").count() == 2
    assert move().as_dict() == {**NOTHING, "queued": 3}
    assert EmailLog.objects.count() == 5


class LosesTheDatabase(Outside):
    """A source whose rows cannot be read any more."""

    def message(self, row: Any) -> EmailMessage:
        raise DatabaseError("the server closed the connection")


def test_a_database_error_is_not_reported_as_a_bad_row(smtp) -> None:
    OutsideMail.objects.create()
    with pytest.raises(DatabaseError):
        move(LosesTheDatabase())


def test_progress_is_reported_after_each_chunk(smtp, monkeypatch) -> None:
    monkeypatch.setattr(MODULE, "CHUNK", 2)
    for _ in range(3):
        OutsideMail.objects.create()
    finished("sent")
    seen: list[tuple[int, int]] = []
    move(advance=lambda *at: seen.append(at))
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_a_known_transport_is_kept_and_another_replaced(smtp) -> None:
    for alias in ("smtp", "another", ""):
        OutsideMail.objects.create(subject=alias or "none", alias=alias)
    move(transport="smtp")
    assert dict(EmailLog.objects.values_list("subject", "transport")) == {
        "smtp": "smtp",
        "another": "smtp",
        "none": "smtp",
    }


def test_the_package_is_held_back_while_its_mail_is_moved(smtp) -> None:
    OutsideMail.objects.create()
    finished("sent")
    source = Outside()
    move(source)
    assert source.was_held_back == [True, True]
    assert not source.is_held_back


def test_addresses_are_suppressed_before_their_mail_is_moved(smtp, deliver) -> None:
    OutsideMail.objects.create(recipient="No@example.com")
    OutsideMail.objects.create(recipient="yes@example.com")
    report = move(Outside(suppressed=["no@example.com", "no@example.com", "nobody"]))
    assert (report.queued, report.listed) == (2, 1)
    assert report.refused == [{"row": "listed", "reason": "'nobody' is not an e-mail address."}]
    deliver()
    assert [mail.recipients for mail in smtp.accepted] == [("yes@example.com",)]
    again = move(Outside(suppressed=["no@example.com"]))
    assert again.listed == 0
