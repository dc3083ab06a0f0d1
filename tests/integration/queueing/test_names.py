"""The names that calls give: refused, warned of, or known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from django.core.mail import EmailMessage
from kombu import Queue

from django_epica_mail import outbox
from django_epica_mail.backends import EmailBackend
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk, names
from django_epica_mail.tasks import (
    send_bulk_emails_task,
    send_bulk_templated_emails,
    send_email_async,
)

pytestmark = pytest.mark.django_db
ENTRY: dict[str, Any] = {
    "subject": "S", "message": "B", "from_email": None, "recipient_list": ["to@example.com"],
}  # fmt: skip


@pytest.fixture
def celery_queues() -> Iterator[None]:
    current_app.conf.task_queues = [Queue("of_celery")]
    yield
    current_app.conf.task_queues = None


@pytest.fixture(autouse=True)
def _new_process() -> None:
    names.warn_of_unknown_queue.cache_clear()


def message() -> EmailMessage:
    return EmailMessage("S", "B", None, ["to@example.com"])


@pytest.mark.parametrize(
    "call",
    [
        lambda: send_email_async(**ENTRY, transport="smpt"),
        lambda: outbox.enqueue(message(), transport="smpt"),
        lambda: outbox.enqueue_many([message()], transport="smpt"),
        lambda: send_bulk_templated_emails(
            None, "emails/welcome", [("to@example.com", {})], transport="smpt"
        ),
        lambda: EmailBackend(transport="smpt").send_messages([message()]),
    ],
    ids=["send_email_async", "enqueue", "enqueue_many", "send_bulk_templated_emails", "backend"],
)
def test_a_mistyped_transport_is_refused_in_the_call(smtp, call: Any) -> None:
    with pytest.raises(ValueError, match="no transport 'smpt': name one of smtp"):
        call()
    assert not EmailLog.objects.exists()


def test_a_mistyped_transport_of_an_entry_is_reported_with_the_entry(smtp) -> None:
    report = send_bulk_emails_task([{**ENTRY, "transport": "smpt"}, ENTRY])
    assert (report["accepted"], report["refused"][0]["rule"]) == (1, "names.check_transport")
    assert "name one of smtp" in bulk.reason(EmailBatch.objects.get(), 0)


def test_a_queue_that_nothing_names_is_warned_of_once(smtp, caplog) -> None:
    for _ in range(2):
        outbox.enqueue(message(), queue="emials")
    (warning,) = (it.getMessage() for it in caplog.records if it.name == names.__name__)
    assert warning.startswith("No queue 'emials' is known")
    assert "the settings name bulk_emails, emails" in warning


def test_a_queue_of_a_rule_of_celery_or_of_other_mail_is_known(
    smtp, epica_mail, caplog, celery_queues
) -> None:
    epica_mail(ROUTES=[{"match": {"category": "x"}, "queue": "of_a_rule"}])
    EmailLog.objects.filter(pk=outbox.enqueue(message()).pk).update(queue="of_other_mail")
    for queue in ("of_a_rule", "of_celery", "of_other_mail", "emails"):
        outbox.enqueue(message(), queue=queue)
    assert [it for it in caplog.records if it.name == names.__name__] == []


def test_a_queue_of_the_settings_costs_no_query(smtp, django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        names.warn_of_unknown_queue("emails")
    with django_assert_num_queries(1):
        names.warn_of_unknown_queue("emials")
        names.warn_of_unknown_queue("emials")
