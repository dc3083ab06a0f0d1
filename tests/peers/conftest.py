"""Provide sending with the other packages, and importing from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.management import call_command

from django_epica_mail.testing import no_real_transports, queued_mail


@pytest.fixture(autouse=True)
def _queue(
    db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    settings.MEDIA_ROOT = tmp_path
    # The default is one file per host, which a sender of another site may have locked.
    monkeypatch.setattr("post_office.lockfile.default_lockfile", str(tmp_path / "post_office"))
    with no_real_transports(), queued_mail():
        yield


@pytest.fixture
def import_from() -> Callable[..., dict[str, Any]]:
    """Run the import from one package, and return its report."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        output = StringIO()
        with suppress(SystemExit):  # it exits with 1 if rows were refused
            call_command(
                "epica_mail", "import", "--json", "--from", name, *arguments, stdout=output
            )
        report: dict[str, Any] = json.loads(output.getvalue())
        return report

    return run


@pytest.fixture
def full_message() -> EmailMultiAlternatives:
    """Return a mail with every feature that an import could lose."""
    message = EmailMultiAlternatives(
        "Siparişiniz: çay",
        "Teşekkürler.\nÇay yolda.",
        "Çaycı <shop@example.com>",
        ["Ayşe <ayse@example.com>"],
        cc=["cc@example.com"],
        bcc=["bcc@example.com"],
        reply_to=["help@example.com"],
        headers={"X-Order": "7"},
    )
    message.attach_alternative("<p>Teşekkürler. <b>Çay</b> yolda.</p>", "text/html")
    message.attach("fatura.txt", "Toplam: 42 ₺", "text/plain")
    message.attach("logo.png", b"\x89PNG\r\n\x1a\n\0\xff", "image/png")
    return message


@pytest.fixture
def send() -> Callable[..., None]:
    """Send a small mail with the backend of a package."""

    def send(backend: Any, subject: str = "Order", to: str = "a@example.com") -> None:
        backend().send_messages([EmailMessage(subject, "Thank you.", "shop@example.com", [to])])

    return send
