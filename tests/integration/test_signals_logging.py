"""The log: moves and transport states, by id and alias, never with an address."""

from __future__ import annotations

import logging
import traceback
from types import SimpleNamespace

import pytest
from django.db import IntegrityError
from django.test import RequestFactory

from devservers.smtp_faults import drop, refuse
from django_epica_mail import maintenance, outbox, signals, views
from django_epica_mail.models import EmailEvent


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=signals.logger.name)


def _of(log, caplog):
    """Return the level, move and failure of each log record of a mail."""
    return [
        (record.levelno, record.move, record.failure)
        for record in caplog.records
        if getattr(record, "email_id", None) == str(log.pk)
    ]


def test_a_sent_mail_is_logged_at_debug(smtp, queue_mail, deliver, caplog) -> None:
    log = queue_mail()
    deliver()
    assert _of(log, caplog) == [(logging.DEBUG, "succeed", "")]


def test_a_failed_mail_is_logged_as_a_warning(smtp, queue_mail, deliver, caplog) -> None:
    smtp.inject(refuse("rcpt"))
    log = queue_mail()
    deliver()
    assert _of(log, caplog) == [(logging.WARNING, "give up", "permanent")]


def test_each_move_of_a_lost_reply_is_logged(smtp, queue_mail, deliver, caplog) -> None:
    smtp.inject(drop("content"))
    log = queue_mail()
    deliver()
    assert _of(log, caplog) == [
        (logging.WARNING, "lose", "unknown"),
        (logging.DEBUG, "resend", "unknown"),
    ]


def test_an_outage_and_its_end_are_logged_once(smtp, queue_mail, deliver, travel, caplog) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    deliver()
    smtp.listen_again()
    travel(seconds=31)
    deliver()
    of_transport = [
        (record.levelno, record.getMessage(), record.transport, getattr(record, "failure", None))
        for record in caplog.records
        if "Transport smtp" in record.getMessage()
    ]
    out_of_order = "Transport smtp is out of order (reply code None)."
    assert of_transport == [
        (logging.WARNING, out_of_order, "smtp", "outage"),
        (logging.INFO, "Transport smtp works again.", "smtp", None),
    ]


def test_addresses_in_replies_are_never_logged(smtp, queue_mail, deliver, travel, caplog) -> None:
    smtp.inject(refuse("rcpt", 450, "4.2.0 <secret@example.com> is greylisted", times=1))
    smtp.inject(refuse("rcpt", 550, "5.1.1 <secret@example.com> unknown", times=1))
    log = queue_mail("secret@example.com")
    deliver()
    travel(minutes=6)
    deliver()
    outbox.requeue([log.pk])
    deliver()
    assert len(_of(log, caplog)) == 3
    texts = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert not [text for text in texts if "secret" in text]


def refused_row(*_: object, **__: object) -> None:
    """Fail as PostgreSQL does if a row breaks a constraint."""
    cause = Exception("x")
    cause.diag = SimpleNamespace(constraint_name="epica_mail_mail_times")  # type: ignore[attr-defined]
    row = "Failing row contains (ann@example.com, Secret subject)."
    raise IntegrityError(row) from cause


@pytest.mark.django_db(transaction=True)  # in one, the sweep raises at once
def test_a_row_that_the_database_refuses_is_not_logged(
    smtp, queue_mail, deliver, monkeypatch, caplog
) -> None:
    log = queue_mail("ann@example.com", subject="Secret subject")
    monkeypatch.setattr("django_epica_mail.delivery.settle.settle", refused_row)
    deliver()
    monkeypatch.setattr(maintenance, "give_up_overdue", refused_row)
    with pytest.raises(IntegrityError) as refused:
        maintenance.dispatch()  # which Celery logs
    monkeypatch.setattr("django_epica_mail.tracking.events.record_visit", refused_row)
    views._record_visit(RequestFactory().get("/"), log.pk, EmailEvent.Kind.OPENED)
    told = caplog.text + "".join(traceback.format_exception(refused.value))
    assert "ann@" not in told
    assert "Secret" not in told
    assert told.count("IntegrityError, epica_mail_mail_times") == 3
    assert str(log.pk) in caplog.text
