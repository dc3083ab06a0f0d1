"""``drain_email_queue`` and ``fail_delivery``: deliveries in a test, and their failures."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import mail

from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_bulk_emails_task, send_email_async
from django_epica_mail.testing import (
    assert_email_queued,
    drain_email_queue,
    fail_delivery,
    queued_mail,
    travel,
)
from tests.integration.testing.mails import send, tomorrow

pytestmark = pytest.mark.django_db


@queued_mail()
def test_draining_delivers_and_returns_due_mail() -> None:
    send("One")
    send_email_async("Two", "Text", None, ["b@example.com"], send_at=tomorrow())
    (message,) = drain_email_queue()
    assert message.subject == "One"
    assert [it.subject for it in mail.outbox] == ["One"]
    assert drain_email_queue() == []


@queued_mail()
def test_draining_expands_bulk_calls_first() -> None:
    entry = {"subject": "News", "message": "Text", "recipient_list": ["a@example.com"]}
    send_bulk_emails_task.delay([entry, {"subject": "no recipient", "message": ""}])
    send()
    assert [it.subject for it in drain_email_queue("bulk_emails")] == ["News"]
    assert [it.subject for it in drain_email_queue()] == ["Order"]


@queued_mail()
def test_the_first_attempt_of_each_mail_is_failed() -> None:
    send("One")
    send("Two")
    with fail_delivery(1, reply=(451, "4.3.0 Try again later")):
        assert drain_email_queue() == []
        logs = assert_email_queued(2, status="retrying")
        assert [(it.failure_kind, it.failure_code) for it in logs] == [("transient", 451)] * 2
        with travel(minutes=6):
            assert {it.subject for it in drain_email_queue()} == {"One", "Two"}


@queued_mail()
def test_every_attempt_is_failed_if_no_number_is_given() -> None:
    send()
    with fail_delivery(reply=(451, "4.3.0 Try again later")):
        for later in range(4):
            with travel(minutes=6 * later):
                assert drain_email_queue() == []
    log = EmailLog.objects.get()
    assert (log.status, log.tries) == ("failed", 4)


@queued_mail()
def test_only_mail_to_the_named_recipient_is_failed() -> None:
    send("One", to="Ali <Ali@example.com>")
    send("Two")
    with fail_delivery(reply=(550, "5.1.1 No such user"), to="ali@example.com"):
        assert [it.subject for it in drain_email_queue()] == ["Two"]
    assert_email_queued(1, status="failed", subject="One")


@queued_mail()
@pytest.mark.parametrize(
    ("error", "expected"),
    [(TimeoutError("slow"), "retrying"), (ConnectionRefusedError(), "retrying")],
)
def test_an_exception_simulates_a_broken_network(error: Exception, expected: str) -> None:
    send()
    with fail_delivery(1, error=error):
        assert drain_email_queue() == []
        assert EmailLog.objects.get().status == expected
        with travel(minutes=6):
            assert len(drain_email_queue()) == 1


@queued_mail()
def test_deliveries_succeed_again_afterwards() -> None:
    with fail_delivery(reply=(451, "4.3.0 Try again later")):
        send("One")
        assert drain_email_queue() == []
    send("Two")
    assert [it.subject for it in drain_email_queue()] == ["Two"]


@pytest.mark.parametrize("given", [{}, {"reply": (451, "x"), "error": OSError()}])
def test_a_failure_is_either_a_reply_or_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either the server's reply or an error"):
        fail_delivery(1, **given)


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        fail_delivery(0, error=OSError())
