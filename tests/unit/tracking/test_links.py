"""The signed links of a mail: what they encode, and what cannot be made or read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.signing import BadSignature
from django.urls import include, path

from django_epica_mail import suppression
from django_epica_mail.tracking import links
from django_epica_mail.tracking.links import Unsubscription

EMAIL = UUID("0190b5a0-0000-7000-8000-000000000001")
PAGE = "https://example.com/?a=1&b=ü#top"


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    settings.EPICA_MAIL = {"BASE_URL": "https://shop.example.com/"}


def token_of(url: str) -> str:
    """Return the token of a link, which is the last part of its path."""
    return url.removesuffix("/").rpartition("/")[2]


@pytest.mark.parametrize(
    ("url", "start"),
    [
        (lambda: links.open_url(EMAIL), "https://shop.example.com/mail/open/"),
        (lambda: links.click_url(EMAIL, PAGE), "https://shop.example.com/mail/click/"),
        (lambda: links.unsubscribe_url("a@e.com"), "https://shop.example.com/mail/unsubscribe/"),
    ],
    ids=["open", "click", "unsubscribe"],
)
def test_a_link_starts_with_the_sites_address(url: Callable[[], str], start: str) -> None:
    assert url().startswith(start)


def test_what_a_link_encodes_is_read_back() -> None:
    assert links.read_open(token_of(links.open_url(EMAIL))) == EMAIL
    assert links.read_click(token_of(links.click_url(EMAIL, PAGE))) == (EMAIL, PAGE)


@pytest.mark.parametrize("email_id", [EMAIL, None])
@pytest.mark.parametrize("category", ["", "news & <offers>"])
def test_an_unsubscribe_link_names_digest_category_and_mail(
    category: str, email_id: UUID | None
) -> None:
    url = links.unsubscribe_url("Ayşe <A@Example.com>", category, email_id=email_id)
    found_by = suppression.digest("a@example.com")
    assert links.read_unsubscribe(token_of(url)) == Unsubscription(found_by, category, email_id)
    assert "example.com" not in token_of(url)


def tokens() -> dict[str, str]:
    return {
        "open": token_of(links.open_url(EMAIL)),
        "click": token_of(links.click_url(EMAIL, PAGE)),
        "unsubscribe": token_of(links.unsubscribe_url("a@example.com")),
    }


READERS = {
    "open": links.read_open,
    "click": links.read_click,
    "unsubscribe": links.read_unsubscribe,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("purpose", READERS)
def test_a_link_is_valid_for_its_own_purpose_only(reader: str, purpose: str) -> None:
    if reader == purpose:
        READERS[reader](tokens()[purpose])
    else:
        with pytest.raises(BadSignature):
            READERS[reader](tokens()[purpose])


@pytest.mark.parametrize("purpose", READERS)
def test_a_changed_token_is_invalid(purpose: str) -> None:
    token = tokens()[purpose]
    for forged in (token[:-1], f"x{token}", token.replace(".", ""), "", "x", "."):
        with pytest.raises(BadSignature):
            READERS[purpose](forged)


def test_a_click_link_to_no_web_page_is_invalid_though_signed() -> None:
    with pytest.raises(BadSignature, match="does not lead to a web page"):
        links.read_click(token_of(links.click_url(EMAIL, "javascript:alert(1)")))


def test_links_outlive_a_change_of_the_secret_key_while_it_is_known(settings: Any) -> None:
    token = tokens()["click"]
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert links.read_click(token) == (EMAIL, PAGE)
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(BadSignature):
        links.read_click(token)


@pytest.mark.parametrize(
    "url",
    ["http://e.com", "https://e.com/?a=b#c", "HTTPS://E.com/", "https://örnek.example/ü",
     "https://e.com:8000/", "https://[::1]/", "https://u:p@e.com/"],
)  # fmt: skip
def test_a_web_page_is_one_over_http_with_a_host(url: str) -> None:
    assert links.leads_to_a_page(url)


@pytest.mark.parametrize(
    "url",
    ["", "e.com", "/page", "//e.com/", "https://", "https:///page", "https://:80/", "ftp://e.com/",
     "mailto:a@e.com", "javascript:alert(1)", "https://[bad/", "https://e.com\\@evil.example",
     "https://e.com/a b", " https://e.com", "https://e.com/\r\n", "https://e.com/\u200b"],
)  # fmt: skip
def test_whatever_could_lead_elsewhere_is_no_web_page(url: str) -> None:
    assert not links.leads_to_a_page(url)


def test_links_need_the_sites_address(settings: Any) -> None:
    links.check()
    settings.EPICA_MAIL = {}
    for make in (links.check, lambda: links.open_url(EMAIL)):
        with pytest.raises(ImproperlyConfigured, match=r"EPICA_MAIL\['BASE_URL'\].*not set"):
            make()


def test_links_need_the_pages_they_lead_to(settings: Any) -> None:
    settings.ROOT_URLCONF = ()
    for make in (links.check, lambda: links.click_url(EMAIL, PAGE)):
        with pytest.raises(ImproperlyConfigured, match=r"include\('django_epica_mail.urls'\)"):
            make()
