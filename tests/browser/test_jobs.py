"""The jobs of an operator in a real browser, in English and in Turkish, by counted clicks."""

from __future__ import annotations

from typing import Any

import pytest

from devservers.process import wait_until
from tests.browser import inside
from tests.browser.chrome import PHONE, TIMEOUT, Chrome
from tests.browser.conftest import Shop

DASHBOARD = "/admin/epica_mail/emailtotal/"
MAILS = "/admin/epica_mail/emaillog/"


class Clicks:
    """Follows links and buttons, and counts them."""

    def __init__(self, chrome: Chrome) -> None:
        self._chrome = chrome
        self.number = 0

    def press(self, selector: str) -> None:
        """Click an element that leads to another page."""
        self._chrome.press(selector)
        self.number += 1


@pytest.fixture
def clicks(chrome: Chrome) -> Clicks:
    return Clicks(chrome)


def test_what_failed_for_one_reason_in_the_last_hour_is_requeued_by_three_clicks(
    shop: Shop, chrome: Chrome, clicks: Clicks, language: str
) -> None:
    made = shop.call(inside.fail_for_reasons, f"Kampanya {language}")
    chrome.open(DASHBOARD)
    clicks.press("a.em-last-hour[href*='code=554']")
    chrome.picture(f"reason-{language}")
    clicks.press(".epica-matching button[value=requeue]")
    assert "3 ×" in chrome.text
    assert "554" in chrome.text
    assert "5.7.1 blocked" in chrome.text
    clicks.press(".epica-confirm button")
    assert clicks.number == 3
    for mail in made["blocked"]:
        shop.wait_until_it_is(mail, "sent")
    assert {shop.status_of(mail) for mail in made["unknown"] + made["old"]} == {"failed"}


def test_a_group_of_reasons_is_left_out(shop: Shop, chrome: Chrome, language: str) -> None:
    made = shop.call(inside.fail_for_reasons, f"Grup {language}")
    chrome.open(f"{MAILS}?status=failed&ended=hour&q=Grup+{language}")
    chrome.press(".epica-matching button[value=requeue]")
    chrome.picture(f"groups-{language}")
    chrome.one("input[name=group][value='failed|permanent|550']").click()
    chrome.one("#epica-note").send_keys("Liste temizlendi")
    chrome.press(".epica-confirm button")
    for mail in made["blocked"]:
        shop.wait_until_it_is(mail, "sent")
    assert {shop.status_of(mail) for mail in made["unknown"] + made["old"]} == {"failed"}
    chrome.open(f"{MAILS}{made['blocked'][0]}/change/")
    deeds = chrome.one("#epica-timeline").text
    assert "root: " in deeds
    assert "Liste temizlendi" in deeds


def test_a_bounce_is_seen_in_the_list_and_on_top_of_the_page(
    shop: Shop, chrome: Chrome, clicks: Clicks, language: str
) -> None:
    mail = shop.deliver(f"geri-{language}@example.com", "Fatura")
    shop.call(inside.record, mail, "bounced", "550 mailbox unavailable")
    chrome.open(MAILS)
    chrome.one("#searchbar").send_keys(f"geri-{language}@")
    clicks.press("#changelist-search input[type=submit]")
    named = {"en": ["sent", "bounced"], "tr": ["gönderildi", "geri döndü"]}[language]
    assert [it.text for it in chrome.all("#result_list .field-state .epica-badge")] == named
    clicks.press("#result_list .epica-subject")
    assert clicks.number == 2
    assert [it.text for it in chrome.all("h1 .epica-badge")] == named
    assert "550 mailbox unavailable" in chrome.one("#epica-live .epica-failed").text
    chrome.picture(f"bounced-{language}")


def test_mail_is_found_by_what_people_have_of_it(shop: Shop, english: Chrome) -> None:
    mail = shop.deliver("bul@bul.example", "Arama")
    shop.call(inside.record, mail, "delivered")
    query = f"SELECT message_id FROM epica_mail_emaillog WHERE id = '{mail.replace('-', '')}'"
    bare = str(shop.fetch(query)[0][0]).strip("<>")
    for term in (bare, f"ses-{mail}", "bul.example"):
        english.open(MAILS)
        english.one("#searchbar").send_keys(term)
        english.press("#changelist-search input[type=submit]")
        (link,) = english.all("#result_list .epica-subject")
        assert mail in (link.get_attribute("href") or ""), term
    english.open(f"{MAILS}?q=nobody-has-this")
    assert len(english.all(".epica-notice li")) == 2
    english.picture("nothing-found")


def test_a_mail_is_watched_without_reloading(shop: Shop, chrome: Chrome, language: str) -> None:
    mail = shop.call(inside.send_tomorrow, "a@example.com", f"Canlı {language}")
    chrome.open(f"{MAILS}{mail}/change/")
    chrome.driver.execute_script("window.isTheSamePage = true")
    shop.call(inside.send_now, mail)
    wait_until(
        lambda: chrome.all("#epica-status.epica-sent"), timeout=TIMEOUT, what="the page to say so"
    )
    assert chrome.driver.execute_script("return window.isTheSamePage")
    assert not chrome.all("#epica-live[data-refresh]")
    assert len(chrome.all("#epica-timeline .epica-event")) == 3


def test_what_is_being_copied_is_renewed_afterwards(shop: Shop, english: Chrome) -> None:
    mail = shop.call(inside.send_tomorrow, "a@example.com", "Kopya")
    english.open(f"{MAILS}{mail}/change/")
    select = "getSelection().selectAllChildren(document.querySelector('#epica-timeline'))"
    english.driver.execute_script(select)
    copied = english.driver.execute_script("return getSelection().toString()")
    shop.call(inside.send_now, mail)
    wait_until(
        lambda: english.all("#epica-status.epica-sent"), timeout=TIMEOUT, what="the page to say so"
    )
    assert english.driver.execute_script("return getSelection().toString()") == copied
    assert len(english.all("#epica-timeline .epica-event")) == 1
    english.driver.execute_script("getSelection().removeAllRanges()")
    wait_until(
        lambda: len(english.all("#epica-timeline .epica-event")) == 3,
        timeout=TIMEOUT,
        what="the timeline to follow",
    )


SIZES: list[Any] = [(1280, 900), (768, 1024), PHONE]


def test_the_list_fits_each_width(shop: Shop, chrome: Chrome, language: str) -> None:
    long = "Sipariş özetiniz ve teslimat bilgileriniz " * 6
    shop.deliver(f"cok.uzun.bir.alici.adresi.{language}@example.com", long)
    hidden = (
        "const it = document.querySelector('#changelist-form .results');"
        "return it.scrollWidth - it.clientWidth"
    )
    for size in SIZES:
        chrome.look("light", size)
        chrome.open(f"{MAILS}?q=cok.uzun")
        assert chrome.overflow() == 0, size
        assert chrome.driver.execute_script(hidden) == 0, size
        under = chrome.all(".field-mail .epica-under")[0]
        assert under.is_displayed()
        assert "cok.uzun.bir.alici" in under.text
        line = chrome.all(".epica-subject")[0]
        assert line.size["height"] <= 50, "two lines at most"
        is_folded = not chrome.all("#changelist-filter li a")[0].is_displayed()
        assert is_folded == (size[0] < 1025), size
        if is_folded:
            filters, table = chrome.one("#changelist-filter"), chrome.one("#result_list")
            assert filters.location["y"] < table.location["y"]
        if chrome.pictures:
            chrome.driver.save_screenshot(str(chrome.pictures / f"list-{size[0]}-{language}.png"))
    chrome.look("light")


def test_a_preview_is_one_click_away(chrome: Chrome, clicks: Clicks, language: str) -> None:
    chrome.open(f"{MAILS}previews/")
    clicks.press(".epica-choices a[href*='emails%2Fwelcome']")
    assert clicks.number == 1
    assert chrome.one("iframe.epica-frame").is_displayed()
