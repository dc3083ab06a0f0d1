"""The signal email_moved: sent after the commit of each move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from devservers.smtp_faults import refuse
from django_epica_mail import lifecycle, maintenance, outbox, signals

pytestmark = pytest.mark.django_db


@pytest.fixture
def moves() -> Iterator[list[tuple[str, Any]]]:
    """Record the moves signalled, by name, each with its mail's id."""
    moves: list[tuple[str, Any]] = []

    def listen(*, email_id: Any, move: lifecycle.Move, **_: Any) -> None:
        moves.append((move.name, email_id))

    signals.email_moved.connect(listen)
    yield moves
    signals.email_moved.disconnect(listen)


def test_a_cancellation_is_signalled_after_the_commit(
    queue_mail, moves, django_capture_on_commit_callbacks
) -> None:
    log, other = queue_mail(), queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk])
        assert moves == []
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk, other.pk])
    assert moves == [("cancel", log.pk), ("cancel", other.pk)]


def test_requeueing_is_signalled_only_for_mail_that_moves(
    queue_mail, moves, django_capture_on_commit_callbacks
) -> None:
    log, waiting = queue_mail(), queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk])
    moves.clear()
    with django_capture_on_commit_callbacks(execute=True):
        assert outbox.requeue([log.pk, waiting.pk]) == 1
    assert moves == [("requeue", log.pk)]


def test_requeueing_by_the_retry_task_is_signalled(
    smtp, queue_mail, deliver, moves, epica_mail
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    log = queue_mail()
    deliver()
    assert maintenance.retry_failed() == 1
    assert moves == [("give up", log.pk), ("requeue", log.pk)]


def test_a_rolled_back_move_is_not_signalled(
    queue_mail, moves, django_capture_on_commit_callbacks
) -> None:
    log = queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        try:
            with transaction.atomic():
                outbox.cancel([log.pk])
                raise KeyError
        except KeyError:
            pass
    assert moves == []
