"""Test what comes back of mail, from the sending to what follows from it, with real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devservers.imap import IMAPServer
from devservers.process import wait_until
from tests.acceptance.databases import Databases
from tests.acceptance.places import EXAMPLE_PROJECT, REPOSITORY
from tests.acceptance.site import Site
from tests.returned import returned

PAGE = REPOSITORY / "docs" / "how-to" / "bounces.md"


@pytest.fixture
def imap() -> Iterator[IMAPServer]:
    with IMAPServer(user="bounces@example.com") as server:
        yield server


@pytest.fixture
def site(databases: Databases, tmp_path: Path, imap: IMAPServer) -> Iterator[Site]:
    """Open the shop with a worker, its mailbox, and the return address that the page shows."""
    options = page_settings()["TRANSPORTS"]["smtp"]["OPTIONS"]
    env = {"SHOP_SMTP_OPTIONS": json.dumps({"envelope_from": options["envelope_from"]})}
    uri = page_settings()["BOUNCE_MAILBOX"]["URI"].replace("imaps:", "imap:")
    uri = uri.replace("imap.example.com", f"127.0.0.1:{imap.port}")
    mailbox = {"URI": uri, "PASSWORD": imap.password}
    site = Site(databases, "sqlite", tmp_path, {"BOUNCE_MAILBOX": mailbox}, env)
    try:
        site.start_worker()
        yield site
    finally:
        site.close()


def blocks(language: str) -> list[str]:
    """Return the page's blocks of code in a language."""
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def page_settings() -> dict[str, Any]:
    """Run the first code of the page, and return its ``EPICA_MAIL``."""
    block = blocks("python")
    names: dict[str, Any] = {}
    exec(block[0], names)  # noqa: S102 - our own page
    found: dict[str, Any] = names["EPICA_MAIL"]
    return found


def send(addresses: list[str]) -> None:
    from django_epica_mail.tasks import send_email_async

    for address in addresses:
        send_email_async("Subject", "Text", None, [address])


def read_by_worker() -> None:
    from django_epica_mail.tasks import read_bounces

    read_bounces.delay()


def bounce_of(site: Site, address: str, name: str) -> tuple[str, bytes]:
    """Return where the mail to an address bounces to, and what a server writes there."""
    (mail,) = (it for it in site.smtp.accepted if it.recipients == (address,))
    assert re.fullmatch(r"bounces\+[a-z2-7]{42}@example\.com", mail.sender)
    report = returned(name, to=mail.sender, message_id=mail.message_id, recipient=address)
    return mail.sender, report


def pipe(site: Site, to: str, report: bytes) -> list[bytes]:
    """Run the page's command as a mail server does; return the words that it writes."""
    (script,) = blocks("shell")
    arguments = re.findall(r"manage\.py (epica_mail .*)$", script, re.MULTILINE)[0].split()
    done = subprocess.run(
        [sys.executable, "manage.py", *(to if it == '"$1"' else it for it in arguments)],
        cwd=EXAMPLE_PROJECT,
        env={**os.environ, **site.env},
        input=report,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.split()


def test_mail_that_bounces_is_not_sent_again_and_a_forged_bounce_does_nothing(site, imap) -> None:
    names = ("postfix", "feedback", "absence-exchange", "victim", "qmail")
    addresses = [f"{name}@example.net" for name in names]
    site.call(send, addresses)
    site.wait_for(sent=5)
    for name in names[:3]:
        imap.deliver(bounce_of(site, f"{name}@example.net", name)[1])
    sender, forged = bounce_of(site, "victim@example.net", "postfix")
    imap.deliver(forged.replace(sender.encode(), b"bounces@example.com"))
    imap.deliver(returned("exim"))  # of mail that is not ours
    site.call(read_by_worker)
    events = "SELECT address, kind, reason FROM epica_mail_emailevent ORDER BY address"
    wait_until(lambda: len(site.fetch(events)) == 4, timeout=30, what="the events")
    assert pipe(site, *bounce_of(site, "qmail@example.net", "qmail")) == [b"received", b"recorded"]
    assert site.fetch(events) == [
        ("absence-exchange@example.net", "autoresponded", ""),
        ("feedback@example.net", "complained", ""),
        ("postfix@example.net", "bounced", "permanent"),
        ("qmail@example.net", "bounced", "permanent"),
        ("victim@example.net", "bounced", "unauthenticated"),
    ]
    site.call(send, addresses)
    site.wait_for(sent=7, suppressed=3)
    again = [mail.recipients[0] for mail in site.smtp.accepted[5:]]
    assert sorted(again) == ["absence-exchange@example.net", "victim@example.net"]


def send_bulk(category: str, names: list[str]) -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    messages = (EmailMessage("S", "M", None, [f"{name}@example.net"]) for name in names)
    outbox.enqueue_many(messages, category=category)


def send_single(category: str, name: str) -> None:
    from django_epica_mail.tasks import send_email_async

    send_email_async("S", "M", None, [f"{name}@example.net"], category=category)


def test_bulk_mail_that_people_complain_about_pauses_by_itself(site, imap) -> None:
    site.call(send_bulk, "news", [f"reader{number}" for number in range(100)])
    site.wait_for(sent=100)
    for number in range(3):
        imap.deliver(bounce_of(site, f"reader{number}@example.net", "feedback")[1])
    site.call(read_by_worker)
    complaints = "SELECT count(*) FROM epica_mail_emailevent WHERE kind = 'complained'"
    wait_until(lambda: site.fetch(complaints) == [(3,)], timeout=30, what="the complaints")
    site.celery[0].stop()
    # The sweep counts what happened a minute ago and longer.
    site.env |= {"DJANGO_SETTINGS_MODULE": "tests.acceptance.later_site", "SHOP_CLOCK_AHEAD": "120"}
    site.env["SHOP_EPICA_MAIL"] = json.dumps({"PAUSE_ON_REPUTATION": True})
    worker = site.start_worker()
    site.start_beat()
    paused = "SELECT scope, name FROM epica_mail_deliverygate WHERE paused"
    wait_until(lambda: site.fetch(paused) == [("category", "news")], timeout=30, what="the pause")
    site.call(send_bulk, "news", ["late1", "late2"])
    site.call(send_bulk, "offers", ["other1", "other2"])
    site.call(send_single, "news", "single")
    site.wait_for(sent=103, queued=2)
    report = "Bulk mail of the category news is paused until a person resumes it"
    assert report in worker.log_text()
    site.command("resume", "--category", "news")
    site.wait_for(sent=105)
    site.require_each_arrived_once(105)
