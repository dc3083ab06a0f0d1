"""Test that mail arrives through the queue byte for byte as without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from devservers.smtp import SMTPServer
from devservers.smtp_inbox import AcceptedMessage
from django_epica_mail import outbox
from django_epica_mail.models import EmailLog
from tests import corpus

Deliver = Callable[..., int]


def direct(server: SMTPServer) -> BaseEmailBackend:
    """Return Django's own backend for the same server."""
    if django.VERSION >= (6, 1):
        return mail.mailers["smtp"]
    path = "django.core.mail.backends.smtp.EmailBackend"
    return mail.get_connection(path, host="127.0.0.1", port=server.port)


def both_ways(
    make: Callable[[], EmailMessage], server: SMTPServer, deliver: Deliver
) -> tuple[AcceptedMessage, AcceptedMessage]:
    """Send a message directly and through the queue; return what arrived in each case."""
    server.forget()
    backend = direct(server)
    assert backend.send_messages([make()]) == 1
    server.wait_for(1)
    log = outbox.enqueue(make(), transport="smtp")
    assert deliver() == 1
    log.refresh_from_db()
    assert log.status == "sent", log.reply
    without, through = server.wait_for(2)
    assert through.message_id == log.message_id
    return without, through


def require_equal(without: AcceptedMessage, through: AcceptedMessage) -> None:
    assert through.sender == without.sender
    assert through.recipients == without.recipients
    assert _without_size(through.options) == _without_size(without.options)
    content = corpus.normalise(through.content)
    made = f"Message-ID: {through.message_id}".encode()
    if made not in corpus.normalise(without.content):
        content = content.replace(made, b"Message-ID: <made>", 1)
    assert content == corpus.normalise(without.content)


def _without_size(options: tuple[str, ...]) -> list[str]:
    """Return the parameters of MAIL except the size, which a longer Message-ID changes."""
    return [option for option in options if not option.startswith("SIZE=")]


@pytest.mark.parametrize("make", dict(corpus.CORPUS).values(), ids=dict(corpus.CORPUS))
def test_every_kind_of_message_arrives_unchanged(
    make: Callable[[], EmailMessage], smtp: SMTPServer, deliver: Deliver
) -> None:
    require_equal(*both_ways(make, smtp, deliver))


# Headers cannot contain every character; bodies and attachments can.
line = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=80)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400)
attachment = st.tuples(
    st.sampled_from(["a.bin", "rapor.pdf", "ölçüm.csv", 'qu"ote.txt']),
    st.binary(max_size=300),
    st.sampled_from(["application/pdf", "application/octet-stream", "image/png"]),
)
messages = st.fixed_dictionaries(
    {
        "subject": line,
        "body": text,
        "to": st.lists(st.emails(), min_size=1, max_size=3),
        "cc": st.lists(st.emails(), max_size=2),
        "bcc": st.lists(st.emails(), max_size=2),
        "attachments": st.lists(attachment, max_size=2),
        "headers": st.dictionaries(st.sampled_from(["X-A", "X-B"]), line, max_size=2),
    }
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields=messages, html=st.none() | text)
def test_arbitrary_messages_arrive_unchanged(
    fields: dict[str, Any], html: str | None, smtp: SMTPServer, deliver: Deliver
) -> None:
    def make() -> EmailMessage:
        message = mail.EmailMultiAlternatives(from_email="from@example.com", **fields)
        if html is not None:
            message.attach_alternative(html, "text/html")
        return message

    try:
        corpus.wire(make())
    except (ValueError, UnicodeError):
        # What Django cannot send raises in the caller and is not stored.
        with pytest.raises((ValueError, TypeError)):
            outbox.enqueue(make(), transport="smtp")
        assert not EmailLog.objects.exclude(status="sent").exists()
    else:
        require_equal(*both_ways(make, smtp, deliver))
