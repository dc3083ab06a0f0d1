"""A mail's way from the site to the server, on real parts."""

from __future__ import annotations

from collections import Counter
from email import message_from_bytes
from typing import TYPE_CHECKING

import django
import pytest

from devservers.smtp_faults import refuse
from tests.acceptance.inside import in_processes

if TYPE_CHECKING:
    from devservers.smtp_inbox import AcceptedMessage
    from tests.acceptance.conftest import OpenSite

databases = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])


def subjects(messages: list[AcceptedMessage]) -> set[str]:
    return {str(message_from_bytes(message.content)["Subject"]) for message in messages}


# -- what the site does


def send_every_sort() -> None:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.forms import PasswordResetForm
    from django.core.mail import EmailMultiAlternatives, send_mail

    send_mail("plain", "A secret body", None, ["secret@example.com"])
    html = EmailMultiAlternatives("html", "Text", None, ["html@example.com"])
    html.attach_alternative("<p>HTML</p>", "text/html")
    html.attach("a.bin", b"\0attached", "application/octet-stream")
    html.send()
    get_user_model().objects.create_user("u", "user@example.com", "password-of-u")
    form = PasswordResetForm({"email": "user@example.com"})
    assert form.is_valid()
    form.save(domain_override="example.com")


def roll_back() -> None:
    from django.core.mail import send_mail
    from django.db import transaction

    class UndoError(Exception):
        pass

    def send(subject: str) -> None:
        send_mail(subject, "Body", None, ["to@example.com"])

    for undone in ("whole", "savepoint"):
        try:
            with transaction.atomic():
                send(f"{undone}: before")
                try:
                    with transaction.atomic():
                        send(f"{undone}: inside")
                        raise UndoError
                except UndoError:
                    if undone == "whole":
                        raise
                send(f"{undone}: after")
        except UndoError:
            pass


def send_many(processes: int, each: int) -> None:
    from django.core.mail import send_mail

    def work(number: int) -> None:
        for count in range(each):
            send_mail(f"{number}.{count}", "Body", None, ["to@example.com"])

    in_processes(processes, work)


def send_to(*recipients: list[str]) -> None:
    from django.core.mail import EmailMessage
    from django.db import transaction

    from django_epica_mail import outbox

    with transaction.atomic():
        for to in recipients:
            outbox.enqueue(EmailMessage(to[0], "Body", None, to))


def send_by_alias() -> None:
    from django.core.mail import send_mail

    for alias in ("bulk", "direct"):
        send_mail(alias, "Body", None, ["to@example.com"], using=alias)


# -- what comes of it


@databases
def test_every_sort_of_mail_arrives_once(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind)
    site.start_worker()
    site.call(send_every_sort)
    messages = site.smtp.wait_for(3)
    site.wait_for(sent=3)
    site.require_each_arrived_once(3)
    assert {"plain", "html"} < subjects(messages)
    (html,) = [message for message in messages if b"Subject: html" in message.content]
    parts = [part.get_content_type() for part in message_from_bytes(html.content).walk()]
    assert parts == [
        *("multipart/mixed", "multipart/alternative", "text/plain", "text/html"),
        "application/octet-stream",
    ]
    replies = site.fetch("SELECT code, reply FROM epica_mail_deliveryattempt")
    assert [code for code, _ in replies] == [250] * 3
    assert all(reply for _, reply in replies)


def test_the_broker_carries_no_content(open_site: OpenSite) -> None:
    site = open_site()
    site.call(send_every_sort)
    with site.redis.client() as client:
        rings = client.lrange("emails", 0, -1)
    assert rings
    for ring in rings:
        for secret in (b"secret", b"example.com", b"plain", b"html"):
            assert secret not in ring


@databases
def test_what_is_rolled_back_is_never_sent(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind)
    site.start_worker()
    site.call(roll_back)
    site.wait_for(sent=2)
    assert subjects(site.smtp.accepted) == {"savepoint: before", "savepoint: after"}


@databases
def test_ten_processes_queue_while_four_deliver_each_mail_once(
    open_site: OpenSite, kind: str
) -> None:
    site = open_site(kind)
    site.start_workers(2, concurrency=2)
    site.start_beat()
    site.call(send_many, 10, 20)
    site.wait_for(sent=200, timeout=60)
    site.require_each_arrived_once(200)


@databases
def test_four_workers_rung_at_once_share_a_backlog(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind, BATCH_SIZE=20)
    site.call(send_many, 1, 300)
    with site.redis.client() as client:
        ring = client.lrange("emails", 0, 0)[0]
        client.delete("emails")
        client.rpush("emails", *[ring] * 4)
    site.start_workers(4, concurrency=1)
    site.wait_for(sent=300, timeout=60)
    site.require_each_arrived_once(300)
    assert site.waiting_rings() == 0


def test_a_refused_mail_fails_alone_at_once_with_the_reply_kept(open_site: OpenSite) -> None:
    site = open_site()
    site.smtp.inject(refuse("rcpt", 550, "5.1.1 Gone", recipient=lambda a: a.startswith("no")))
    site.start_worker()
    site.call(send_to, ["a@example.com"], ["no@example.com"], ["b@example.com"])
    site.wait_for(sent=2, failed=1)
    rows = site.fetch("SELECT failure_code, reply FROM epica_mail_emaillog WHERE status = 'failed'")
    assert rows == [(550, "5.1.1 Gone")]


def test_an_accepted_recipient_gets_one_copy_though_another_is_tried_again(
    open_site: OpenSite,
) -> None:
    site = open_site(RETRY_DELAY=1)
    site.smtp.inject(
        refuse("rcpt", 451, "4.7.1 Grey", recipient=lambda a: a.startswith("grey"), times=1)
    )
    site.start_worker()
    site.start_beat()
    site.call(send_to, ["grey@example.com", "good@example.com"])
    site.wait_for(sent=1)
    copies = Counter(to for message in site.smtp.accepted for to in message.recipients)
    assert copies == {"grey@example.com": 1, "good@example.com": 1}


if django.VERSION >= (6, 1):

    def test_an_alias_decides_the_queue_or_goes_past_it(open_site: OpenSite) -> None:
        site = open_site()
        site.call(send_by_alias)
        assert site.fetch("SELECT subject, queue FROM epica_mail_emaillog") == [
            ("bulk", "bulk_emails")
        ]
        assert subjects(site.smtp.accepted) == {"direct"}
