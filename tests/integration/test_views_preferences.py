"""The page of preferences that the link to unsubscribe leads to, once categories are named."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.test import Client
from django.utils import translation

from django_epica_mail import conf, outbox, suppression, views
from django_epica_mail.models import EmailEvent, EmailLog, Suppression
from django_epica_mail.tracking import links

pytestmark = pytest.mark.django_db
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "preferences.md"
ADDRESS = "ayse@example.com"
ALL = {"newsletter", "offers", "reviews"}


def page_settings() -> dict[str, Any]:
    """Run the page's first code, and return its ``EPICA_MAIL``."""
    block = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block[0], names)  # noqa: S102 - our own page
    found: dict[str, Any] = names["EPICA_MAIL"]
    return found


@pytest.fixture
def site(public_pages: None, epica_mail: Any) -> None:
    epica_mail(**page_settings())


@pytest.fixture
def link(site: None, smtp: Any) -> str:
    """Queue a mail of the page's settings, and return the path of its link."""
    message = EmailMessage("S", "B", None, [ADDRESS])
    log = outbox.enqueue(message, transport="smtp", category="newsletter")
    assert log.additions == "unsubscribe"
    return path_of(links.unsubscribe_url(ADDRESS, "newsletter", email_id=log.pk))


@pytest.fixture
def browser() -> Client:
    return Client(enforce_csrf_checks=True)


def path_of(url: str) -> str:
    return url.removeprefix("https://www.example.com")


def save(browser: Client, link: str, *kept: str) -> str:
    response = browser.post(link, {"choice": "save", "category": list(kept)})
    assert response.status_code == 200
    return response.content.decode()


def kept(browser: Client, link: str) -> set[str]:
    """Return the categories that are checked on the page."""
    text = browser.get(link).content.decode()
    return set(re.findall(r'name="category" value="([^"]+)" checked', text))


def suppressed() -> set[str]:
    return {name for name in ALL | {"other"} if suppression.is_suppressed(ADDRESS, name)}


def test_the_page_lists_the_categories_and_masks_the_address(link, browser) -> None:
    response = browser.get(link)
    text = response.content.decode()
    for title in ("The newsletter, once a month", "Offers and sales"):
        assert title in text
    assert "a…@e….com" in text
    assert "ayse" not in text
    assert not re.search(r"<script|<style|style=|onclick", text)
    assert "no-store" in response.headers["Cache-Control"]
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-Robots-Tag"] == "noindex"
    assert kept(browser, link) == ALL
    assert not Suppression.objects.exists()


def test_people_leave_one_category_and_come_back(link, browser) -> None:
    assert "Your choice is saved" in save(browser, link, "newsletter", "reviews")
    assert suppressed() == {"offers"}
    assert kept(browser, link) == {"newsletter", "reviews"}
    save(browser, link, *ALL)
    assert suppressed() == set()
    kinds = EmailEvent.objects.order_by("created_at").values_list("kind", flat=True)
    assert list(kinds) == ["unsubscribed", "subscribed"]


def test_people_leave_all_and_come_back_to_one(link, browser) -> None:
    response = browser.post(link, {"choice": "none"})
    assert "You receive no mail from us" in response.content.decode()
    assert suppressed() == ALL | {"other"}
    assert kept(browser, link) == set()
    save(browser, link, "reviews")
    assert suppressed() == ALL - {"reviews"}
    assert kept(browser, link) == {"reviews"}


def test_one_click_is_as_before(link, browser) -> None:
    response = browser.post(link, {"List-Unsubscribe": "One-Click"})
    assert "You are unsubscribed" in response.content.decode()
    assert suppressed() == {"newsletter"}
    assert kept(browser, link) == {"offers", "reviews"}


def test_a_choice_posted_again_writes_nothing(link, browser, django_assert_max_num_queries) -> None:
    save(browser, link, "newsletter")
    with django_assert_max_num_queries(30) as seen:
        save(browser, link, "newsletter")
    written = [it["sql"] for it in seen.captured_queries if not it["sql"].startswith("SELECT")]
    assert written == []


def test_only_what_was_unsubscribed_comes_back(link, browser) -> None:
    for reason in ("bounce", "complaint", "manual"):
        suppression.add(ADDRESS, reason=reason)
        suppression.add(ADDRESS, reason=reason, scope="offers")
    browser.post(link, {"choice": "none"})
    save(browser, link, *ALL)
    assert set(Suppression.objects.values_list("reason", "scope")) == {
        (reason, scope) for reason in ("bounce", "complaint", "manual") for scope in ("", "offers")
    }


def test_transactional_and_unknown_categories_cannot_be_chosen(link, browser, epica_mail) -> None:
    epica_mail(TRANSACTIONAL=["offers"])
    assert "Offers and sales" not in browser.get(link).content.decode()
    save(browser, link, "newsletter", "reviews", "invented", "offers")
    assert not Suppression.objects.exists()


def test_the_category_of_the_mail_is_listed_without_a_title_too(site, smtp, browser) -> None:
    link = path_of(links.unsubscribe_url(ADDRESS, "<survey>"))
    assert "&lt;survey&gt;" in browser.get(link).content.decode()
    save(browser, link, *ALL)
    assert suppression.is_suppressed(ADDRESS, "<survey>")
    assert suppressed() == set()


def test_a_link_works_after_its_mail_is_deleted_and_shows_no_address(link, browser) -> None:
    EmailLog.objects.all().delete()
    assert "…" not in browser.get(link).content.decode()
    save(browser, link, "newsletter")
    assert suppressed() == {"offers", "reviews"}
    assert kept(browser, link) == {"newsletter"}
    save(browser, link, *ALL)
    assert suppressed() == set()


def test_choices_are_found_under_a_rotated_key(link, browser, settings) -> None:
    save(browser, link, "newsletter")
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]
    assert kept(browser, link) == {"newsletter"}
    save(browser, link, *ALL)
    assert suppressed() == set()


def test_a_link_that_is_not_ours_chooses_nothing(site, smtp, browser) -> None:
    response = browser.post("/mail/unsubscribe/forged/", {"choice": "none"})
    assert response.status_code == 404
    assert not Suppression.objects.exists()


def test_the_page_speaks_the_readers_language(link, browser) -> None:
    with translation.override("tr"):
        assert "Seçimimi kaydet" in browser.get(link).content.decode()


def test_without_categories_the_page_asks_as_before(link, browser, epica_mail) -> None:
    epica_mail(CATEGORIES={})
    assert "You will receive no more" in browser.get(link).content.decode()
    response = browser.post(link, {"choice": "save", "category": list(ALL)})
    assert "You are unsubscribed" in response.content.decode()
    assert suppressed() == {"newsletter"}


@pytest.mark.parametrize("value", [["newsletter"], {"": "x"}, {"newsletter": 1}, {"news": ""}])
def test_a_value_without_titles_is_refused(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="CATEGORIES"):
        conf.parse({"CATEGORIES": value})


def test_a_choice_can_be_changed_a_dozen_times_a_minute(link, browser, monkeypatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: clock[0])
    choices = [["offers"], []] * (views.CHANGES_A_MINUTE // 2)
    for names in choices:
        save(browser, link, *names)
        save(browser, link, *names)  # what changes nothing does not count
    before = set(Suppression.objects.values_list("pk", flat=True))
    response = browser.post(link, {"choice": "save", "category": ["offers"]})
    assert response.status_code == 429
    assert "is not saved" in response.content.decode()
    assert set(Suppression.objects.values_list("pk", flat=True)) == before
    assert kept(browser, link) == set()
    clock[0] += 60
    save(browser, link, "offers")
    assert kept(browser, link) == {"offers"}


def test_another_link_has_changes_of_its_own_and_few_links_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr(views, "_MOST_LINKS", 3)
    changes = views._Changes()
    wishes = [links.Unsubscription("d", "", uuid.UUID(int=it)) for it in range(9)]
    assert [changes.allow(wishes[0]) for _ in range(13)] == [True] * 12 + [False]
    assert all(changes.allow(it) for it in wishes[1:])
    assert len(changes._made) == 3
