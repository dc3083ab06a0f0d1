"""Each page against axe-core's rules, from right to left, and the size of what is to be hit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.axe import violations
from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop
from tests.browser.layout import small_targets
from tests.browser.pages import CONFIRM, WIDTHS, filled, visit


@pytest.fixture(scope="module")
def pages(shop: Shop, past: None) -> Iterator[dict[str, str]]:
    with filled(shop) as paths:
        yield paths


@pytest.mark.parametrize(("language", "theme"), [("en", "light"), ("tr", "dark")])
def test_no_page_breaks_a_rule(chrome: Chrome, pages: dict[str, str], theme: Any) -> None:
    found: list[str] = []
    for name, path in pages.items():
        chrome.look(theme)
        visit(chrome, name, path)
        for size in WIDTHS:
            chrome.look(theme, size)
            found += [f"{name} at {size[0]}: {it}" for it in violations(chrome)]
    assert not found, "\n".join(found)


def test_every_target_is_large_enough_to_hit(english: Chrome, pages: dict[str, str]) -> None:
    found: list[str] = []
    for name, path in pages.items():
        english.look("light")
        visit(english, name, path)
        for size in (WIDTHS[0], WIDTHS[-1]):
            english.look("light", size)
            found += [f"{name} at {size[0]}: {it}" for it in small_targets(english)]
    assert not found, "\n".join(found)


DIRECTIONS = """
const direction = (it) => getComputedStyle(it).direction;
return {
    page: document.documentElement.dir,
    table: direction(document.querySelector("#em-flows table")),
    charts: [...document.querySelectorAll(".em-chart svg")].map(direction),
};
"""
REPLIES = "return [...document.querySelectorAll('.epica-reply')].map((it) => it.dir)"


@pytest.mark.parametrize("language", ["he"])
def test_a_page_from_right_to_left_keeps_charts_and_replies_from_left_to_right(
    chrome: Chrome, pages: dict[str, str]
) -> None:
    chrome.open(pages["dashboard"])
    found = chrome.driver.execute_script(DIRECTIONS)
    assert (found["page"], found["table"]) == ("rtl", "rtl")
    assert found["charts"] == ["ltr"] * 4
    for size in WIDTHS:
        chrome.look("light", size)
        assert chrome.overflow() == 0, size
        chrome.keep(f"dashboard-{size[0]}-he")
    chrome.look("light")
    chrome.open(pages["content"])
    replies = chrome.driver.execute_script(REPLIES)
    assert len(replies) >= 2, "the bounce and its place in the timeline"
    assert set(replies) == {"ltr"}
    times = chrome.all("#epica-timeline time")
    assert times[0].location["x"] > chrome.one("#epica-timeline").location["x"] + 300
    chrome.keep("content-1280-he")
    chrome.open(pages[CONFIRM])
    assert chrome.overflow() == 0
