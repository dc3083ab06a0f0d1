"""What the page "DKIM and DNS" shows runs: keys by its commands, mail signed by its settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
from django.core.mail import EmailMessage

from django_epica_mail import outbox
from django_epica_mail.monitoring.dns import sender_records
from django_epica_mail.transports import connection, dkim

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "dkim-and-dns.md"


def blocks(kind: str) -> list[str]:
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's commands want openssl")
def test_keys_made_by_the_page_sign_as_its_settings_say(
    smtp, use_options, deliver, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line[2:] for it in blocks("console") for line in it.splitlines()]
    for command in [it for it in commands if it.startswith("openssl")]:
        subprocess.run(command.split(), check=True, capture_output=True)
    monkeypatch.setenv("DKIM_KEY_NEWS", Path("dkim-ed25519.pem").read_text())
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)  # noqa: S102 - our own page
    options = names["EPICA_MAIL"]["TRANSPORTS"]["smtp"]["OPTIONS"]
    use_options(**{**options, "host": "127.0.0.1", "port": smtp.port, "use_tls": False})
    senders = ("a@shop.example.com", "a@news.example.com", "a@example.net")
    for sender in senders:
        outbox.enqueue(EmailMessage("S", "B", sender, ["to@example.org"]), transport="smtp")
    deliver()
    signer: Any = connection.build("smtp").signer  # type: ignore[attr-defined]
    records = {f"{it.selector}._domainkey.{it.domain}.": it.record.encode() for it in signer.keys}

    def selectors(content: bytes) -> list[str]:
        found = re.findall(rb"^DKIM-Signature:.*? s=(\w+);", content, re.MULTILINE | re.DOTALL)
        for index in range(len(found)):
            judge = dkimpy.DKIM(content)
            assert judge.verify(idx=index, dnsfunc=lambda name, timeout=5: records[name.decode()])
        return [it.decode() for it in found]

    arrived = {it.sender: selectors(it.content) for it in smtp.accepted}
    assert arrived == dict(zip(senders, (["r1", "e1"], ["n1"], []), strict=True))


def test_the_page_lists_exactly_the_keys_and_levels() -> None:
    page = PAGE.read_text("utf-8")
    table = page.split("| key | what it is |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == dkim._KEYS
    assert all(f"{level} " in page for level in sender_records.LEVELS)
