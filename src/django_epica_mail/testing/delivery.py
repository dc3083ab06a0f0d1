"""Deliveries in the test's own process, and how to make them fail."""

from __future__ import annotations

import smtplib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from email.utils import parseaddr
from typing import Any
from unittest.mock import patch

from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import router

from django_epica_mail.delivery import claim, worker
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk
from django_epica_mail.testing.environment import _Environment
from django_epica_mail.transports import connection


def drain_email_queue(queue: str | None = None) -> list[EmailMessage]:
    """Deliver all mail that is due, in this process; return the messages that arrived.

    They are in ``mail.outbox`` too. Calls of ``send_bulk_emails_task`` that wait for a worker
    become mails first. ``queue`` restricts it to one queue. What is not due stays: ``travel`` and
    ``travel_to`` make it so.
    """
    using = router.db_for_write(EmailLog)
    outbox: list[EmailMessage] = mail.outbox
    before = len(outbox)
    unfinished = EmailBatch.objects.using(using).filter(finished_at=None)
    for batch in list(unfinished.values_list("pk", flat=True)):
        bulk.expand(batch)
    while sum(
        worker.deliver(name) for name in claim.queues(using) if queue is None or name == queue
    ):
        pass
    return outbox[before:]


class fail_delivery(_Environment):  # noqa: N801 - read as a function, as override_settings is
    """Let tries of mails fail, as if the server had refused or the network broken.

    ``tries`` are numbers, counted for each mail by itself from 1: ``fail_delivery(1, 2, ...)``
    fails the first two tries of every mail; without numbers every try fails. ``reply`` is the
    server's answer, as in ``reply=(451, "4.3.0 Try again later")``; ``error`` any exception
    instead, raised by the transport. ``to`` restricts it to mail with that recipient.
    """

    def __init__(
        self,
        *tries: int,
        reply: tuple[int, str] | None = None,
        error: Exception | None = None,
        to: str | None = None,
    ) -> None:
        super().__init__()
        if (reply is None) == (error is None):
            raise TypeError("Give the server's reply or an error, one of the two.")
        if any(number < 1 for number in tries):
            raise ValueError(f"Tries are counted from 1; they are {tries!r}.")
        self._numbers = frozenset(tries)
        self._error = error or smtplib.SMTPDataError(*(reply or ()))
        self._to = to

    def _change(self, stack: ExitStack) -> None:
        counts: Counter[str] = Counter()
        build = connection._build

        def check(message: EmailMessage) -> None:
            name = str(message.extra_headers.get("Message-ID"))
            counts[name] += 1
            if self._concerns(message) and (not self._numbers or counts[name] in self._numbers):
                raise self._error

        connection.close_connections()
        stack.callback(connection.close_connections)
        stack.enter_context(
            patch.object(connection, "_build", lambda alias: _Failing(build(alias), check))
        )

    def _concerns(self, message: EmailMessage) -> bool:
        addresses = (parseaddr(str(it))[1].lower() for it in message.recipients())
        return self._to is None or self._to.lower() in addresses


class _Failing(BaseEmailBackend):
    """A transport that asks before each message."""

    def __init__(self, real: BaseEmailBackend, check: Any) -> None:
        super().__init__()
        self._real, self._check = real, check

    def open(self) -> bool | None:
        return self._real.open()

    def close(self) -> None:
        self._real.close()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            self._check(message)
        return self._real.send_messages(email_messages)
