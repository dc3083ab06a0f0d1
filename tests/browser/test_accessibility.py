"""Each page of ours against axe-core's rules, at the widths of a desk, a tablet and a phone."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import inside
from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop

ADMIN = "/admin/epica_mail/"
HTML = "<!doctype html><html lang='en'><title>t</title><body><p>Plain</p></body></html>"
LONG = f"{'a' * 60}@{'b' * 60}.example.com"
SIZES = ((1440, 900), (768, 1024), (390, 844))

CHROME = {"label-title-only": ("#searchbar",)}
"""Parts of the pages that are Django's own, by the rule that they break.

The label of the admin's search box is a picture with a name, which the rule does not read.
"""

RUN = """
const done = arguments[arguments.length - 1];
// What is shown in a mail's frame is the mail's.
axe.run(document, {iframes: false, resultTypes: ["violations"]}).then(
    (results) => done(results.violations.flatMap((rule) => rule.nodes.map((node) => [
        rule.id, node.target.join(" "), node.html.slice(0, 200), node.failureSummary,
    ]))),
    (error) => done([["error", "", String(error), ""]]),
);
"""


@pytest.fixture(scope="module")
def axe() -> str:
    """Return the source of axe-core."""
    folder = importlib.resources.files("axe_selenium_python") / "node_modules" / "axe-core"
    return (folder / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(shop: Shop, past: None) -> Iterator[dict[str, str]]:
    """Fill the site, and return the paths of the pages; other tests find no mail of this one."""
    text = ("a.txt", "words", "text/plain")
    mail = shop.deliver(LONG, "Sipariş " + "çok uzun " * 40, HTML, attachments=(text,))
    shop.call(inside.record, mail, "bounced", "550 mailbox unavailable")
    shop.call(inside.suppress, LONG)
    waiting, lost = (shop.call(inside.send_tomorrow, LONG, "Erişim") for _ in range(2))
    shop.call(inside.lose, lost)
    batch = shop.call(inside.send_bulk, 2)
    yield {
        "list": f"{ADMIN}emaillog/",
        "content": f"{ADMIN}emaillog/{mail}/change/",
        "mail": f"{ADMIN}emaillog/{waiting}/change/",
        "dashboard": f"{ADMIN}emailtotal/",
        "gates": f"{ADMIN}deliverygate/",
        "batches": f"{ADMIN}emailbatch/",
        "batch": f"{ADMIN}emailbatch/{batch}/change/",
        "events": f"{ADMIN}emailevent/",
        "suppressions": f"{ADMIN}suppression/",
        "previews": f"{ADMIN}emaillog/previews/?template=emails/welcome",
        "confirm": f"{ADMIN}emaillog/?q=Erişim",
    }
    shop.call(inside.remove, [mail, waiting, lost])


def test_no_page_breaks_a_rule(
    shop: Shop, english: Chrome, pages: dict[str, str], axe: str
) -> None:
    found: list[str] = []
    for name, path in pages.items():
        english.look("light")
        english.open(path)
        if name == "confirm":
            english.press(".epica-matching button[value=cancel]")
        for details in english.all("#content details:not([open])"):
            english.driver.execute_script("arguments[0].open = true", details)
        english.driver.execute_script(axe)
        for size in SIZES:
            english.look("light", size)
            for rule, target, html, why in _violations(english):
                if not any(part in target for part in CHROME.get(rule, ())):
                    found.append(f"{name} at {size[0]}: {rule} {target}\n  {html}\n  {why}")
    english.look("light")
    assert not found, "\n".join(found)


def _violations(chrome: Chrome) -> list[Any]:
    found: list[Any] = chrome.driver.execute_async_script(RUN)
    return found
