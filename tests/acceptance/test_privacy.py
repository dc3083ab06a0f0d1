"""Test encrypted mail and a staging site with a real worker and a real database."""

from __future__ import annotations

import json
import sqlite3
from email import message_from_bytes, policy
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.core.mail import send_mail as django_send_mail

from django_epica_mail import outbox
from django_epica_mail.tasks import send_bulk_emails_task

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite
    from tests.acceptance.site import Site

SECRET = "the-secret-of-the-mail"
STAGING = "staging@example.net"


# -- run in the site


def send() -> None:
    message = EmailMessage("Attached", f"Body: {SECRET}", None, ["ann@example.org"])
    message.attach("a.txt", f"Attached: {SECRET}", "text/plain")
    outbox.enqueue(message, keep_content="never")
    django_send_mail("Plain", f"Body: {SECRET}", None, ["bob@example.org", "cy@example.org"])
    entry = {"subject": "Bulk", "message": f"Body: {SECRET}", "recipient_list": ["d@example.org"]}
    send_bulk_emails_task.delay([entry])


# -- tests


def database_file(site: Site) -> bytes:
    """Return the bytes of the site's database file, including its write-ahead log."""
    path = site.database_url.removeprefix("sqlite://")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with open(path, "rb") as file:
        return file.read()


def test_encrypted_mail_survives_a_key_change(
    open_site: OpenSite,
) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    site = open_site(ENCRYPTION_KEYS=[old])
    site.call(send)
    assert SECRET.encode() not in database_file(site)
    assert b"ann@example.org" in database_file(site), "the file contains the mail"

    site.env["SHOP_EPICA_MAIL"] = json.dumps({"ENCRYPTION_KEYS": [new, old]})
    assert site.command("reencrypt") == {"renewed": 4, "current": 0, "unreadable": 0}
    site.env["SHOP_EPICA_MAIL"] = json.dumps({"ENCRYPTION_KEYS": [new]})
    site.start_worker()
    site.wait_for(sent=3)
    arrived = [message_from_bytes(it.content, policy=policy.default) for it in site.smtp.accepted]
    assert sorted(str(mail["Subject"]) for mail in arrived) == ["Attached", "Bulk", "Plain"]
    for mail in arrived:
        for part in mail.walk():
            if not part.is_multipart():
                assert SECRET in part.get_content()
    assert SECRET.encode() not in database_file(site)


def test_a_staging_site_redirects_all_mail(
    open_site: OpenSite,
) -> None:
    site = open_site(KEEP_CONTENT="until_sent", ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    site.call(send)  # as the production site, whose rows staging copies
    production = json.loads(site.env["SHOP_EPICA_MAIL"])
    site.env["SHOP_EPICA_MAIL"] = json.dumps({**production, "REDIRECT_ALL_TO": [STAGING]})
    site.start_worker()
    site.wait_for(sent=3)
    assert {it.recipients for it in site.smtp.accepted} == {(STAGING,)}
    subjects = {message_from_bytes(it.content)["Subject"] for it in site.smtp.accepted}
    assert subjects == {
        "[to ann@example.org] Attached",
        "[to bob@example.org, cy@example.org] Plain",
        "[to d@example.org] Bulk",
    }
    assert set(site.arrivals()) == set(site.message_ids())
