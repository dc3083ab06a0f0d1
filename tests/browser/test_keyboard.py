"""The jobs of an operator by the keyboard alone: no element is clicked or focused by a script."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from devservers.smtp_faults import refuse
from tests.browser import inside
from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop

DASHBOARD = "/admin/epica_mail/emailtotal/"
MAILS = "/admin/epica_mail/emaillog/"
FARTHEST = 150
"""Within so many presses of Tab, everything must be reached."""


class Keyboard:
    """Presses keys, and never the mouse."""

    def __init__(self, chrome: Chrome) -> None:
        self._chrome = chrome

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        ActionChains(self._chrome.driver).send_keys(*keys).perform()

    def reach(self, selector: str) -> None:
        """Press Tab until an element that matches has the focus, and can be seen to have it."""
        run = self._chrome.driver.execute_script
        for _ in range(FARTHEST):
            self.press(Keys.TAB)
            if run("return document.activeElement.matches(arguments[0])", selector):
                assert run(
                    "const it = getComputedStyle(document.activeElement);"
                    "return it.outlineStyle !== 'none' || it.boxShadow !== 'none'"
                    " || it.borderTopStyle !== 'none' || it.textDecorationLine !== 'none'"
                ), f"{selector} does not show that it has the focus"
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def follow(self, selector: str, key: str = Keys.ENTER) -> None:
        """Reach a link or button that leads to another page, press it, and wait for the page."""
        self.reach(selector)
        with self._chrome.another_page():
            self.press(key)


@pytest.fixture
def keyboard(english: Chrome) -> Keyboard:
    return Keyboard(english)


def test_it_finds_why_a_mail_did_not_arrive(
    shop: Shop, english: Chrome, keyboard: Keyboard
) -> None:
    shop.smtp.inject(refuse("rcpt", 550, "5.1.1 No such user here", times=1))
    mail = shop.call(inside.send, "tastatur@example.com", "Tuş")
    shop.wait_until_it_is(mail, "failed")
    english.open(MAILS)
    keyboard.reach("#searchbar")
    keyboard.press("tastatur@")
    with english.another_page():
        keyboard.press(Keys.ENTER)
    keyboard.follow("#result_list .epica-subject")
    assert mail in english.driver.current_url
    assert "550 5.1.1 No such user here" in english.one("#epica-timeline").text
    keyboard.reach(".epica-part [tabindex='0']")


def test_it_goes_from_the_headline_to_the_mail_held_back_and_ends_the_pause(
    shop: Shop, english: Chrome, keyboard: Keyboard
) -> None:
    english.open(DASHBOARD)
    keyboard.reach("#epica-note")
    keyboard.press("until noon", Keys.ENTER)
    assert not english.all(".messagelist"), "Enter in the note does nothing"
    keyboard.follow("#em-gates button[value='pause queue emails']", Keys.SPACE)
    shop.wait_for_gates()
    mail = shop.call(inside.send, "bekle@example.com", "Bekle")
    english.open(DASHBOARD)
    keyboard.follow(".em-causes a")
    assert english.one(f"#result_list a[href*='{mail}']")
    keyboard.follow(f"#result_list a[href*='{mail}']")
    english.open(DASHBOARD)
    keyboard.follow(".em-causes button[value='resume queue emails']")
    assert english.all(".messagelist .success")
    shop.wait_for_gates()
    shop.sweep()
    shop.wait_until_it_is(mail, "sent")


def test_it_requeues_what_failed_for_one_reason(
    shop: Shop, english: Chrome, keyboard: Keyboard
) -> None:
    made = shop.call(inside.fail_for_reasons, "Tuşla")
    english.open(DASHBOARD)
    keyboard.follow("#em-reasons a.em-last-hour[href*='code=554']")
    keyboard.follow(".epica-matching button[value=requeue]")
    keyboard.follow(".epica-confirm button", Keys.SPACE)
    for mail in made["blocked"]:
        shop.wait_until_it_is(mail, "sent")
    assert {shop.status_of(mail) for mail in made["unknown"] + made["old"]} == {"failed"}


def test_it_narrows_the_list_and_chooses_a_period(
    shop: Shop, english: Chrome, keyboard: Keyboard, past: None
) -> None:
    english.look("light", (768, 1024))
    english.open(MAILS)
    keyboard.reach("#changelist-filter .epica-fold > summary")
    keyboard.press(Keys.SPACE)
    keyboard.follow("#changelist-filter a[href='?status=failed']")
    english.look("light")
    english.open(DASHBOARD)
    keyboard.reach("#em-period")
    keyboard.press(Keys.ARROW_DOWN)
    keyboard.follow(".em-filter button")
    assert "period=7d" in english.driver.current_url
