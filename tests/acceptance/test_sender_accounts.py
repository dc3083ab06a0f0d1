"""OAuth, DKIM and the doctor's view of the DNS, with real workers and servers of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import dkim
import dns.resolver
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.core.mail import EmailMultiAlternatives, send_mail

from devservers.authority import CLIENT_ID, CLIENT_SECRET, TENANT, TokenAuthority
from devservers.dns_server import DNSServer
from tests.acceptance.test_secrets import tables_with

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite

MAILBOX = "shop@example.com"


# -- inside the site


def send(number: int) -> None:
    for index in range(number):
        send_mail(f"Mail {index}", "Body", MAILBOX, ["to@example.org"])


def send_with_html() -> None:
    message = EmailMultiAlternatives("Şükran", "Merhaba\n.\n", MAILBOX, ["to@example.org"])
    message.attach_alternative("<p>Merhaba <b>dünya</b></p>", "text/html")
    message.attach("a.bin", b"\0\xff" * 500, "application/octet-stream")
    message.send()


# -- outside


def test_workers_log_in_with_tokens_and_leave_no_trace_of_them(
    open_site: OpenSite, tmp_path: Path
) -> None:
    site = open_site()
    with TokenAuthority(tmp_path, MAILBOX) as authority:
        site.smtp.accepts_token = authority.accepts
        oauth = {
            "provider": "microsoft",
            "authority": authority.url,
            "tenant": TENANT,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
        }
        site.env["SHOP_SMTP_OPTIONS"] = json.dumps({"username": MAILBOX, "oauth": oauth})
        site.env["REQUESTS_CA_BUNDLE"] = str(authority.certificate)
        site.env["SHOP_LOG_LEVEL"] = "DEBUG"
        site.env["SHOP_BROKER_OPTIONS"] = '{"socket_timeout": 5, "socket_connect_timeout": 5}'
        worker = site.start_worker(concurrency=1)
        assert site.command("doctor", "--open") == {"findings": []}
        site.call(send, 20)
        site.wait_for(sent=20)
        before = len(authority.issued)
        assert before == 2  # one for the doctor, one for all mail of the worker
        authority.revoke()
        site.smtp.cut_connections()
        site.call(send, 20)
        site.wait_for(sent=40)
        assert len(authority.issued) == before + 1
        site.require_each_arrived_once(40)
        worker.stop()
        secrets = [*authority.issued, CLIENT_SECRET]
        assert site.call(tables_with, secrets) == []
        with site.redis.client() as client:
            dumped = b"".join(client.dump(key) or b"" for key in client.keys("*"))
        written = dumped + b"".join(it.read_bytes() for it in site.folder.glob("*.log"))
        assert not any(secret.encode() in written for secret in secrets)


def test_the_doctor_says_what_to_publish_and_then_signed_mail_verifies(
    open_site: OpenSite, tmp_path: Path
) -> None:
    site = open_site()
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "dkim.pem").write_bytes(key)
    options = {"dkim": {"selector": "s1", "key_file": str(tmp_path / "dkim.pem")}}
    site.env["SHOP_SMTP_OPTIONS"] = json.dumps(options)
    site.start_worker()
    with DNSServer() as server:
        server.publish("mail.example.com", "A", "192.0.2.25")
        ask = ("doctor", "--dns", "--nameserver", server.address)
        for record in site.command(*ask, code=1)["dns"]:
            if record["publish"]:
                name, kind, value = record["publish"].split(" ", 2)
                value = value.replace("ADDRESS-OF-YOUR-SERVER", "192.0.2.25")
                server.publish(name, kind, f"{value}." if kind == "MX" else value)
        found = site.command(*ask)["dns"]
        levels = {it["name"]: it["level"] for it in found if it["transport"] != "direct"}
        assert (levels["DKIM"], levels["DMARC"], levels["MX"]) == ("ok", "ok", "ok")
        site.call(send_with_html)
        site.wait_for(sent=1)
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], server.port

        def published(name: bytes, timeout: int = 5) -> bytes:
            (record,) = resolver.resolve(name.decode(), "TXT")
            return b"".join(record.strings)

        content = site.smtp.accepted[0].content
        assert dkim.verify(content, dnsfunc=published)
        assert not dkim.verify(content.replace(b"Merhaba", b"Merhabo", 1), dnsfunc=published)
