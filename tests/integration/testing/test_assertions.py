"""The helpers that the package offers to a site's own tests."""

from __future__ import annotations

import contextlib
import re
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMultiAlternatives, send_mail
from django.db import transaction
from django.test import TestCase, override_settings
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.broker import result_backend
from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_bulk_emails_task, send_email_async
from django_epica_mail.testing import (
    RealTransportOpened,
    assert_email_queued,
    assert_no_email_queued,
    drain_email_queue,
    fail_delivery,
    no_real_transports,
    queued_mail,
    travel,
    travel_to,
)
from django_epica_mail.transports import config as transports

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.django_db


ROOT = Path(__file__).parents[3]


def send(subject: str = "Order", to: str = "a@example.com", body: str = "Thank you.") -> None:
    send_mail(subject, body, "shop@example.com", [to])


def status() -> str:
    return EmailLog.objects.get().status


def test_within_queued_mail_the_site_queues_and_outside_djangos_runner_delivers() -> None:
    send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (1, 0)
    with queued_mail():
        send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (1, 1)
    send()
    assert (len(mail.outbox), EmailLog.objects.count()) == (2, 1)


def test_draining_delivers_what_is_due_to_djangos_outbox_and_returns_it() -> None:
    with queued_mail():
        send("One")
        send_email_async("Two", "Text", None, ["b@example.com"], send_at=tomorrow())
        (message,) = drain_email_queue()
        assert message.subject == "One"
        assert [it.subject for it in mail.outbox] == ["One"]
        assert drain_email_queue() == []


def test_draining_makes_mails_of_bulk_calls_first() -> None:
    entry = {"subject": "News", "message": "Text", "recipient_list": ["a@example.com"]}
    with queued_mail():
        send_bulk_emails_task.delay([entry, {"subject": "no recipient", "message": ""}])
        send()
        assert [it.subject for it in drain_email_queue("bulk_emails")] == ["News"]
        assert [it.subject for it in drain_email_queue()] == ["Order"]


def test_no_broker_is_rung(rings, django_capture_on_commit_callbacks) -> None:
    with queued_mail(), django_capture_on_commit_callbacks(execute=True) as callbacks:
        send()
    assert callbacks
    assert rings == []


def test_no_result_backend_is_told(monkeypatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(result_backend, "_bounded_backend", lambda: asked.append(None))
    with queued_mail():
        result = send_email_async("S", "M", None, ["a@example.com"])
        drain_email_queue()
    assert result.status == "SUCCESS"
    assert asked == []


@pytest.mark.django_db(transaction=True)
def test_in_tests_without_a_transaction_of_their_own_it_works_the_same(rings) -> None:
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


def test_rates_are_not_counted(epica_mail) -> None:
    epica_mail(RATES={"*": "1/d"}, RATES_STORAGE="redis://127.0.0.1:1")
    with queued_mail():
        send()
        send()
        assert len(drain_email_queue()) == 2


def test_a_site_that_does_not_queue_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr(transports, "QUEUE_BACKEND", "elsewhere.EmailBackend")
    with pytest.raises(ImproperlyConfigured, match=r"queue.*elsewhere\.EmailBackend"):
        queued_mail().enable()


def test_what_fails_to_begin_leaves_nothing_changed(monkeypatch, rings) -> None:
    monkeypatch.setattr(transports, "QUEUE_BACKEND", "elsewhere.EmailBackend")
    with pytest.raises(ImproperlyConfigured):
        queued_mail().enable()
    send()
    assert len(mail.outbox) == 1


def tomorrow() -> Any:
    return timezone.now() + timedelta(days=1)


@queued_mail()
def test_one_travels_to_the_time_a_mail_is_sent_at() -> None:
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


@queued_mail()
def test_the_first_try_of_each_mail_is_failed_by_the_servers_reply() -> None:
    send("One")
    send("Two")
    with fail_delivery(1, reply=(451, "4.3.0 Try again later")):
        assert drain_email_queue() == []
        logs = assert_email_queued(2, status="retrying")
        assert [(it.failure_kind, it.failure_code) for it in logs] == [("transient", 451)] * 2
        with travel(minutes=6):
            assert {it.subject for it in drain_email_queue()} == {"One", "Two"}


@queued_mail()
def test_every_try_is_failed_where_no_number_is_given() -> None:
    send()
    with fail_delivery(reply=(451, "4.3.0 Try again later")):
        for later in range(4):
            with travel(minutes=6 * later):
                assert drain_email_queue() == []
    assert status() == "failed"
    assert EmailLog.objects.get().tries == 4


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
def test_an_exception_stands_for_a_broken_network(error: Exception, expected: str) -> None:
    send()
    with fail_delivery(1, error=error):
        assert drain_email_queue() == []
        assert status() == expected
        with travel(minutes=6):
            assert len(drain_email_queue()) == 1


@pytest.mark.parametrize("given", [{}, {"reply": (451, "x"), "error": OSError()}])
def test_a_failure_is_a_reply_or_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="one of the two"):
        fail_delivery(1, **given)


def test_tries_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        fail_delivery(0, error=OSError())


def test_a_delivery_by_a_real_transport_fails_the_test(smtp, queue_mail, deliver) -> None:
    guard = no_real_transports()
    guard.enable()
    queue_mail()
    deliver()
    assert smtp.accepted == []
    with pytest.raises(RealTransportOpened, match="REAL_TRANSPORTS_IN_TESTS"):
        guard.disable()


def test_djangos_own_smtp_backend_is_refused_too() -> None:
    from django.core.mail.backends.smtp import EmailBackend

    named = {"alias": "smtp"} if hasattr(mail, "mailers") else {}
    backend = EmailBackend(host="127.0.0.1", port=1, **named)
    guard = no_real_transports()
    guard.enable()
    with pytest.raises(RealTransportOpened, match="smtp"):
        backend.open()
    with pytest.raises(RealTransportOpened, match="smtp"):
        guard.disable()


def test_the_guard_lets_djangos_outbox_be() -> None:
    with no_real_transports(), queued_mail():
        send()
        assert len(drain_email_queue()) == 1


@queued_mail()
def test_an_expectation_is_met_by_every_field_it_may_name() -> None:
    message = EmailMultiAlternatives(
        "Order 7",
        "Thank you, Ali.",
        "shop@example.com",
        ["Ali <ali@example.com>"],
        cc=["cc@example.com"],
        bcc=["bcc@example.com"],
        reply_to=["help@example.com"],
        headers={"X-Order": "7", "X-Shop": "tea"},
    )
    message.attach_alternative("<p>Thank <b>you</b></p>", "text/html")
    message.attach("invoice.txt", "Total: 42", "text/plain")
    log = outbox.enqueue(
        message, category="order", priority="high", idempotency_key="order-7", on_unknown="hold"
    )
    assert assert_email_queued(
        1,
        subject=re.compile(r"^Order \d"),
        body="Thank you, Ali.",
        body_contains="Ali",
        html="<p>Thank <b>you</b></p>",
        html_contains="<b>you</b>",
        from_email="shop@example.com",
        to="ali@example.com",
        cc=["cc@example.com"],
        bcc=["bcc@example.com"],
        reply_to=["help@example.com"],
        headers={"X-Order": "7"},
        attachments=["invoice.txt"],
        queue="emails",
        transport="smtp",
        category="order",
        priority="high",
        idempotency_key="order-7",
        on_unknown="hold",
    ) == [log]


@queued_mail()
def test_a_wrong_expectation_shows_the_closest_mail_and_where_it_differs() -> None:
    send("Order 7", "a@example.com", "Thank you.\nYours, the shop")
    send("News", "b@example.com")
    with pytest.raises(AssertionError) as caught:
        assert_email_queued(
            subject="Order 8", to=["a@example.com"], body="Thank you.\nYours, the tea shop"
        )
    assert str(caught.value).splitlines() == [
        "0 of 2 e-mail waiting are as expected; at least one should be.",
        "The closest is 'Order 7' to a@example.com (queued in emails), "
        "where it differs (- expected, + actual):",
        "  subject",
        "    - 'Order 8'",
        "    + 'Order 7'",
        "  body",
        "      Thank you.",
        "    - Yours, the tea shop",
        "    + Yours, the shop",
        "All e-mail waiting:",
        "  'Order 7' to a@example.com (queued in emails)",
        "  'News' to b@example.com (queued in emails)",
    ]


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        ({"body_contains": "Good-bye"}, "- 'Good-bye'"),
        ({"html_contains": "<b>"}, "+ None"),
        ({"headers": {"X-Order": "7"}}, "- {'X-Order': '7'}"),
        ({"to": "b@example.com"}, "- 'b@example.com'"),
        ({"subject": re.compile("^News")}, "- '^News'"),
        ({"priority": "low"}, "- 0"),
        ({"attachments": ["a.txt"]}, "+ []"),
    ],
)
@queued_mail()
def test_each_sort_of_expectation_can_fail(expected: dict[str, Any], shown: str) -> None:
    send()
    with pytest.raises(AssertionError) as caught:
        assert_email_queued(**expected)
    assert f"    {shown}" in str(caught.value).splitlines()


@queued_mail()
def test_the_number_of_mails_is_asserted_where_it_is_given() -> None:
    send()
    send()
    assert len(assert_email_queued()) == len(assert_email_queued(2)) == 2
    with pytest.raises(AssertionError, match="2 of 2 e-mail waiting are as expected; 1 should be"):
        assert_email_queued(1, subject="Order")
    with pytest.raises(AssertionError, match="0 should be"):
        assert_no_email_queued(subject="Order")
    assert_no_email_queued(subject="News")


@queued_mail()
def test_mail_whose_content_is_forgotten_is_found_by_its_row() -> None:
    send_email_async(
        "Secret", "Text", None, ["a@example.com"], category="reset", keep_content="until_sent"
    )
    drain_email_queue()
    assert_email_queued(1, status="sent", category="reset")
    assert_no_email_queued(status="sent", subject="Secret")


def test_a_misspelt_expectation_is_refused() -> None:
    with pytest.raises(TypeError, match="'subjekt'"):
        assert_email_queued(subjekt="Order")


def test_the_fixture_offers_all_of_it(epica_outbox) -> None:
    send()
    (log,) = epica_outbox.queued
    assert epica_outbox.assert_queued(1, subject="Order") == [log]
    with epica_outbox.fail(1, reply=(451, "4.3.0 Try again later")):
        assert epica_outbox.drain() == []
        with epica_outbox.travel(minutes=6):
            assert epica_outbox.drain() == epica_outbox.delivered
    with epica_outbox.travel_to(tomorrow()):
        epica_outbox.assert_none_queued()
    assert len(epica_outbox.delivered) == 1


@queued_mail()
class DecoratedTests(TestCase):
    """The helpers are decorators of Django's test cases too."""

    def test_mail_is_queued(self) -> None:
        send()
        assert_email_queued(1)

    @fail_delivery(reply=(550, "5.1.1 No such user"))
    def test_a_method_is_decorated(self) -> None:
        send()
        drain_email_queue()
        assert_email_queued(1, status="failed")


class PlainTests(unittest.TestCase):
    """Nothing of it needs Django's test case where there is a database."""

    @override_settings(EPICA_MAIL={"DEFAULT_TRANSPORT": "smtp"})
    @queued_mail()
    def test_other_overrides_hold_within(self) -> None:
        send()
        self.assertEqual(assert_email_queued(1)[0].transport, "smtp")  # noqa: PT009


CARELESS_TEST = """
from django.core import mail
from django.core.mail.backends.smtp import EmailBackend

def test_of_a_site():
    named = {"alias": "smtp"} if hasattr(mail, "mailers") else {}
    try:
        EmailBackend(host="127.0.0.1", port=1, **named).open()
    except (AssertionError, OSError):
        pass
"""


def test_the_page_on_testing_runs_in_the_example_project_and_its_option_guards_it(
    pytester,
) -> None:
    page = (ROOT / "docs" / "how-to" / "testing.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    pytester.makepyfile(**{f"test_block_{number}": block for number, block in enumerate(found)})
    pytester.makepyfile(test_careless=CARELESS_TEST)
    (options,) = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    pytester.makeini(f"{options}pythonpath = {ROOT}/example_project\n")
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--ds=shopsite.settings")
    ran.assert_outcomes(passed=7, errors=1)
    ran.stdout.fnmatch_lines(["*RealTransportOpened: The test tried to open *smtp.EmailBackend*"])
