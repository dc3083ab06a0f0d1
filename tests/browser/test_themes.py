"""The pages under the themes that many sites give their admin: django-unfold and django-jazzmin.

Of each, two pages are looked at; where pictures are kept, as ``tox run -e themes`` does, all are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devservers.web import Web
from tests.acceptance.places import EXAMPLE_PROJECT
from tests.browser import inside
from tests.browser.axe import violations
from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop
from tests.browser.layout import cut_texts
from tests.browser.pages import WIDTHS, filled, visit

SMOKE = ("dashboard", "content")

UNSTYLED = """
const plain = "rgba(0, 0, 0, 0)";
const found = [];
const check = (selector, is_right) => {
    for (const it of document.querySelectorAll(selector)) {
        if (it.checkVisibility() && !is_right(getComputedStyle(it), it)) {
            found.push(it.outerHTML.slice(0, 160));
        }
    }
};
const has_room = (style) => parseFloat(style.paddingTop) >= 4 && parseFloat(style.paddingLeft) >= 4;
check(".epica-button:not(.epica-secondary), .epica-tool, .epica-badge",
      (style) => style.backgroundColor !== plain && parseFloat(style.paddingLeft) >= 4);
check(".epica-button.epica-secondary", (style) => style.boxShadow !== "none" && has_room(style));
check(".epica-table th, .epica-table td",
      (style) => has_room(style) && parseFloat(style.borderBottomWidth) >= 1);
check(".epica-part > h2", (style) => has_room(style) && style.backgroundColor !== plain);
check(".epica-head h1", (style) => parseFloat(style.fontSize) >= 18);
check(".epica-field", (style) => parseFloat(style.borderTopWidth) >= 1);
check(".epica-hidden", (style, it) => it.offsetWidth <= 1);
return found;
"""
"""Returns what looks like bare text: buttons, headings, tables and fields without their style."""


@pytest.fixture(scope="module", params=["unfold", "jazzmin"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def themed(shop: Shop, theme: str, chromium: Chrome) -> Iterator[Chrome]:
    """Serve the site with a theme, and log in the superuser."""
    # Warnings of the theme's own code are not the package's concern.
    env = {**shop.env, "BROWSER_THEME": theme, "PYTHONWARNINGS": ""}
    plain = chromium.site
    with Web(EXAMPLE_PROJECT, env, folder=shop.folder, name=theme, insecure=True) as web:
        chromium.visit_as("root", "en", inside.PASSWORD)  # one session is good for both
        chromium.site = web.url()
        yield chromium
    chromium.site = plain


@pytest.fixture(scope="module")
def pages(shop: Shop, past: None) -> Iterator[dict[str, str]]:
    with filled(shop) as paths:
        yield paths


@pytest.mark.parametrize("look", ["light", "dark"])
def test_the_pages_have_their_style(
    themed: Chrome, theme: str, pages: dict[str, str], look: Any
) -> None:
    found: list[str] = []
    for name in SMOKE if themed.pictures is None else pages:
        themed.look(look)
        visit(themed, name, pages[name])
        assert themed.all(".epica-page, #changelist"), name
        found += [f"{name}: {it}" for it in themed.driver.execute_script(UNSTYLED)]
        if themed.all(".epica-page"):
            found += [
                f"{name}: {it}" for it in violations(themed, "color-contrast", within=".epica-page")
            ]
        for size in WIDTHS if themed.pictures else WIDTHS[:1]:
            themed.look(look, size)
            found += [f"{name} at {size[0]}: {it}" for it in cut_texts(themed, ".epica-page")]
            themed.keep(f"{theme}-{name}-{size[0]}-{look}")
    themed.look("light")
    assert not found, "\n".join(found)
