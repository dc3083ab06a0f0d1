"""Building the bytes of a mail: those that Django's SMTP backend puts on the wire, with less ado.

Building is the largest part of what a mail costs a worker. An ordinary one, text with alternatives,
is written outright; any other is built by Django, under policies that skip what costs most.
"""

from __future__ import annotations

import re
from email.message import Message
from functools import cache

import django
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail.building import ordinary, policies


def build(message: EmailMessage) -> bytes:
    """Return the bytes of a message that Django itself builds; raise whatever it raises.

    They are those of Django's own backend but for the boundaries, which are random in both.
    """
    written = ordinary.write(message, ordinary.new_boundary()) if _writes_as_django() else None
    return _built(message) if written is None else written


@cache
def _writes_as_django() -> bool:
    """Tell whether this Django and this Python build an ordinary mail as it is written here.

    One that is yet to come may do it in another way, which then holds.
    """
    sample = EmailMultiAlternatives("Ş", "ş\n.", "a@example.com", ["b@example.com"])
    sample.extra_headers = {
        "Date": "Mon, 02 Jan 2023 04:05:06 +0000",
        "Message-ID": "<1@a.example>",
    }
    sample.attach_alternative("<p>", "text/html")
    built = _built(sample)
    boundary = re.search(rb'boundary="([^"]+)"', built)
    return boundary is not None and ordinary.write(sample, boundary[1].decode()) == built


def _built(message: EmailMessage) -> bytes:
    """Return the bytes of a message of any kind, which Django builds."""
    if django.VERSION >= (6, 0):
        mime: Message = message.message(policy=policies.POLICY)
        _choose_boundaries(mime)
        return mime.as_bytes()
    mime = message.message()
    _choose_boundaries(mime)
    mime.policy = policies.POLICY
    return mime.as_bytes(linesep="\r\n")  # type: ignore[call-arg]


def _choose_boundaries(mime: Message) -> None:
    """Give each multipart a boundary; to choose one the standard library reads the whole text."""
    for part in mime.walk():
        if part.get_content_maintype() == "multipart" and part.get_boundary() is None:
            part.set_boundary(ordinary.new_boundary())
