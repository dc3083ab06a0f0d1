"""The form in the privacy guide sends Django's reset link without keeping it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import views
from django.contrib.auth.models import User
from django.test import Client
from django.urls import path

from django_epica_mail.models import EmailLog

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "privacy.md"


def block(word: str) -> str:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (found,) = (it for it in blocks if word in it)
    return str(found)


@pytest.fixture
def browser(smtp: object, settings: Any, epica_mail: Any) -> Client:
    """Return a visitor's browser on a site built from the code in the guide."""
    names: dict[str, Any] = {}
    exec(block("class PasswordResetForm"), names)
    exec(block('"keep_content"'), names)
    epica_mail(**names["EPICA_MAIL"])
    reset = views.PasswordResetView.as_view(
        form_class=names["PasswordResetForm"], template_name="form.html"
    )
    confirm = views.PasswordResetConfirmView.as_view()
    settings.ROOT_URLCONF = (
        path("reset/", reset),
        path("reset/<uidb64>/<token>/", confirm, name="password_reset_confirm"),
        path("done/", views.PasswordResetDoneView.as_view(), name="password_reset_done"),
    )
    loaders = [("django.template.loaders.locmem.Loader", {"form.html": "{{ form }}"})]
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [*loaders, "django.template.loaders.app_directories.Loader"],
                "context_processors": ["django.template.context_processors.request"],
            },
        }
    ]
    return Client()


def test_the_link_arrives_and_is_not_kept(browser, smtp, deliver) -> None:
    User.objects.create_user("ann", "ann@example.com", "a-password")
    assert browser.post("/reset/", {"email": "ann@example.com"}).status_code == 302
    log = EmailLog.objects.get()
    assert (log.category, log.keep_content) == ("password-reset", "until_sent")
    assert re.search(r"http://testserver/reset/\w+/[\w-]+/", log.envelope)
    deliver()
    assert b"http://testserver/reset/" in smtp.accepted[0].content
    log.refresh_from_db()
    assert (log.status, log.envelope) == ("sent", "")
