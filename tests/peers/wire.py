"""The mail backend that every package sends with in these tests: it records what arrives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

arrived: list[EmailMessage] = []
while_sending: list[Callable[[], None]] = []
"""Functions to call while the next mail is being sent, each once."""


class Backend(BaseEmailBackend):
    """A backend that accepts every mail."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Build each mail as for a server, and record it."""
        for message in email_messages:
            if while_sending:
                while_sending.pop()()
            message.message()
            recorded = copy.copy(message)
            recorded.connection = None
            arrived.append(recorded)
        return len(email_messages)
