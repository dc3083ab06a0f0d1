"""No page cuts a text or is wider than its window, in both languages; and pictures of them all.

Where pictures are kept, as ``tox run -e pictures`` does, each page is drawn at three widths, in
light and dark.
"""

from __future__ import annotations

from tests.browser.chrome import Chrome
from tests.browser.conftest import Shop
from tests.browser.layout import cut_texts
from tests.browser.pages import WIDTHS, filled, visit


def test_no_text_is_cut_and_no_page_is_wider_than_its_window(
    shop: Shop, chrome: Chrome, past: None, language: str
) -> None:
    found: list[str] = []
    with filled(shop) as pages:
        for name, path in pages.items():
            chrome.look("light")
            visit(chrome, name, path)
            for size in WIDTHS:
                for theme in ("light", "dark") if chrome.pictures else ("light",):
                    chrome.look(theme, size)  # type: ignore[arg-type]
                    chrome.keep(f"{name}-{size[0]}-{theme}-{language}")
                chrome.look("light", size)
                found += [f"{name} at {size[0]}: {it}" for it in cut_texts(chrome)]
    assert not found, "\n".join(found)
