"""The signal of every move: told after its commit, and to every listener."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from devservers.smtp_faults import refuse
from django_epica_mail import lifecycle, maintenance, outbox, signals

pytestmark = pytest.mark.django_db


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any]]]:
    """Return the names of the moves that are told, with the mail of each."""
    noted: list[tuple[str, Any]] = []

    def listen(*, email_id: Any, move: lifecycle.Move, **_: Any) -> None:
        noted.append((move.name, email_id))

    signals.email_moved.connect(listen)
    yield noted
    signals.email_moved.disconnect(listen)


def test_a_call_that_is_called_back_is_told_once_it_is_committed(
    queue_mail, heard, django_capture_on_commit_callbacks
) -> None:
    log, other = queue_mail(), queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk])
        assert heard == []
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk, other.pk])
    assert heard == [("cancel", log.pk), ("cancel", other.pk)]


def test_one_that_is_queued_again_is_told_and_one_that_waited_is_not(
    queue_mail, heard, django_capture_on_commit_callbacks
) -> None:
    log, waiting = queue_mail(), queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        outbox.cancel([log.pk])
    heard.clear()
    with django_capture_on_commit_callbacks(execute=True):
        assert outbox.requeue([log.pk, waiting.pk]) == 1
    assert heard == [("requeue", log.pk)]


def test_what_the_sweep_tries_again_is_told(smtp, queue_mail, deliver, heard, epica_mail) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    log = queue_mail()
    deliver()
    assert maintenance.retry_failed() == 1
    assert heard == [("give up", log.pk), ("requeue", log.pk)]


def test_what_is_rolled_back_is_not_told(
    queue_mail, heard, django_capture_on_commit_callbacks
) -> None:
    log = queue_mail()
    with django_capture_on_commit_callbacks(execute=True):
        try:
            with transaction.atomic():
                outbox.cancel([log.pk])
                raise KeyError
        except KeyError:
            pass
    assert heard == []
