"""Deliveries in the test's own process, and simulated failures."""

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

from django_epica_mail.delivery import gates, worker
from django_epica_mail.delivery.limits import scan_starts, slowed_domains
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk, dequeue
from django_epica_mail.testing.environment import _Environment
from django_epica_mail.transports import connection


def drain_email_queue(queue: str | None = None) -> list[EmailMessage]:
    """Deliver all due mail in this process; return the messages that arrived.

    They are in ``mail.outbox`` as well. Bulk calls that wait for a worker
    (``send_bulk_emails_task``) are expanded into mails first. ``queue`` limits delivery to one
    queue. Mail that is not due stays queued; ``travel`` and ``travel_to`` make it due.
    """
    using = router.db_for_write(EmailLog)
    outbox: list[EmailMessage] = mail.outbox
    before = len(outbox)
    gates.forget()
    slowed_domains.forget()
    scan_starts.forget()
    unfinished = EmailBatch.objects.using(using).filter(finished_at=None)
    for batch in list(unfinished.values_list("pk", flat=True)):
        bulk.expand(batch)
    while sum(
        worker.deliver(name) for name in dequeue.queues(using) if queue is None or name == queue
    ):
        pass
    return outbox[before:]


class fail_delivery(_Environment):  # noqa: N801 - read as a function, as override_settings is
    """Make delivery attempts fail, as if the server had refused or the connection had broken.

    ``tries`` are the numbers of the attempts to fail, counted from 1 for each mail:
    ``fail_delivery(1, 2, ...)`` fails the first two attempts of every mail. Without numbers, every
    attempt fails. ``reply`` is the server's reply, as in ``reply=(451, "4.3.0 Try again later")``;
    ``error`` is an exception for the transport to raise instead. ``to`` limits failures to mail
    with that recipient.
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
            raise TypeError("Give either the server's reply or an error.")
        if any(number < 1 for number in tries):
            raise ValueError(f"Attempts are counted from 1; you gave {tries!r}.")
        self._numbers = frozenset(tries)
        self._error = error or smtplib.SMTPDataError(*(reply or ()))
        self._to = to

    def _change(self, stack: ExitStack) -> None:
        counts: Counter[str] = Counter()
        build = connection.build

        def check(message: EmailMessage) -> None:
            name = str(message.extra_headers.get("Message-ID"))
            counts[name] += 1
            if self._concerns(message) and (not self._numbers or counts[name] in self._numbers):
                raise self._error

        connection.close_connections()
        stack.callback(connection.close_connections)
        stack.enter_context(
            patch.object(connection, "build", lambda alias: _Failing(build(alias), check))
        )

    def _concerns(self, message: EmailMessage) -> bool:
        addresses = (parseaddr(str(it))[1].lower() for it in message.recipients())
        return self._to is None or self._to.lower() in addresses


class _Failing(BaseEmailBackend):
    """A transport that calls ``check`` before each message."""

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
