"""Test that rows written by another version of Django are delivered after an upgrade."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage

from devservers.smtp import SMTPServer
from django_epica_mail import messages, outbox
from django_epica_mail.models import EmailAttachment, EmailLog
from tests import corpus

ENVELOPES = Path(__file__).parent.parent / "unit" / "messages" / "envelopes"
WRITTEN = [
    pytest.param(form, id=f"{path.stem}-{kind}")
    for path in sorted(ENVELOPES.glob("*.json"))
    for kind, form in json.loads(path.read_text(encoding="utf-8")).items()
]


@pytest.mark.parametrize("form", WRITTEN)
def test_a_row_of_another_django_version_is_delivered(
    form: dict[str, Any], smtp: SMTPServer, deliver: Callable[..., int]
) -> None:
    envelope = json.dumps(form["envelope"])
    blobs = {digest: b64decode(content) for digest, content in form["blobs"].items()}
    expected = messages.load(envelope, blobs)
    everyone = expected.recipients()
    log = outbox.enqueue(EmailMessage("S", "B", "from@example.com", everyone), transport="smtp")
    EmailLog.objects.filter(pk=log.pk).update(envelope=envelope)
    for digest, content in blobs.items():
        row = EmailAttachment.objects.create(
            digest=digest, mimetype="x/y", size=len(content), content=content
        )
        log.attachments.add(row)
    assert deliver() == 1
    log.refresh_from_db()
    assert log.status == "sent", log.reply
    (arrived,) = smtp.wait_for(1)
    sender, recipients, content = corpus.wire(expected)
    assert (arrived.sender, list(arrived.recipients)) == (
        parseaddr(sender)[1],
        [parseaddr(recipient)[1] for recipient in recipients],
    )
    assert comparable(arrived.content, log) == comparable(content, log)


def comparable(content: bytes, log: EmailLog) -> bytes:
    """Return normalised content with CRLF line ends."""
    content = corpus.normalise(content).replace(log.message_id.encode(), b"<made>", 1)
    return b"\r\n".join(content.splitlines())
