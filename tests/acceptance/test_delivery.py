"""Test the way of a mail from the site to the mail server, on real servers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from contextlib import suppress
from email import message_from_bytes
from typing import TYPE_CHECKING

import django
import pytest
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from devservers.process import wait_until
from devservers.smtp_faults import DomainLimit, delay, refuse
from tests.acceptance.inside import in_processes

if TYPE_CHECKING:
    from devservers.smtp_inbox import AcceptedMessage
    from tests.acceptance.conftest import OpenSite

databases = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])


def subjects(messages: list[AcceptedMessage]) -> set[str]:
    return {str(message_from_bytes(message.content)["Subject"]) for message in messages}


# -- run in the site


def send_every_kind() -> None:
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


class UndoError(Exception):
    """Fails a request or ends a transaction."""


def view(request: HttpRequest, what: str) -> HttpResponse:
    from django.core.mail import send_mail

    send_mail(f"view: {what}", "Body", None, ["to@example.com"])
    if what == "fails":
        raise UndoError
    return HttpResponse()


async def async_view(request: HttpRequest) -> HttpResponse:
    from asgiref.sync import sync_to_async

    await sync_to_async(view)(request, "async")
    with suppress(UndoError):
        await sync_to_async(transaction.atomic(view))(request, "fails")
    return HttpResponse()


urlpatterns = [path("async", async_view), path("<what>", view)]


def answer_requests() -> None:
    from django.db import connection
    from django.test import AsyncClient, Client, override_settings

    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"]):
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        client = Client(raise_request_exception=False)
        assert client.get("/works").status_code == 200
        assert client.get("/fails").status_code == 500
        connection.settings_dict["ATOMIC_REQUESTS"] = False
        assert asyncio.run(AsyncClient().get("/async")).status_code == 200


def send_many(processes: int, each: int) -> None:
    from django.core.mail import send_mail

    def work(number: int) -> None:
        for count in range(each):
            send_mail(f"{number}.{count}", "Body", None, ["to@example.com"])

    in_processes(processes, work)


def queue_backlog(number: int, *, rings: int) -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail.broker import doorbell

    with transaction.atomic():  # the commit rings once
        for count in range(number):
            EmailMessage(str(count), "Body", None, ["to@example.com"]).send()
    for _ in range(rings - 1):
        assert doorbell.ring("emails")


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


# -- tests


@databases
def test_every_kind_of_mail_arrives_once(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind)
    site.start_worker()
    site.call(send_every_kind)
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
    site.call(send_every_kind)
    with site.redis.client() as client:
        rings = client.lrange("emails", 0, -1)
        # In addition to the rings, only the binding of lists to queues.
        keys = {key for key in client.scan_iter() if not key.startswith(b"_kombu.binding")}
        assert keys == {b"emails"}
    assert rings
    for ring in rings:
        body = base64.b64decode(json.loads(ring)["body"])
        args, kwargs, _ = json.loads(body)
        assert (args, list(kwargs)) == (["emails"], ["rung_at"])
        for secret in (b"secret", b"example.com", b"plain", b"html"):
            assert secret not in ring
            assert secret not in body


@databases
def test_rolled_back_mail_is_never_sent(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind)
    site.start_worker()
    site.call(roll_back)
    site.wait_for(sent=2)
    assert subjects(site.smtp.accepted) == {"savepoint: before", "savepoint: after"}


@databases
def test_a_failing_request_sends_nothing(open_site: OpenSite, kind: str) -> None:
    site = open_site(kind)
    site.start_worker()
    site.call(answer_requests)
    site.wait_for(sent=2)
    assert subjects(site.smtp.accepted) == {"view: works", "view: async"}


@databases
def test_concurrent_producers_and_workers_send_each_mail_once(
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
    site.smtp.inject(delay(0.01, "content"))  # so that no worker finishes before the others start
    site.start_workers(4, concurrency=1)
    with site.redis.client() as client:
        client.config_resetstat()
    site.call(queue_backlog, 300, rings=4)
    site.wait_for(sent=300, timeout=60)
    site.require_each_arrived_once(300)
    wait_until(lambda: site.waiting_rings() == 0, timeout=5, what="the last ring to be consumed")
    with site.redis.client() as client:
        assert client.info("commandstats")["cmdstat_lpush"]["calls"] < 20
    assert site.fetch("SELECT count(DISTINCT worker) FROM epica_mail_emaillog") > [(1,)]


def test_a_refused_mail_fails_alone_and_keeps_the_reply(open_site: OpenSite) -> None:
    site = open_site()
    site.smtp.inject(refuse("rcpt", 550, "5.1.1 Gone", recipient=lambda a: a.startswith("no")))
    site.smtp.inject(refuse("content", 554, "5.7.1 Spam", recipient=lambda a: a.startswith("sp")))
    site.start_worker()
    site.call(send_to, ["a@example.com"], ["no@example.com"], ["sp@example.com"], ["b@example.com"])
    site.wait_for(sent=2, failed=2)
    rows = site.fetch(
        "SELECT failure_code, reply, attempts FROM epica_mail_emaillog "
        "WHERE status = 'failed' ORDER BY failure_code"
    )
    assert rows == [(550, "5.1.1 Gone", 1), (554, "5.7.1 Spam", 1)]
    assert [message.recipients for message in site.smtp.accepted] == [
        ("a@example.com",),
        ("b@example.com",),
    ]


def test_other_recipients_get_mail_that_one_refuses(open_site: OpenSite) -> None:
    site = open_site()
    site.smtp.inject(refuse("rcpt", 550, "5.1.1 Gone", recipient=lambda a: a.startswith("no")))
    site.start_worker()
    site.call(send_to, ["no@example.com", "good@example.com"])
    site.wait_for(sent=1)
    assert [message.recipients for message in site.smtp.accepted] == [("good@example.com",)]
    assert site.fetch(
        "SELECT address, outcome, code, reply FROM epica_mail_emailrecipient ORDER BY position"
    ) == [("no@example.com", "refused", 550, "5.1.1 Gone"), ("good@example.com", "", None, "")]


def test_a_retry_for_one_recipient_sends_others_no_copy(
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


def send_to_two_domains() -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    domains = ["slow.example"] * 90 + ["fast.example"] * 30
    outbox.enqueue_many(
        EmailMessage("S", "B", None, [f"to{number}@{domain}"])
        for number, domain in enumerate(domains)
    )


def test_rings_ahead_of_their_time_carry_a_slowed_domain_on(open_site: OpenSite) -> None:
    """No beat runs, so nobody sweeps: each turn rings for the next."""
    site = open_site(kind="postgresql")
    limit = DomainLimit("slow.example", 5)
    site.smtp.inject(limit)
    site.start_worker()
    began = time.monotonic()
    site.call(send_to_two_domains)
    wait_until(lambda: len(limit.taken) >= 20, timeout=30, what="20 mails to the slow domain")
    assert 20 / (time.monotonic() - began) > 1
    fast = [it for it in site.smtp.accepted if it.recipients[0].endswith("fast.example")]
    assert len(fast) == 30
    assert len(limit.refused) <= 40


if django.VERSION >= (6, 1):

    def test_an_alias_selects_the_queue_or_bypasses_it(open_site: OpenSite) -> None:
        site = open_site()
        site.call(send_by_alias)
        assert site.fetch("SELECT subject, queue FROM epica_mail_emaillog") == [
            ("bulk", "bulk_emails")
        ]
        assert subjects(site.smtp.accepted) == {"direct"}
