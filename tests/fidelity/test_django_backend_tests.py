"""Run Django's own tests for mail backends on what the queue delivers."""

from __future__ import annotations

from typing import Any

import django
from django.core import mail
from django.test import TestCase

from django_epica_mail import backends
from django_epica_mail.delivery import worker
from django_epica_mail.transports import connection
from tests.fidelity.django_source import backend_tests

source = backend_tests()
MODERN = django.VERSION >= (6, 1)
shared: Any = source.SharedEmailBackendTests if MODERN else source.BaseEmailBackendTests


class EmailBackend(backends.EmailBackend):
    """A backend that queues mail and immediately delivers it to ``mail.outbox``."""

    def send_messages(self, email_messages: Any) -> int:
        count = super().send_messages(email_messages)
        worker.deliver("emails")
        return count


class QueueBackendTests(shared, TestCase):
    """Django's tests, run on the queue."""

    backend_class = EmailBackend
    email_backend = f"{__name__}.EmailBackend"

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        connection.close_connections()

    def flush_mailbox(self) -> None:
        mail.outbox.clear()

    def get_mailbox_content(self) -> list[Any]:
        if django.VERSION >= (6, 0):
            return [message.message() for message in mail.outbox]
        # Django's own tests of the locmem backend do the same: they use the modern email API.
        return [source.message_from_bytes(sent.message().as_bytes()) for sent in mail.outbox]

    if MODERN:

        def test_fail_silently_arg_accepted(self) -> None:
            """Like Django's own file and console backends, the queue still accepts it."""
            for value in (True, False):
                assert self.create_backend(fail_silently=value).fail_silently is value
