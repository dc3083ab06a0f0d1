"""What the tests of the testing helpers send, and when."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.core.mail import send_mail
from django.utils import timezone


def send(subject: str = "Order", to: str = "a@example.com", body: str = "Thank you.") -> None:
    """Send a mail as a site does."""
    send_mail(subject, body, "shop@example.com", [to])


def tomorrow() -> datetime:
    """Return the time in a day."""
    return timezone.now() + timedelta(days=1)
