"""What a page's layout must not do: cut text, or make something too small to hit."""

from __future__ import annotations

from typing import Any

from tests.browser.chrome import Chrome

_CUT = """
const [within] = arguments;
const found = [];
// An ellipsis after two lines, a picture in a menu, and what only screen readers see.
const allowed = ".epica-subject, iframe, select, option";
const unseen = ".epica-hidden, .visually-hidden, svg";
for (const it of document.querySelectorAll(`${within} *`)) {
    if (!it.checkVisibility() || it.matches(allowed) || it.closest(unseen)) {
        continue;
    }
    const style = getComputedStyle(it);
    const scrolls = /auto|scroll/.test(style.overflowX);
    if (it.clientWidth && !scrolls && style.display !== "inline"
            && it.scrollWidth > it.clientWidth + 1) {
        found.push(`${it.scrollWidth - it.clientWidth} px too wide: ${it.outerHTML.slice(0, 200)}`);
    }
}
return found;
"""
"""Returns the elements whose content is wider than they are, and that cannot be scrolled."""

_SMALL = """
const found = [];
const targets = [...document.querySelectorAll(
    "#content a[href], #content button, #content summary, #content select, "
    + "#content input:not([type=hidden])")].filter((it) => it.checkVisibility() && !it.disabled);
const boxes = targets.map((it) => it.getBoundingClientRect());
const middle = (box) => [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
// In a sentence the height of a line is enough.
const isInline = (it) => {
    const block = it.closest("p, li, td, th, div, h1, label, span.epica-fact");
    return getComputedStyle(it).display === "inline" && block
        && block.textContent.trim().length > it.textContent.trim().length;
};
// A smaller target is no fault if a circle of 24 pixels around its middle touches no other one.
const isFree = (index) => {
    const [x, y] = middle(boxes[index]);
    return boxes.every((other, place) => {
        if (place === index || targets[place].contains(targets[index])
                || targets[index].contains(targets[place])) {
            return true;
        }
        const isSmall = other.width < 24 || other.height < 24;
        const away = isSmall
            ? Math.hypot(middle(other)[0] - x, middle(other)[1] - y) - 12
            : Math.hypot(Math.max(other.left - x, x - other.right, 0),
                         Math.max(other.top - y, y - other.bottom, 0));
        return away >= 12;
    });
};
targets.forEach((it, index) => {
    const {width, height} = boxes[index];
    if (width && height && (width < 23.5 || height < 23.5) && !isInline(it) && !isFree(index)) {
        found.push(`${Math.round(width)}x${Math.round(height)}: ${it.outerHTML.slice(0, 160)}`);
    }
});
return found;
"""
"""Returns the targets that break WCAG 2.5.8, with its exceptions for spacing and for sentences."""


def cut_texts(chrome: Chrome, within: str = "#content") -> list[str]:
    """Return what is wider than its place, and by how much the page is wider than the window."""
    found: list[Any] = chrome.driver.execute_script(_CUT, within)
    too_wide = chrome.overflow()
    return [*found, *([f"{too_wide} px wider than the window"] if too_wide else [])]


def small_targets(chrome: Chrome) -> list[str]:
    """Return the links, buttons and fields below 24 pixels that do not stand free."""
    found: list[Any] = chrome.driver.execute_script(_SMALL)
    return found
