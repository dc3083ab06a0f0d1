"""A server's limit of mails for one connection is not a verdict on the mail that meets it."""

from __future__ import annotations

import time

import pytest
from django.core.mail import EmailMessage

from devservers.smtp_faults import Reply, Rule
from django_epica_mail.models import EmailLog
from django_epica_mail.transports import connection as transport_connection

SAYINGS = [
    (452, "Too many messages this session"),
    (450, "Enough"),
    (421, "Too many messages this session"),
    (550, "Too many messages"),
    (554, "5.7.0 Too many messages this session"),
]


def session_limit(most: int, code: int, text: str, stage: str = "mail") -> Rule:
    return Rule(stage, Reply(code, text), lambda session: session.accepted >= most)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "content"])
@pytest.mark.parametrize(("code", "text"), SAYINGS)
def test_a_mail_beyond_the_limit_is_sent_at_once_and_uses_one_try(
    smtp, queue_mail, deliver, epica_mail, code, text, stage
) -> None:
    epica_mail(CONNECTIONS=1)  # a slow machine would open more, whose mails count apart
    smtp.inject(session_limit(3, code, text, stage))
    for _ in range(12):
        queue_mail()
    before = smtp.connections.opened
    assert deliver() == 12
    assert set(EmailLog.objects.values_list("status", "tries", "attempts")) == {("sent", 1, 1)}
    assert len(smtp.accepted) == 12
    assert smtp.connections.opened == before + 4


def test_a_limit_that_showed_is_remembered_for_an_hour(
    smtp, queue_mail, deliver, epica_mail, monkeypatch
) -> None:
    epica_mail(CONNECTIONS=1)
    rule = smtp.inject(session_limit(3, 452, "Too many messages this session"))
    for _ in range(12):
        queue_mail()
    deliver()
    assert rule.hits == 1, "each connection met the limit"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    assert transport_connection._session_limits.most("smtp") == float("inf")


@pytest.mark.parametrize(("code", "text"), [(554, "5.7.1 Spam"), (450, "Later")])
def test_the_same_answer_on_a_fresh_connection_is_the_verdict(
    smtp, queue_mail, deliver, epica_mail, code, text
) -> None:
    epica_mail(CONNECTIONS=1)
    bad = smtp.inject(
        Rule("content", Reply(code, text), lambda it: "bad@example.com" in it.recipients)
    )
    for _ in range(4):
        queue_mail()
        queue_mail("bad@example.com")
    deliver()
    logs = EmailLog.objects.filter(recipients__address="bad@example.com")
    assert set(logs.values_list("attempts", flat=True)) == {1}
    assert bad.hits == 4 + 1, "only the first was asked twice"
    assert EmailLog.objects.filter(status="sent").count() == 4


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "content"])
@pytest.mark.parametrize(("code", "text"), [it for it in SAYINGS if it[0] > 500])
def test_a_verdict_on_one_mail_makes_no_verdict_of_the_limit(
    smtp, queue_mail, deliver, epica_mail, code, text, stage
) -> None:
    epica_mail(CONNECTIONS=1)
    smtp.inject(
        Rule("content", Reply(code, "5.7.1 Spam"), lambda it: "bad@example.com" in it.recipients)
    )
    smtp.inject(session_limit(3, code, text, stage))
    queue_mail()
    queue_mail("bad@example.com")
    for _ in range(8):
        queue_mail()
    deliver()
    failed = EmailLog.objects.exclude(status="sent")
    assert list(failed.values_list("recipients__address", flat=True)) == ["bad@example.com"]


@pytest.mark.parametrize("text", ["5.1.1 No such user", "5.2.1 Disabled"])
def test_a_reply_about_the_recipient_is_believed_at_once(smtp, queue_mail, deliver, text) -> None:
    bad = smtp.inject(Rule("rcpt", Reply(550, text), lambda it: it.recipient[:3] == "bad"))
    queue_mail()
    queue_mail("bad@example.com")
    deliver()
    assert bad.hits == 1


def test_a_first_mail_that_is_refused_is_not_offered_twice(smtp) -> None:
    bad = smtp.inject(Rule("content", Reply(450, "Later")))
    with transport_connection.connection("smtp") as connection:
        message = EmailMessage("S", "B", "a@example.com", ["b@example.com"])
        assert connection.send(message).failure is not None
    assert bad.hits == 1
