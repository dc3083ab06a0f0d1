"""Every word on an admin page is either translatable or data.

The pages are rendered in a test language that puts each string in brackets.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.mail import EmailMultiAlternatives
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation import trans_real

from django_epica_mail import outbox, suppression
from django_epica_mail.admin.operations import OPERATIONS
from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailBatch,
    EmailEvent,
    Suppression,
)

SPOKEN = {"title", "aria-label", "placeholder"}
"""Attributes with text for people."""
DATA = {
    *("emails", "bulk_emails", "smtp", "default", "ses", "emails/welcome", "root", "w@host"),
    *("450 4.2.0", "a.bin", "application/octet-stream", "a@example.com", "shop@example.com"),
}
"""Values of the rows, which may be part of a longer text."""
NAMES = {
    *("Content-Type", "Content-Transfer-Encoding", "MIME-Version", "Message-ID", "Date"),
    *("Subject", "From", "To", 'text/plain; charset="utf-8"', "7bit", "Id", "SHA-256"),
}
"""Names that are the same in every language: header fields, and Django's ``Id``."""
_WORD = re.compile(r"[^\W\d_]{2,}")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\w{3}, \d+ \w{3} \d{4} [\d:]+ [+-]\d{4}")
"""An id, or a date as in a mail's header."""
_TRANSLATED = re.compile(r"⟦[^⟦⟧]*⟧")


class _Texts(HTMLParser):
    """Collects the texts of a page for people, except code and preformatted text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._raw = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._raw += tag in {"script", "style", "pre", "code"}
        values = dict(attrs)
        self.found += [values[name] for name in SPOKEN & values.keys()]
        if tag == "input" and values.get("type") in {"submit", "button"}:
            self.found.append(values.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        self._raw -= tag in {"script", "style", "pre", "code"}

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.found.append(data)


def untranslatable(page: str) -> set[str]:
    """Return the texts of a page that are neither translated nor data."""
    texts = {" ".join(text.split()) for text in _Texts(page).found}
    return {
        text for text in texts - NAMES if _WORD.search(_ID.sub("", _without_translations(text)))
    }


def _without_translations(text: str) -> str:
    """Remove translated strings, innermost first, because they may be nested."""
    while (shorter := _TRANSLATED.sub("", text)) != text:
        text = shorter
    for word in sorted({*DATA, "@localhost"}, key=len, reverse=True):
        text = text.replace(word, "")
    return _ID.sub("", text)


@pytest.fixture
def bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch to the test language."""

    def plural(one: str, more: str, number: int) -> str:
        return f"⟦{one if number == 1 else more}⟧"

    monkeypatch.setattr(translation._trans, "gettext", lambda text: f"⟦{text}⟧" if text else "")
    monkeypatch.setattr(translation._trans, "pgettext", lambda _context, text: f"⟦{text}⟧")
    monkeypatch.setattr(translation._trans, "ngettext", plural)
    monkeypatch.setattr(
        translation._trans, "npgettext", lambda _context, *numbered: plural(*numbered)
    )
    monkeypatch.setattr(trans_real, "gettext", translation._trans.gettext)


@pytest.fixture
def rows(site: None, epica_mail: Any) -> dict[str, Any]:
    """Store a row of each model that has pages, and return the ids by model name."""
    epica_mail(PREVIEWS={"emails/welcome": {}})
    message = EmailMultiAlternatives("⟦subject⟧", "⟦text⟧", None, ["a@example.com"])
    message.attach_alternative("<p>⟦html⟧</p>", "text/html")
    message.attach("a.bin", b"content", "application/octet-stream")
    mail = outbox.enqueue(message, transport="smtp")
    now = timezone.now()
    outbox.pause(queue="emails")
    DeliveryGate.objects.create(
        scope="transport", name="smtp", outages=1, open_until=now, reason="⟦reason⟧"
    )
    DeliveryAttempt.objects.create(
        email=mail,
        number=1,
        transport="smtp",
        worker="w@host",
        created_at=now,
        seconds=1.5,
        failure_kind="transient",
        code=450,
        reply="4.2.0",
    )
    event = EmailEvent.objects.create(
        email=mail, key="k", kind="bounced", at=now, created_at=now, source="ses", is_machine=True
    )
    batch = EmailBatch.objects.create(
        total=3, position=1, refused=[{"index": 1, "reason": "⟦reason⟧"}]
    )
    suppression.add("a@example.com")
    return {
        "emaillog": mail.pk,
        "emailbatch": batch.pk,
        "emailevent": event.pk,
        "deliverygate": DeliveryGate.objects.get(scope="queue").pk,
        "suppression": Suppression.objects.get().pk,
    }


@pytest.fixture
def browser(rows: dict[str, Any], bracketed: None) -> Client:
    """Return a superuser's browser."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def pages(rows: dict[str, Any]) -> list[str]:
    """Return the URLs of all pages of the package in the admin."""
    found = [reverse("admin:app_list", args=["epica_mail"])]
    for model in admin.site._registry:
        if model._meta.app_label != "epica_mail":
            continue
        name = model._meta.model_name
        found.append(reverse(f"admin:epica_mail_{name}_changelist"))
        if name in rows:
            found.append(reverse(f"admin:epica_mail_{name}_change", args=[rows[name]]))
            found.append(reverse(f"admin:epica_mail_{name}_history", args=[rows[name]]))
    previews = reverse("admin:epica_mail_emaillog_previews")
    return [*found, previews, f"{previews}?template=emails/welcome&language=en"]


def test_every_admin_page_is_translatable(browser, rows) -> None:
    for address in pages(rows):
        page = browser.get(address)
        assert page.status_code == 200, address
        assert untranslatable(page.content.decode()) == set(), address


@pytest.mark.parametrize("operation", [operation.name for operation in OPERATIONS])
def test_every_confirmation_and_report_is_translatable(browser, rows, operation) -> None:
    address = reverse("admin:epica_mail_emaillog_changelist")
    asked = {"action": operation, "_selected_action": str(rows["emaillog"])}
    for data in (asked, {**asked, "confirmed": "yes"}):
        page = browser.post(address, data, follow=True)
        if not page.streaming:
            assert untranslatable(page.content.decode()) == set()


def test_a_page_is_in_the_readers_language(rows, settings) -> None:
    settings.LANGUAGE_CODE = "tr"
    outbox.pause(transport="smtp")
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    address = reverse("admin:epica_mail_emaillog_change", args=[rows["emaillog"]])
    page = client.get(address).content.decode()
    assert "“smtp” taşıyıcısı bekletiliyor (duraklatıldı)" in page
    assert "1,5 sn sürdü" in page
    assert "bir kez daha gönder" in page, "the label of on_unknown"
