"""Every page of the package in the admin, with something to see on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.browser import inside
from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop

ADMIN = "/admin/epica_mail/"
HTML = "<!doctype html><html lang='en'><title>t</title><body><p>Plain</p></body></html>"
LONG = f"{'a' * 60}@{'b' * 60}.example.com"
WIDTHS = ((1440, 900), (768, 1024), (390, 844))
"""A desk, a tablet and a phone."""
CONFIRM = "confirm"
"""The page that is reached by a button of its path."""


@contextmanager
def filled(shop: Shop) -> Iterator[dict[str, str]]:
    """Fill the site, and yield the paths of the pages; other tests find no mail of this one."""
    text = ("a.txt", "words", "text/plain")
    mail = shop.deliver(LONG, "Sipariş " + "çok uzun " * 40, HTML, attachments=(text,))
    shop.call(inside.record, mail, "bounced", "550 mailbox unavailable")
    shop.call(inside.suppress, LONG)
    waiting, lost = (shop.call(inside.send_tomorrow, LONG, "Erişim") for _ in range(2))
    shop.call(inside.lose, lost)
    batch = shop.call(inside.send_bulk, 2)
    yield {
        "list": f"{ADMIN}emaillog/",
        "list-narrowed": f"{ADMIN}emaillog/?q=Erişim",
        "content": f"{ADMIN}emaillog/{mail}/change/",
        "mail": f"{ADMIN}emaillog/{waiting}/change/",
        "dashboard": f"{ADMIN}emailtotal/",
        "gates": f"{ADMIN}deliverygate/",
        "batches": f"{ADMIN}emailbatch/",
        "batch": f"{ADMIN}emailbatch/{batch}/change/",
        "events": f"{ADMIN}emailevent/",
        "suppressions": f"{ADMIN}suppression/",
        "previews": f"{ADMIN}emaillog/previews/?template=emails/welcome",
        CONFIRM: f"{ADMIN}emaillog/?q=Erişim",
    }
    shop.call(inside.remove, [mail, waiting, lost])


def visit(chrome: Chrome, name: str, path: str) -> None:
    """Open a page, and unfold what it hides."""
    chrome.open(path)
    if name == CONFIRM:
        chrome.press(".epica-matching button[value=cancel]")
    for details in chrome.all("#content details:not([open])"):
        chrome.driver.execute_script("arguments[0].open = true", details)
