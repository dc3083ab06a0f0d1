"""From what comes back by mail to events and the suppression list; and who may cause that."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import signals, suppression
from django_epica_mail.models import EmailEvent, EmailLog, EmailRecipient, Suppression
from django_epica_mail.tracking.bounces import incoming, verp
from django_epica_mail.tracking.bounces.incoming import Received
from tests.returned import returned

pytestmark = pytest.mark.django_db
GONE = "gone@example.net"
PATTERN = "bounces+{id}@shop.example.com"
RECORDED, KNOWN = Received.RECORDED, Received.KNOWN


@pytest.fixture
def sent(queue_mail: Any, smtp: Any, deliver: Any) -> EmailLog:
    """Send a mail to one recipient."""
    log = queue_mail(GONE)
    deliver()
    return log


def come_back(name: str, log: EmailLog, *, signed: bool = True, **marks: str) -> Received:
    """Receive a report about a mail."""
    to = verp.address(PATTERN, log.pk) if signed else "bounces@shop.example.com"
    return incoming.receive(returned(name, to=to, message_id=log.message_id, **marks))


def events() -> list[tuple[str, str, str]]:
    rows = EmailEvent.objects.order_by("created_at", "pk")
    return list(rows.values_list("kind", "address", "reason"))


# -- what follows


@pytest.mark.parametrize(
    "name",
    [
        *("postfix", "exim", "exim-text", "sendmail", "qmail", "microsoft365", "gmail", "yahoo"),
        *("amazon-ses", "haraka", "opensmtpd", "mimecast"),
    ],
)
def test_a_bounce_for_good_suppresses_the_address(sent, name: str) -> None:
    assert come_back(name, sent) is RECORDED
    assert events() == [("bounced", GONE, "permanent")]
    entry = Suppression.objects.get()
    assert (entry.address, entry.reason, entry.note) == (GONE, "bounce", "mailbox: bounced")
    event = EmailEvent.objects.get()
    assert (event.email_id, event.source) == (sent.pk, "mailbox")
    assert event.reply


def test_the_next_mail_to_the_address_is_not_sent(sent, smtp, queue_mail, deliver) -> None:
    come_back("postfix", sent)
    log = queue_mail(GONE)
    deliver()
    log.refresh_from_db()
    assert (log.status, len(smtp.accepted)) == ("suppressed", 1)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("postfix-delayed", ("deferred", GONE, "")),
        ("mailbox-full", ("bounced", GONE, "transient")),
        ("absence-exchange", ("autoresponded", GONE, "")),
        ("absence-vacation", ("autoresponded", GONE, "")),
    ],
)
def test_what_may_pass_is_recorded_and_suppresses_nobody(sent, name: str, event: Any) -> None:
    assert come_back(name, sent) is RECORDED
    assert events() == [event]
    assert not Suppression.objects.exists()


@pytest.mark.parametrize("name", ["feedback", "feedback-outlook"])
def test_a_complaint_suppresses_the_address(sent, name: str) -> None:
    assert come_back(name, sent) is RECORDED
    assert events() == [("complained", GONE, "")]
    assert Suppression.objects.get().reason == "complaint"


def test_opting_out_concerns_the_category_of_the_mail(queue_mail, smtp, deliver) -> None:
    log = queue_mail(GONE, category="news")
    deliver()
    content = returned("feedback", to=verp.address(PATTERN, log.pk))
    incoming.receive(content.replace(b"Feedback-Type: abuse", b"Feedback-Type: opt-out"))
    assert suppression.is_suppressed(GONE, "news")
    assert not suppression.is_suppressed(GONE, "orders")


def test_a_bounce_of_forwarded_mail_concerns_the_address_it_was_sent_to(sent) -> None:
    come_back("postfix", sent, recipient="elsewhere@forwarded.example")
    assert events() == [("bounced", GONE, "permanent")]
    assert not suppression.is_suppressed("elsewhere@forwarded.example")


def test_the_receivers_of_a_site_are_told(sent, django_capture_on_commit_callbacks) -> None:
    heard = []

    def hear(event: EmailEvent, **_: object) -> None:
        heard.append((event.kind, event.email_id))

    signals.email_event.connect(hear)
    try:
        for _ in range(2):
            with django_capture_on_commit_callbacks(execute=True):
                come_back("postfix", sent)
    finally:
        signals.email_event.disconnect(hear)
    assert heard == [("bounced", sent.pk)]


def test_a_bounce_proves_that_a_mail_of_unknown_outcome_was_accepted(
    smtp, queue_mail, deliver
) -> None:
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(GONE, on_unknown="hold")
    deliver()
    log.refresh_from_db()
    assert log.status == "unknown"
    come_back("postfix", log)
    log.refresh_from_db()
    assert log.status == "sent"


def test_an_automatic_reply_proves_nothing(smtp, queue_mail, deliver) -> None:
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(GONE, on_unknown="hold")
    deliver()
    come_back("absence-vacation", log)
    log.refresh_from_db()
    assert log.status == "unknown"


# -- twice, late, and about nothing of ours


def test_a_report_that_comes_twice_is_one_event(sent) -> None:
    assert [come_back("postfix", sent) for _ in range(3)] == [RECORDED, KNOWN, KNOWN]
    assert len(events()) == 1


def test_different_servers_reports_of_one_fact_are_one_event(sent) -> None:
    come_back("postfix", sent)
    assert come_back("exim", sent) is KNOWN


def test_a_delay_and_then_a_bounce_are_two_events(sent) -> None:
    come_back("postfix-delayed", sent)
    come_back("postfix", sent)
    assert [kind for kind, *_ in events()] == ["deferred", "bounced"]


@pytest.mark.parametrize("days", [-1000, 1000])
def test_the_time_of_a_report_stays_between_the_mail_and_now(sent, days: int) -> None:
    day = timezone.now() + timedelta(days=days)
    address = verp.address(PATTERN, sent.pk)
    content = returned("postfix", to=address).replace(
        b"Mon, 12 Oct 2026 09:14:07 +0200", day.strftime("%a, %d %b %Y %H:%M:%S +0000").encode()
    )
    incoming.receive(content)
    sent.refresh_from_db()
    assert sent.created_at <= EmailEvent.objects.get().at <= timezone.now()


def test_reports_about_other_mail_leave_nothing_behind(sent) -> None:
    assert incoming.receive(returned("postfix")) is Received.UNMATCHED
    assert incoming.receive(b"Subject: offer\n\nBuy!") is Received.UNRECOGNISED
    address = verp.address(PATTERN, sent.pk)
    sent.delete()
    assert incoming.receive(returned("postfix", to=address)) is Received.UNMATCHED
    assert events() == []


def test_the_envelopes_recipient_ties_a_report_whose_headers_hide_it(sent) -> None:
    content = returned("qmail").replace(b"Return-Path: <bounces@", b"X: <bounces@")
    assert incoming.receive(content) is Received.UNMATCHED
    to = verp.address(PATTERN, sent.pk)
    assert incoming.receive(content, envelope_to=to) is RECORDED


# -- who may cause it


FORGED = ["postfix", "exim-text", "qmail", "yahoo", "feedback", "feedback-outlook"]


@pytest.mark.parametrize("name", FORGED)
def test_whoever_knows_a_message_id_suppresses_nobody(sent, name: str) -> None:
    assert come_back(name, sent, signed=False) is RECORDED
    ((_, address, reason),) = events()
    assert (address, reason) == (GONE, "unauthenticated")
    assert not Suppression.objects.exists()


def test_whoever_knows_a_message_id_confirms_nothing(smtp, queue_mail, deliver) -> None:
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(GONE, on_unknown="hold")
    deliver()
    come_back("postfix", log, signed=False)
    log.refresh_from_db()
    assert log.status == "unknown"


def test_a_forged_report_does_not_keep_out_the_true_one(sent) -> None:
    come_back("postfix", sent, signed=False)
    assert come_back("postfix", sent) is RECORDED
    assert suppression.is_suppressed(GONE)


def test_a_setting_believes_what_is_not_signed(sent, epica_mail) -> None:
    epica_mail(TRUST_UNSIGNED_BOUNCES=True)
    come_back("postfix", sent, signed=False)
    assert events() == [("bounced", GONE, "permanent")]
    assert suppression.is_suppressed(GONE)


def test_a_signature_for_another_mail_concerns_that_mail_alone(sent, queue_mail, deliver) -> None:
    other = queue_mail("mallory@example.com")
    deliver()
    to = verp.address(PATTERN, other.pk)
    incoming.receive(returned("postfix", to=to, message_id=sent.message_id, recipient=GONE))
    assert events() == [("bounced", "mallory@example.com", "permanent")]
    assert not suppression.is_suppressed(GONE)


def test_one_of_several_recipients_cannot_have_the_others_suppressed(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    log = queue_mail("mallory@example.com", GONE)
    deliver()
    assert come_back("postfix", log) is RECORDED  # Mallory sees the return address, too
    assert events() == [("bounced", GONE, "unauthenticated")]
    assert not Suppression.objects.exists()
    epica_mail(TRUST_UNSIGNED_BOUNCES=True)
    come_back("postfix", log)
    assert [entry.address for entry in Suppression.objects.all()] == [GONE]


def test_a_stranger_in_a_report_about_several_recipients_is_nobody(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(TRUST_UNSIGNED_BOUNCES=True)
    log = queue_mail("a@example.com", "b@example.com")
    deliver()
    come_back("postfix", log, recipient="stranger@example.com")
    assert events() == [("bounced", "", "permanent")]
    assert not Suppression.objects.exists()


def test_a_report_of_many_recipients_costs_what_its_mail_has(
    sent, django_assert_max_num_queries
) -> None:
    group = "\r\nFinal-Recipient: rfc822; x@example.com\r\nAction: failed\r\nStatus: 5.1.1\r\n"
    address = verp.address(PATTERN, sent.pk)
    content = returned("opensmtpd", to=address).replace(
        b"\r\nFinal-R", group.encode() * 90 + b"\r\nFinal-R", 1
    )
    with django_assert_max_num_queries(40):
        incoming.receive(content)
    assert events() == [("bounced", GONE, "permanent")]


def test_whatever_is_sent_the_events_of_a_mail_stay_few(sent) -> None:
    for number in range(30):
        come_back("postfix", sent, signed=False, recipient=f"{number}@example.com")
    assert len(events()) == 1


# -- refused at once


def refused_at_once(smtp: Any, log: EmailLog, deliver: Any) -> str:
    deliver()
    log.refresh_from_db()
    return str(log.status)


@pytest.mark.parametrize("is_set", [False, True])
def test_an_address_refused_as_unknown_is_suppressed_by_setting(
    smtp, queue_mail, deliver, epica_mail, is_set: bool
) -> None:
    epica_mail(SUPPRESS_REFUSED=is_set)
    smtp.inject(refuse("rcpt", 550, "5.1.1 no such user"))
    log = queue_mail(GONE)
    assert refused_at_once(smtp, log, deliver) == "failed"
    assert suppression.is_suppressed(GONE) is is_set
    if is_set:
        assert events() == [("bounced", GONE, "permanent")]
        assert EmailEvent.objects.get().source == "epica_mail"


@pytest.mark.parametrize(
    ("stage", "code", "text"),
    [
        ("rcpt", 550, "5.7.1 spam"),
        ("rcpt", 552, "5.2.2 mailbox full"),
        ("rcpt", 450, "4.2.1 mailbox busy"),
        ("mail", 550, "5.1.8 bad sender"),
        ("content", 554, "5.7.1 user unknown to the spam filter"),
    ],
)
def test_another_refusal_suppresses_nobody(
    smtp, queue_mail, deliver, epica_mail, stage: Any, code: int, text: str
) -> None:
    epica_mail(SUPPRESS_REFUSED=True, MAX_RETRIES=0)
    smtp.inject(refuse(stage, code, text))
    assert refused_at_once(smtp, queue_mail(GONE), deliver) == "failed"
    assert not Suppression.objects.exists()


def test_of_several_refused_recipients_only_the_unknown_are_suppressed(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(SUPPRESS_REFUSED=True)
    smtp.inject(refuse("rcpt", 550, "5.1.1 no such user", recipient=GONE.__eq__))
    smtp.inject(refuse("rcpt", 550, "5.7.1 spam"))
    log = queue_mail(GONE, "spam@example.com")
    assert refused_at_once(smtp, log, deliver) == "failed"
    assert EmailRecipient.objects.filter(email=log, outcome="refused").count() == 2
    assert [entry.address for entry in Suppression.objects.all()] == [GONE]


@pytest.mark.parametrize("later", ["accepted", "retried"])
def test_a_recipient_refused_beside_others_is_suppressed_at_once(
    smtp, queue_mail, deliver, epica_mail, later: str
) -> None:
    epica_mail(SUPPRESS_REFUSED=True)
    smtp.inject(refuse("rcpt", 550, "5.1.1 no such user", recipient=GONE.__eq__))
    if later == "retried":
        smtp.inject(refuse("rcpt", 450, "4.2.1 busy", recipient="other@example.com".__eq__))
    log = queue_mail(GONE, "other@example.com")
    assert refused_at_once(smtp, log, deliver) == {"accepted": "sent", "retried": "retrying"}[later]
    assert [entry.address for entry in Suppression.objects.all()] == [GONE]
    assert events() == [("bounced", GONE, "permanent")]


@pytest.mark.parametrize("mark", ['"', "a.", "a "])
def test_a_report_whose_recipients_take_long_to_parse_is_received_soon(sent, mark: str) -> None:
    long = mark * (1900 // len(mark))
    names = "".join(f"Original-Recipient: rfc822;{long}{number}\n" for number in range(250))
    content = (
        f"To: {verp.address(PATTERN, sent.pk)}\n"
        "Content-Type: multipart/report; boundary=b\n\n--b\n"
        f"Content-Type: message/delivery-status\n\n{names}"
        f"Final-Recipient: rfc822; {GONE}\nAction: failed\nStatus: 5.1.1\n\n--b--\n"
    )
    began = time.process_time()
    assert incoming.receive(content.encode()) is RECORDED
    assert time.process_time() - began < 1.5  # it took 5 seconds and more
    assert events() == [("bounced", GONE, "permanent")]
