"""The mail backend that every package sends by here: it notes what arrives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

arrived: list[EmailMessage] = []
while_sending: list[Callable[[], None]] = []
"""What happens, once, while the next mail is being handed over."""


class Backend(BaseEmailBackend):
    """A server that takes every mail."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Note the mails, built as for a server."""
        for message in email_messages:
            if while_sending:
                while_sending.pop()()
            message.message()
            noted = copy.copy(message)
            noted.connection = None
            arrived.append(noted)
        return len(email_messages)
