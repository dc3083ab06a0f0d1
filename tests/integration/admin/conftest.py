"""Users of the admin, the list of e-mails as they see it, and an e-mail to look at."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.mail import EmailMultiAlternatives
from django.test import Client

from django_epica_mail import outbox
from django_epica_mail.models import EmailLog
from tests.integration.admin.pages import client_of, html_of


@pytest.fixture
def superuser(site: None) -> Client:
    """Log in a superuser."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def viewer(site: None) -> Client:
    """Log in a user who may view e-mails, but not their content."""
    return client_of("view_emaillog")


@pytest.fixture
def reader(site: None) -> Client:
    """Log in a user who may view e-mails and their content."""
    return client_of("view_emaillog", "view_content")


@pytest.fixture
def listed(superuser: Client) -> Any:
    """Return the subjects on the list of e-mails, as in ``listed(status="sent")``."""

    def subjects(**parameters: Any) -> list[str]:
        html = html_of(superuser, "emaillog_changelist", **parameters)
        return re.findall(r'class="epica-subject"[^>]*>([^<]*)</a>', html)

    return subjects


@pytest.fixture
def letter(db: None) -> EmailLog:
    """Queue an e-mail with text, HTML and two attachments."""
    message = EmailMultiAlternatives(
        "Sipariş özeti",
        "The plain words & <b>no markup</b>",
        None,
        ["Ayşe <ayse@example.com>"],
        bcc=["hidden@example.com"],
        headers={"X-Order": "4711"},
    )
    message.attach_alternative("<p>The <b>HTML</b> words</p>", "text/html")
    message.attach("Fatura ğ.pdf", b"%PDF-1.4\x00", "application/pdf")
    message.attach("page.html", "<script>alert(1)</script>", "text/html")
    return outbox.enqueue(message, transport="smtp")
