"""Links that were tampered with, followed by a browser: they lead nowhere and record nothing."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import signing
from django.core.mail import EmailMessage
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path

from django_epica_mail import outbox, suppression
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.tracking import links

pytestmark = pytest.mark.django_db
SITE = "https://shop.example.com"


@pytest.fixture
def log(settings: Any, epica_mail: Any) -> EmailLog:
    """A mail of a site that serves links."""
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(BASE_URL=SITE)
    return outbox.enqueue(EmailMessage("S", "B", None, ["to@example.com"]), transport="smtp")


def follow(browser: Client, what: list[Any], salt: str = "click") -> HttpResponse:
    signer = signing.Signer(salt=f"django_epica_mail.{salt}", sep=".")
    return browser.get(f"/mail/click/{signer.sign_object(what)}/")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "data:text/html,x", "//evil.example", "/relative", "ftp://e.com/",
        "https://e.com\\@evil.example", "https://e.com/\r\nSet-Cookie: a=b", " https://e.com", "",
    ],
)  # fmt: skip
def test_a_link_leads_only_to_a_web_page_even_if_it_is_signed(log, client, url) -> None:
    assert follow(client, [log.pk.hex, url]).status_code == 404
    assert not EmailEvent.objects.exists()


def test_a_forged_link_leads_nowhere(log, client) -> None:
    click = links.click_url(log.pk, "https://example.com/?a=1&b=2").removeprefix(SITE)
    image = links.open_url(log.pk).removeprefix(SITE)
    assert client.get(click).headers["Location"] == "https://example.com/?a=1&b=2"
    EmailEvent.objects.all().delete()
    token = click.removeprefix("/mail/click/").removesuffix("/")
    body, _, signature = token.rpartition(".")
    evil = signing.b64_encode(f'["{log.pk.hex}","https://evil.example/"]'.encode()).decode()
    for forged in (token[:-1], f"{body}x.{signature}", f"{evil}.{signature}", "x", evil):
        assert client.get(f"/mail/click/{forged}/").status_code == 404
        assert client.get(f"/mail/open/{forged}/").status_code == 404
    assert client.get(image.replace("open", "click")).status_code == 404
    assert client.get(click.replace("click", "open")).status_code == 404
    assert follow(client, [log.pk.hex, "https://evil.example/"], "unsubscribe").status_code == 404
    assert not EmailEvent.objects.exists()


def test_every_kind_of_link_works_while_its_secret_key_is_a_fallback(log, client, settings) -> None:
    made = [
        links.open_url(log.pk),
        links.click_url(log.pk, "https://example.com/"),
        links.unsubscribe_url("to@example.com", email_id=log.pk),
    ]
    get, post = client.get, client.post
    ways = list(zip((get, get, post), (it.removeprefix(SITE) for it in made), strict=True))
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert [follow(page).status_code for follow, page in ways] == [200, 302, 200]
    assert set(EmailEvent.objects.values_list("kind", "email_id")) == {
        ("opened", log.pk), ("clicked", log.pk), ("unsubscribed", log.pk)
    }  # fmt: skip
    assert suppression.is_suppressed("to@example.com")
    settings.SECRET_KEY_FALLBACKS = []
    assert [follow(page).status_code for follow, page in ways] == [404, 404, 404]
    assert suppression.is_suppressed("to@example.com"), "the entry is under the new key"


def test_links_expire_where_the_site_says_so(log, client, epica_mail, travel) -> None:
    click = links.click_url(log.pk, "https://example.com/").removeprefix(SITE)
    travel(days=3)
    assert client.get(click).status_code == 302
    epica_mail(CLICK_LINK_DAYS=4)
    assert client.get(click).status_code == 302
    epica_mail(CLICK_LINK_DAYS=2)
    EmailEvent.objects.all().delete()
    page = client.get(click)
    assert page.status_code == 410
    assert "example.com" not in page.content.decode()
    assert not EmailEvent.objects.exists()


@pytest.mark.parametrize(
    ("target", "leads_there"),
    [
        ("https://shop.example.com/a", True),
        ("https://SHOP.example.com:8443/a", True),
        ("https://www.partner.example/", True),
        ("https://evil.example/?shop.example.com", False),
        ("https://shop.example.com.evil.example/", False),
        ("https://shop.example.com@evil.example/", False),
        ('https://evil.example/%22%3E%3Cscript%3E"><script>alert(1)</script>', False),
    ],
)
def test_before_a_foreign_host_a_page_asks(log, client, epica_mail, target, leads_there) -> None:
    epica_mail(CLICK_HOSTS=["shop.example.com", ".partner.example"])
    page = client.get(links.click_url(log.pk, target).removeprefix(SITE))
    assert EmailEvent.objects.get().url == target
    if leads_there:
        assert page.headers["Location"] == target
        return
    assert page.status_code == 200
    assert "leads to" in page.content.decode()
    assert "<script>" not in page.content.decode()
    assert page.headers["Referrer-Policy"] == "no-referrer"
