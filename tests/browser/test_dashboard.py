"""The dashboard in a real browser, in English and in Turkish."""

from __future__ import annotations

from devservers.process import wait_until
from tests.browser import inside
from tests.browser.chrome import PHONE, TIMEOUT, Chrome
from tests.browser.conftest import Shop

DASHBOARD = "/admin/epica_mail/emailtotal/"
FLOWS = {"en": "Mail flows.", "tr": "E-posta akışı normal."}


def test_it_shows_that_mail_flows(shop: Shop, chrome: Chrome, language: str, past: None) -> None:
    shop.deliver("ayse@example.com", "Sipariş")
    shop.sweep()
    chrome.open(DASHBOARD)
    assert FLOWS[language] in chrome.one("#em-verdict .em-verdict").text
    assert "smtp" in chrome.one("#em-flows").text
    charts = chrome.all("#em-charts figure")
    assert len(charts) == 4
    for chart in charts:
        assert len(chart.find_elements("css selector", "svg .em-slot title")) == 24
        assert len(chart.find_elements("css selector", "details tbody tr")) == 24
    assert chrome.all("#em-charts .em-sent svg .em-bar")
    chrome.picture(f"dashboard-{language}")
    for theme in ("light", "dark"):
        chrome.look(theme, PHONE)  # type: ignore[arg-type]
        assert chrome.overflow() == 0


def test_a_failure_reason_links_to_the_failed_mail(shop: Shop, chrome: Chrome, past: None) -> None:
    chrome.open(f"{DASHBOARD}?period=24h&queue=emails")
    chrome.press("#em-reasons tbody tr :first-child > a")
    assert "failure_kind=permanent" in chrome.driver.current_url
    assert "queue=emails" in chrome.driver.current_url
    assert chrome.one("#changelist")


def test_buttons_pause_and_resume_a_queue(shop: Shop, chrome: Chrome) -> None:
    chrome.open(f"{DASHBOARD}?period=7d")
    chrome.press("#em-gates button[value='pause queue emails']")
    assert chrome.driver.current_url.endswith(f"{DASHBOARD}?period=7d")
    assert chrome.all(".messagelist .success")
    shop.wait_for_gates()
    mail = shop.call(inside.send, "held@example.com", "Bekliyor")
    chrome.open(DASHBOARD)
    assert chrome.all("#em-gates .em-badge.em-warn")
    chrome.press("#em-gates button[value='resume queue emails']")
    assert not chrome.all("#em-gates .em-badge.em-warn")
    shop.wait_for_gates()
    shop.sweep()
    shop.wait_until_it_is(mail, "sent")


def test_the_headline_leads_to_the_mail_held_back_and_ends_the_pause(
    shop: Shop, chrome: Chrome
) -> None:
    chrome.open(DASHBOARD)
    chrome.one("#epica-note").send_keys("until the domain is verified")
    chrome.press("#em-gates button[value='pause queue emails']")
    shop.wait_for_gates()
    mail = shop.call(inside.send, "cause@example.com", "Sebep")
    chrome.open(DASHBOARD)
    assert "until the domain is verified" in chrome.one(".em-causes").text
    chrome.press(".em-causes a")
    assert chrome.one(f"#result_list a[href*='{mail}']")
    chrome.open(DASHBOARD)
    chrome.press(".em-causes button[value='resume queue emails']")
    chrome.press(".messagelist button[value='restore queue emails']")
    assert "until the domain is verified" in chrome.one(".em-causes").text
    chrome.press("#em-gates button[value='resume queue emails']")
    shop.wait_for_gates()
    shop.sweep()
    shop.wait_until_it_is(mail, "sent")


def test_it_refreshes_itself_and_keeps_the_focus(shop: Shop, english: Chrome, past: None) -> None:
    english.open(DASHBOARD)
    button = english.one("#em-gates button[value='pause queue emails']")
    english.driver.execute_script("arguments[0].focus()", button)
    english.driver.execute_script("document.querySelector('#em-sent-table').open = true")
    # Read in one step, because the page replaces the element.
    read = "return document.querySelector('#em-time').textContent"
    before = english.driver.execute_script(read)
    mail = shop.call(inside.send_tomorrow, "later@example.com", "Yarın")
    wait_until(
        lambda: english.driver.execute_script(read) != before,
        timeout=TIMEOUT,
        what="it to refresh itself",
    )
    focused = english.driver.switch_to.active_element
    assert focused.get_attribute("value") == "pause queue emails"
    assert english.driver.execute_script("return document.querySelector('#em-sent-table').open")
    assert not english.one("#em-stale").is_displayed()
    assert shop.status_of(mail) == "queued"


LET_TIME_PASS = """
window.renewals ??= 0;
const [time, ask] = [Date.now, window.fetch];
Date.now = () => time() + 16000;
window.fetch = async (...all) => {
    const response = await ask(...all);
    setTimeout(() => { window.renewals += 1; }, 500);
    return response;
};
document.dispatchEvent(new Event("visibilitychange"));
"""
"""Lets the page believe that its time to renew itself has come, and counts its renewals."""


def test_a_selection_outlasts_a_renewal(shop: Shop, english: Chrome, past: None) -> None:
    english.open(DASHBOARD)
    run = english.driver.execute_script
    read = "return document.querySelector('#em-time').textContent"
    before = run(read)
    run("getSelection().selectAllChildren(document.querySelector('#em-time'))")
    run(LET_TIME_PASS)
    wait_until(lambda: run("return window.renewals"), timeout=TIMEOUT, what="a renewal")
    assert run(read) == before
    assert run("return !getSelection().isCollapsed")
    run("getSelection().removeAllRanges()")
    run(LET_TIME_PASS)
    wait_until(lambda: run(read) != before, timeout=TIMEOUT, what="the next renewal")


def test_the_numbers_need_no_javascript(shop: Shop, english: Chrome, past: None) -> None:
    shop.call(inside.send_tomorrow, "later@example.com", "Yarın")
    english.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        english.open(DASHBOARD)
        waiting = english.all("#em-flows tbody tr td:nth-of-type(2)")
        assert sum(int(number.text) for number in waiting) >= 1
        assert english.all("#em-charts svg .em-bar")
        assert english.one("#em-reasons tbody tr :first-child > a").is_displayed()
    finally:
        english.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_workers_report_the_queues_they_consume(shop: Shop, english: Chrome) -> None:
    english.open(DASHBOARD)
    english.press("#em-workers a")
    assert "emails" in english.one("#em-workers table").text


def test_a_viewer_has_no_buttons(viewer: Chrome) -> None:
    viewer.open(DASHBOARD)
    assert viewer.one("#em-gates table")
    assert not viewer.all("#em-gates button")
