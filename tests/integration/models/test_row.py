"""Rows are read where they are written, whatever a site routes reads to."""

from __future__ import annotations

import contextlib
import json
from io import StringIO
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db.models import Model
from django.db.models.signals import post_init
from django.test import Client
from django.urls import include, path

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox, suppression
from django_epica_mail.models import EmailBatch, EmailEvent, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.export import export
from django_epica_mail.privacy.person import Person
from django_epica_mail.queueing import bulk
from django_epica_mail.results import BatchResult, EmailResult
from django_epica_mail.tasks import send_bulk_emails_task
from django_epica_mail.tracking import links


class NothingIsOnTheReplicaYet:
    """A router of a site with a replica, which lags behind so far that it does not exist."""

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "epica_mail" else None


@pytest.fixture(autouse=True)
def _replica(smtp: Any, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [NothingIsOnTheReplicaYet()]


def message(to: str = "to@example.com") -> EmailMessage:
    mail = EmailMessage("Subject", "Text", None, [to])
    mail.attach("a.bin", b"\0" * 10_000, "application/x-a")
    return mail


def log_of(pk: Any) -> EmailLog:
    return EmailLog.objects.using("default").get(pk=pk)


def test_what_a_call_returns_can_be_read() -> None:
    log = outbox.enqueue(message(), store_result=True, idempotency_key="order-7")
    assert log.created_at <= log.due_at <= log.give_up_at
    assert outbox.enqueue(message(), idempotency_key="order-7").pk == log.pk
    assert EmailResult(str(log.pk)).status == "PENDING"
    assert log.message().attachments[0][0] == "a.bin"
    batch = outbox.enqueue_many([message(), message()])
    assert batch.finished_at is not None


def test_a_mail_is_delivered_retried_cancelled_and_sent_again(smtp, deliver, travel) -> None:
    first, second = (outbox.enqueue(message(f"{n}@example.com")) for n in "12")
    assert outbox.cancel([second.pk]).cancelled == [second.pk]
    assert outbox.requeue([second.pk]) == 1
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    assert deliver() == 2
    travel(minutes=6)
    maintenance.dispatch()
    assert deliver() == 1
    assert [log_of(it.pk).status for it in (first, second)] == ["sent", "sent"]
    (again,) = outbox.send_again([first.pk])
    assert deliver() == 1
    assert log_of(again.pk).status == "sent"
    assert len(smtp.accepted) == 3
    maintenance.retry_failed()
    travel(days=31)
    assert maintenance.cleanup() == 3


def test_a_bulk_call_is_expanded() -> None:
    entry = {"subject": "S", "message": "M", "from_email": None}
    result = send_bulk_emails_task.delay(
        [{**entry, "recipient_list": ["a@example.com"]}, {"recipient_list": "nobody"}]
    )
    batch = bulk.expand(result.id)
    assert (batch.accepted, len(batch.refused), batch.finished_at is not None) == (1, 1, True)
    assert BatchResult(result.id).status == "SUCCESS"
    assert "recipient_list" in bulk.reason(EmailBatch.objects.using("default").get(), 1)


def test_visits_people_and_operators_find_the_rows(epica_mail, settings, deliver) -> None:
    epica_mail(BASE_URL="https://example.com")
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    log = outbox.enqueue(message())
    deliver()
    client = Client()
    for link in (links.open_url(log.pk), links.unsubscribe_url("a@example.com", email_id=log.pk)):
        assert client.post(link.removeprefix("https://example.com")).status_code in (200, 405)
        assert client.get(link.removeprefix("https://example.com")).status_code == 200
    assert EmailEvent.objects.using("default").exists()
    assert suppression.is_suppressed("a@example.com")
    assert client.get("/mail/health/").status_code == 200
    for action in ("status", "doctor"):
        output = StringIO()
        with contextlib.suppress(SystemExit):  # there is no broker in these tests
            call_command("epica_mail", action, "--json", stdout=output)
        assert json.loads(output.getvalue())
    person = Person("to@example.com")
    assert export(person)
    assert erase(person)


def test_a_new_row_is_the_one_that_django_makes() -> None:
    values = {"queue": "emails", "batch_id": None, "subject": "Hi"}
    made = EmailLog.of(**values)
    django = EmailLog(id=made.pk, **values)
    ours, djangos = ({**vars(it), "_state": vars(it._state)} for it in (made, django))
    assert ours == djangos
    assert EmailLog.of().fallbacks is not EmailLog.of().fallbacks
    assert EmailLog.of().pk != EmailLog.of().pk


def test_a_site_that_listens_hears_of_a_new_row() -> None:
    heard: list[Any] = []

    def note(instance: EmailLog, **_: Any) -> None:
        heard.append(instance)

    post_init.connect(note, sender=EmailLog)
    try:
        made = EmailLog.of(queue="emails")
    finally:
        post_init.disconnect(note, sender=EmailLog)
    assert (heard, made.queue) == ([made], "emails")
