"""``queued_mail``, ``travel``, ``travel_to`` and ``no_real_transports`` around a site's tests."""

from __future__ import annotations

import contextlib
import unittest
from datetime import timedelta
from typing import ClassVar

import django  # noqa: F401 - in a condition below
import pytest
from celery import current_app
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage, get_connection
from django.db import transaction
from django.test import TestCase, override_settings
from django.utils import timezone

from django_epica_mail import clock, signals
from django_epica_mail.broker import result_backend
from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_bulk_emails_task, send_email_async
from django_epica_mail.testing import (
    RealTransportOpened,
    assert_email_queued,
    drain_email_queue,
    fail_delivery,
    no_real_transports,
    queued_mail,
    travel,
    travel_to,
)
from django_epica_mail.transports import config as transports
from tests.integration.testing.mails import send, tomorrow

pytestmark = pytest.mark.django_db


def test_mail_is_queued_inside_and_delivered_at_once_outside() -> None:
    send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (1, 0)
    with queued_mail():
        send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (1, 1)
    send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (2, 1)


def test_no_broker_is_rung(rings, django_capture_on_commit_callbacks) -> None:
    with queued_mail(), django_capture_on_commit_callbacks(execute=True) as callbacks:
        send()
    assert callbacks
    assert rings == []


def test_no_result_backend_is_contacted(monkeypatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(result_backend, "_bounded_backend", lambda: asked.append(None))
    with queued_mail():
        result = send_email_async("S", "M", None, ["a@example.com"])
        drain_email_queue()
    assert result.status == "SUCCESS"
    assert asked == []


@pytest.mark.django_db(transaction=True)
def test_it_works_without_a_transaction_around_the_test(rings) -> None:
    with queued_mail():
        with contextlib.suppress(RuntimeError), transaction.atomic():
            send("Undone")
            raise RuntimeError
        send("Kept")
        assert [it.subject for it in drain_email_queue()] == ["Kept"]
    assert rings == []


@pytest.mark.django_db(transaction=True)
def test_eager_tasks_deliver_at_the_commit(monkeypatch) -> None:
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    with queued_mail():
        with transaction.atomic():
            send()
            assert mail.outbox == []
        assert len(mail.outbox) == 1


def test_rates_do_not_apply(epica_mail) -> None:
    epica_mail(RATES={"*": "1/d"}, RATES_STORAGE="redis://127.0.0.1:1")
    with queued_mail():
        send()
        send()
        assert len(drain_email_queue()) == 2


def test_a_site_that_does_not_use_the_queue_is_reported(monkeypatch) -> None:
    monkeypatch.setattr(transports, "QUEUE_BACKEND", "elsewhere.EmailBackend")
    with pytest.raises(ImproperlyConfigured, match=r"queue.*elsewhere\.EmailBackend"):
        queued_mail().enable()


@pytest.mark.skipif("django.VERSION < (6, 1)", reason="MAILERS came with Django 6.1")
@pytest.mark.filterwarnings("ignore:get_connection")
def test_a_call_that_names_the_site_s_own_account_is_queued_as_outside_of_tests() -> None:
    with queued_mail():
        connection = get_connection(host="127.0.0.1", port=1)
        connection.send_messages([EmailMessage("S", "B", to=["a@example.com"])])
        assert len(drain_email_queue()) == 1
        with pytest.raises(ImproperlyConfigured, match="'host'"):
            get_connection(host="elsewhere.example.com", port=1)


def test_a_change_that_fails_leaves_nothing_changed(monkeypatch, rings) -> None:
    monkeypatch.setattr(transports, "QUEUE_BACKEND", "elsewhere.EmailBackend")
    with pytest.raises(ImproperlyConfigured):
        queued_mail().enable()
    send()
    assert len(mail.outbox) == 1


@queued_mail()
def test_travelling_to_the_send_time_makes_mail_due() -> None:
    when = tomorrow()
    send_email_async("Later", "Text", None, ["a@example.com"], send_at=when)
    with travel_to(when - timedelta(minutes=1)):
        assert drain_email_queue() == []
    with travel_to(when):
        assert [it.subject for it in drain_email_queue()] == ["Later"]


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        travel_to(tomorrow().replace(tzinfo=None))


@queued_mail()
def test_shifts_add_up_and_are_undone() -> None:
    send_email_async("Later", "Text", None, ["a@example.com"], send_at=tomorrow())
    with travel(hours=13):
        assert drain_email_queue() == []
        with travel(hours=13):
            assert len(drain_email_queue()) == 1
    send_email_async("Later", "Text", None, ["a@example.com"], send_at=tomorrow())
    assert drain_email_queue() == []


def test_the_clock_of_python_is_unchanged() -> None:
    before = timezone.now()
    with travel(days=3):
        assert timezone.now() - before < timedelta(days=1)
        with travel_to(tomorrow()):
            assert timezone.now() - before < timedelta(days=1)
    assert clock.offset == timedelta()


def test_a_delivery_by_a_real_transport_fails_the_test(smtp, queue_mail, deliver) -> None:
    environment = no_real_transports()
    environment.enable()
    queue_mail()
    deliver()
    assert smtp.accepted == []
    with pytest.raises(RealTransportOpened, match="REAL_TRANSPORTS_IN_TESTS"):
        environment.disable()


def test_the_smtp_backend_of_django_is_refused_too() -> None:
    from django.core.mail.backends.smtp import EmailBackend

    named = {"alias": "smtp"} if hasattr(mail, "mailers") else {}
    backend = EmailBackend(host="127.0.0.1", port=1, **named)
    environment = no_real_transports()
    environment.enable()
    with pytest.raises(RealTransportOpened, match="smtp"):
        backend.open()
    with pytest.raises(RealTransportOpened, match="smtp"):
        environment.disable()


def test_the_outbox_of_django_is_not_refused() -> None:
    with no_real_transports(), queued_mail():
        send()
        assert len(drain_email_queue()) == 1


@queued_mail()
class DecoratedTests(TestCase):
    """The helpers decorate Django's test cases as well."""

    def test_mail_is_queued(self) -> None:
        send()
        assert_email_queued(1)

    @fail_delivery(reply=(550, "5.1.1 No such user"))
    def test_a_method_is_decorated(self) -> None:
        send()
        drain_email_queue()
        assert_email_queued(1, status="failed")


class PlainTests(unittest.TestCase):
    """The helpers need a database, but not Django's test case."""

    @override_settings(EPICA_MAIL={"DEFAULT_TRANSPORT": "smtp"})
    @queued_mail()
    def test_other_overrides_hold_within(self) -> None:
        send()
        self.assertEqual(assert_email_queued(1)[0].transport, "smtp")  # noqa: PT009


class OldTests(TestCase):
    """Tests as they were before the site had a queue."""

    __test__ = False

    def test_mail_is_there_at_once(self) -> None:
        send("First")
        with transaction.atomic():
            send("Second")
            assert [it.subject for it in mail.outbox] == ["First", "Second"]

    def test_a_view_that_sends_mail_with_an_attachment(self) -> None:
        message = EmailMessage("Invoice", "Text", None, ["a@example.com"], bcc=["b@example.com"])
        message.attach("invoice.txt", "Total: 42", "text/plain")
        with self.captureOnCommitCallbacks() as callbacks:
            assert message.send() == 1
        assert callbacks == []
        (arrived,) = mail.outbox
        assert arrived.recipients() == ["a@example.com", "b@example.com"]
        assert arrived.attachments[0][:2] == ("invoice.txt", "Total: 42")

    def test_mails_of_a_bulk_call(self) -> None:
        entry = {"subject": "S", "message": "M", "from_email": None}
        entries = [{**entry, "recipient_list": [f"{n}@example.com"]} for n in range(3)]
        result = send_bulk_emails_task.delay(entries)
        assert (result.status, len(mail.outbox)) == ("SUCCESS", 3)


def test_old_tests_pass_through_the_queue_as_they_are() -> None:
    class ThroughTheQueue(OldTests):
        sent: ClassVar[list[int]] = []

        def tearDown(self) -> None:
            self.sent.append(EmailLog.objects.filter(status="sent").count())

    names = sorted(it for it in vars(OldTests) if it.startswith("test_"))
    case = queued_mail(deliver=True)(ThroughTheQueue)
    result = unittest.TestResult()
    unittest.TestSuite(map(case, names)).run(result)
    assert (result.testsRun, result.errors, result.failures) == (3, [], [])
    assert case.sent == [1, 2, 3]


def test_mail_for_later_waits_and_mail_that_is_refused_is_not_there() -> None:
    with queued_mail(deliver=True):
        send_email_async("Later", "Text", None, ["a@example.com"], send_at=tomorrow())
        with fail_delivery(reply=(550, "5.1.1 No such user")):
            result = send_email_async("S", "M", None, ["nobody@example.com"])
        assert (mail.outbox, result.status) == ([], "FAILURE")
        assert_email_queued(1, subject="Later")


def test_a_mail_that_a_delivery_causes_is_delivered_too() -> None:
    def thank(sender: object, **_: object) -> None:
        if len(mail.outbox) == 1:
            send("Second")

    signals.email_moved.connect(thank)
    try:
        with queued_mail(deliver=True):
            send("First")
    finally:
        signals.email_moved.disconnect(thank)
    assert [it.subject for it in mail.outbox] == ["First", "Second"]


def test_a_context_without_it_queues_within_one_that_delivers() -> None:
    with queued_mail(deliver=True):
        with queued_mail():
            send("Waits")
            assert mail.outbox == []
        send("Goes")
        assert sorted(it.subject for it in mail.outbox) == ["Goes", "Waits"]
