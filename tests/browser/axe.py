"""axe-core: which rules of accessibility a page breaks."""

from __future__ import annotations

import importlib.resources
from functools import cache
from typing import Any

from tests.browser.chrome import Chrome

_CHROME = {"label-title-only": ("#searchbar",)}
"""Parts of the pages that are Django's own, by the rule that they break.

The label of the admin's search box is a picture with a name, which the rule does not read.
"""
_RUN = """
const [within, rules, done] = arguments;
// What is shown in a mail's frame is the mail's.
const options = {iframes: false, resultTypes: ["violations"]};
if (rules.length) {
    options.runOnly = {type: "rule", values: rules};
}
axe.run(within || document, options).then(
    (results) => done(results.violations.flatMap((rule) => rule.nodes.map((node) => [
        rule.id, node.target.join(" "), node.html.slice(0, 200), node.failureSummary,
    ]))),
    (error) => done([["error", "", String(error), ""]]),
);
"""


@cache
def _source() -> str:
    folder = importlib.resources.files("axe_selenium_python") / "node_modules" / "axe-core"
    return (folder / "axe.min.js").read_text(encoding="utf-8")


def violations(chrome: Chrome, *rules: str, within: str = "") -> list[str]:
    """Return what breaks a rule, or one of ``rules``, on the page or ``within`` a CSS selector."""
    run = chrome.driver.execute_script
    if not run("return 'axe' in window"):
        run(_source())
    found: list[Any] = chrome.driver.execute_async_script(_RUN, within, list(rules))
    return [
        f"{rule} {target}\n  {html}\n  {why}"
        for rule, target, html, why in found
        if not any(part in target for part in _CHROME.get(rule, ()))
    ]
