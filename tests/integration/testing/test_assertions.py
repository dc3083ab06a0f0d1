"""``assert_email_queued``: what it finds, and what it shows when it fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.mail import EmailMultiAlternatives

from django_epica_mail import outbox
from django_epica_mail.tasks import send_email_async
from django_epica_mail.testing import (
    assert_email_queued,
    assert_no_email_queued,
    drain_email_queue,
    queued_mail,
)
from tests.integration.testing.mails import send

pytestmark = pytest.mark.django_db


@queued_mail()
def test_every_expectation_can_be_met() -> None:
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
def test_a_failure_shows_the_closest_mail_and_its_differences() -> None:
    send("Order 7", "a@example.com", "Thank you.\nYours, the shop")
    send("News", "b@example.com")
    with pytest.raises(AssertionError) as caught:
        assert_email_queued(
            subject="Order 8", to=["a@example.com"], body="Thank you.\nYours, the tea shop"
        )
    assert str(caught.value).splitlines() == [
        "0 of 2 waiting e-mails match; expected at least one.",
        "Closest: 'Order 7' to a@example.com (queued in emails). "
        "Differences (- expected, + actual):",
        "  subject",
        "    - 'Order 8'",
        "    + 'Order 7'",
        "  body",
        "      Thank you.",
        "    - Yours, the tea shop",
        "    + Yours, the shop",
        "All waiting e-mails:",
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
def test_every_kind_of_expectation_can_fail(expected: dict[str, Any], shown: str) -> None:
    send()
    with pytest.raises(AssertionError) as caught:
        assert_email_queued(**expected)
    assert f"    {shown}" in str(caught.value).splitlines()


@queued_mail()
def test_the_number_of_mails_is_asserted_if_given() -> None:
    send()
    send()
    assert len(assert_email_queued()) == len(assert_email_queued(2)) == 2
    with pytest.raises(AssertionError, match=r"2 of 2 waiting e-mails match; expected 1\."):
        assert_email_queued(1, subject="Order")
    with pytest.raises(AssertionError, match="expected 0"):
        assert_no_email_queued(subject="Order")
    assert_no_email_queued(subject="News")


@queued_mail()
def test_mail_without_content_is_found_by_its_row() -> None:
    send_email_async(
        "Secret", "Text", None, ["a@example.com"], category="reset", keep_content="until_sent"
    )
    drain_email_queue()
    assert_email_queued(1, status="sent", category="reset")
    assert_no_email_queued(status="sent", subject="Secret")
    with pytest.raises(AssertionError, match="0 of 1 sent e-mails match; expected 1"):
        assert_email_queued(1, status="sent", subject="Secret")


def test_a_misspelt_expectation_is_refused() -> None:
    with pytest.raises(TypeError, match="'subjekt'"):
        assert_email_queued(subjekt="Order")


@queued_mail()
def test_a_failure_lists_only_the_first_mails() -> None:
    for number in range(12):
        send(f"Order {number}")
    with pytest.raises(AssertionError) as caught:
        assert_email_queued(subject="News")
    lines = str(caught.value).splitlines()
    assert lines[-2:] == ["  'Order 9' to a@example.com (queued in emails)", "  and 2 more"]
