"""One-click unsubscribe: the headers of a mail, and the page that they lead to."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core import signing
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.test import Client
from django.urls import include, path
from django.utils import translation

from django_epica_mail import checks, conf, maintenance, outbox, suppression
from django_epica_mail.models import EmailEvent, EmailLog, Suppression
from django_epica_mail.tracking import links

pytestmark = pytest.mark.django_db
ONE_CLICK = {"List-Unsubscribe": "One-Click"}


@pytest.fixture
def site(public_pages: None, epica_mail: Any) -> None:
    epica_mail(BASE_URL="https://shop.example.com")


@pytest.fixture
def browser() -> Client:
    """Return a browser without cookies, with CSRF checks on its requests."""
    return Client(enforce_csrf_checks=True)


def queue(*to: str, headers: dict[str, str] | None = None, **options: Any) -> EmailLog:
    options.setdefault("unsubscribe", True)
    message = EmailMessage("S", "B", None, list(to) or ["to@example.com"], headers=headers)
    return outbox.enqueue(message, transport="smtp", **options)


def link_of(wire: bytes) -> str:
    """Return the path of the link in the only such header: whole, and on one line.

    Django 5.2 starts a new line before it.
    """
    header = rb"^List-Unsubscribe: (?:\r\n )?<https://shop\.example\.com(/\S+)>\r$"
    (found,) = re.findall(header, wire, re.MULTILINE)
    return found.decode()


def test_a_mail_offers_to_unsubscribe_in_its_headers(site, smtp, deliver) -> None:
    log = queue(category="newsletter")
    deliver()
    (mail,) = smtp.accepted
    assert mail.content.count(b"\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n") == 1
    token = link_of(mail.content).removeprefix("/mail/unsubscribe/").removesuffix("/")
    wish = links.read_unsubscribe(token)
    assert (wish.scope, wish.email_id) == ("newsletter", log.pk)
    assert b"to@example.com" not in token.encode()


def test_a_post_without_cookies_unsubscribes(site, smtp, deliver, browser) -> None:
    log = queue(category="newsletter")
    deliver()
    response = browser.post(link_of(smtp.accepted[0].content), ONE_CLICK)
    assert response.status_code == 200
    assert not response.cookies
    assert suppression.is_suppressed("to@example.com", "newsletter")
    assert not suppression.is_suppressed("to@example.com", "orders")
    event = EmailEvent.objects.get()
    assert (event.kind, event.email_id, event.source) == ("unsubscribed", log.pk, "epica_mail")
    again = queue(category="newsletter")
    deliver()
    again.refresh_from_db()
    assert again.status == "suppressed"


def test_the_pages_need_no_engine_of_the_site(site, settings, browser) -> None:
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.jinja2.Jinja2", "APP_DIRS": True},
    ]
    page = urlsplit(links.unsubscribe_url("to@example.com", "news")).path
    shown = browser.get(page)
    assert (shown.status_code, b'<form method="post"' in shown.content) == (200, True)
    assert browser.post(page, ONE_CLICK).status_code == 200
    assert suppression.is_suppressed("to@example.com", "news")


def test_unsubscribing_twice_has_the_effect_of_once(site, smtp, deliver, browser) -> None:
    queue()
    deliver()
    for _ in range(2):
        assert browser.post(link_of(smtp.accepted[0].content), ONE_CLICK).status_code == 200
    assert (Suppression.objects.count(), EmailEvent.objects.count()) == (1, 1)
    assert Suppression.objects.get().scope == ""


def test_a_link_that_is_posted_again_writes_nothing(
    site, smtp, deliver, browser, django_assert_max_num_queries
) -> None:
    queue()
    deliver()
    link = link_of(smtp.accepted[0].content)
    browser.post(link, ONE_CLICK)
    with django_assert_max_num_queries(50) as seen:
        for _ in range(10):
            assert browser.post(link, ONE_CLICK).status_code == 200
    assert {query["sql"].split()[0] for query in seen.captured_queries} == {"SELECT"}


@pytest.mark.parametrize(
    "address",
    [
        '"john doe"@example.com',
        "root",
        "ann@example.com\u200b",
        '"v"@example.com',
        "a@Bücher.example",
    ],
)
def test_whoever_was_mailed_can_unsubscribe(site, smtp, deliver, browser, address) -> None:
    log = queue(address)
    deliver()
    assert browser.post(link_of(smtp.accepted[0].content), ONE_CLICK).status_code == 200
    assert suppression.is_suppressed(address)
    assert EmailEvent.objects.get().email_id == log.pk
    again = queue(address)
    deliver()
    again.refresh_from_db()
    assert again.status == "suppressed"


@pytest.mark.parametrize("method", ["get", "head"])
def test_viewing_the_page_changes_nothing(site, smtp, deliver, browser, method) -> None:
    queue(category="newsletter")
    deliver()
    response = getattr(browser, method)(link_of(smtp.accepted[0].content))
    assert response.status_code == 200
    assert not Suppression.objects.exists()
    assert not EmailEvent.objects.exists()


def test_the_page_asks_to_confirm_and_its_button_unsubscribes(site, smtp, deliver, browser) -> None:
    queue(category="<newsletter>")
    deliver()
    page = link_of(smtp.accepted[0].content)
    response = browser.get(page)
    text = response.content.decode()
    assert '<form method="post" action="">' in text
    assert "&lt;newsletter&gt;" in text
    assert not re.search(r"<script|<style|style=|onclick", text)
    assert "no-store" in response.headers["Cache-Control"]
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "You are unsubscribed" in browser.post(page).content.decode()


def test_a_link_works_after_its_mail_is_deleted(site, smtp, deliver, browser, travel) -> None:
    queue(category="newsletter")
    deliver()
    travel(days=31)
    maintenance.cleanup()
    assert not EmailLog.objects.exists()
    assert browser.post(link_of(smtp.accepted[0].content), ONE_CLICK).status_code == 200
    assert suppression.is_suppressed("to@example.com", "newsletter")
    assert Suppression.objects.get().address == ""


def test_a_link_works_while_its_secret_key_is_a_fallback(
    site, smtp, deliver, browser, settings
) -> None:
    queue()
    deliver()
    page = link_of(smtp.accepted[0].content)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert browser.post(page, ONE_CLICK).status_code == 200
    assert suppression.is_suppressed("to@example.com")
    settings.SECRET_KEY_FALLBACKS = []
    assert browser.post(page, ONE_CLICK).status_code == 404


def forged(token: str) -> dict[str, str]:
    body, _, signature = token.rpartition(".")
    wish = [suppression.digest("victim@example.com"), "", ""]
    other = signing.Signer(salt="django_epica_mail.click", sep=".").sign_object(wish)
    return {
        "cut": token[:-1],
        "tampered": f"{body}x.{signature}",
        "for another purpose": other,
        "not signed": signing.b64_encode(b'["x", "", ""]').decode(),
        "empty": "x",
    }


@pytest.mark.parametrize("how", ["cut", "tampered", "for another purpose", "not signed", "empty"])
def test_a_forged_link_unsubscribes_nobody(site, browser, how) -> None:
    url = links.unsubscribe_url("to@example.com").removeprefix("https://shop.example.com")
    token = url.removeprefix("/mail/unsubscribe/").removesuffix("/")
    page = f"/mail/unsubscribe/{forged(token)[how]}/"
    for ask in (browser.get, browser.post):
        response = ask(page)
        assert response.status_code == 404
        assert "This link does not work" in response.content.decode()
    assert not Suppression.objects.exists()


def test_other_methods_are_refused(site, browser) -> None:
    url = links.unsubscribe_url("to@example.com").removeprefix("https://shop.example.com")
    for method in ("put", "patch", "delete"):
        assert getattr(browser, method)(url).status_code == 405


def test_a_mail_to_several_does_not_offer_to_unsubscribe(site, smtp, deliver) -> None:
    log = queue("a@example.com", "b@example.com")
    deliver()
    assert log.additions == ""
    assert b"List-Unsubscribe" not in smtp.accepted[0].content


def test_a_mail_sent_again_offers_to_unsubscribe_again(site, smtp, deliver) -> None:
    log = queue(category="newsletter")
    deliver()
    (again,) = outbox.send_again([log.pk])
    deliver()
    assert again.additions == "unsubscribe"
    first, second = (link_of(mail.content) for mail in smtp.accepted)
    assert first != second


def test_the_callers_own_unsubscribe_header_is_kept(site, smtp, deliver) -> None:
    queue(headers={"list-unsubscribe": "<mailto:leave@example.com>"})
    deliver()
    content = smtp.accepted[0].content
    assert re.findall(rb"(?i)^list-unsubscribe[^:]*:[^\r]*", content, re.MULTILINE) == [
        b"list-unsubscribe: <mailto:leave@example.com>"
    ]


def test_a_rule_turns_the_offer_on_and_a_call_off(site, smtp, deliver, epica_mail) -> None:
    epica_mail(ROUTES=[{"match": {"category": "news*"}, "unsubscribe": True}])
    assert queue(category="newsletter", unsubscribe=None).additions == "unsubscribe"
    assert queue(category="newsletter", unsubscribe=False).additions == ""
    assert queue(category="order", unsubscribe=None).additions == ""


def test_a_check_finds_a_rule_whose_links_cannot_be_made(epica_mail, settings) -> None:
    epica_mail(ROUTES=[{}, {"unsubscribe": True}])

    def found() -> list[str]:
        return [str(it.id) for it in checks.check_configuration() if "E030" in str(it.id)]

    assert found() == ["epica_mail.E030"]
    epica_mail(BASE_URL="https://shop.example.com")
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    assert found() == []
    settings.ROOT_URLCONF = ()
    assert found() == ["epica_mail.E030"]


def test_a_deployment_check_warns_of_a_site_without_https(epica_mail) -> None:
    def found() -> list[str]:
        return [str(it.id) for it in checks.check_deployment() if "W030" in str(it.id)]

    epica_mail(BASE_URL="http://shop.example.com")
    assert found() == ["epica_mail.W030"]
    epica_mail(BASE_URL="https://shop.example.com")
    assert found() == []


def test_a_flag_must_be_true_or_false(epica_mail) -> None:
    with pytest.raises(TypeError, match="unsubscribe must be True or False"):
        queue(unsubscribe="yes")
    with pytest.raises(ImproperlyConfigured, match="rule 0: track_opens must be True or False"):
        conf.parse({"ROUTES": [{"track_opens": 1}]})


@pytest.mark.parametrize(
    "value", ["shop.example.com", "ftp://x", "https://", "https://x/?a", 7, "https://x/#a"]
)
def test_an_invalid_address_of_the_site_is_refused(value) -> None:
    with pytest.raises(ImproperlyConfigured, match="must be the address of a site"):
        conf.parse({"BASE_URL": value})


def test_a_link_for_the_body_of_a_mail_needs_no_row(site, browser) -> None:
    url = links.unsubscribe_url("Ayşe <A@example.com>", "newsletter")
    assert browser.post(url.removeprefix("https://shop.example.com")).status_code == 200
    assert suppression.is_suppressed("a@example.com", "newsletter")


def test_the_page_can_be_translated(site, browser) -> None:
    url = links.unsubscribe_url("a@example.com").removeprefix("https://shop.example.com")
    with translation.override("tr"):
        assert '<html lang="tr" dir="ltr">' in browser.get(url).content.decode()
