/* Renews the parts of the dashboard that have changed, while somebody looks at it. Without it the
   page is the same, of the moment it was loaded. */
"use strict";

(() => {
    const dashboard = document.getElementById("em-dashboard");
    const pause = Number(dashboard.dataset.refresh) * 1000;
    if (!pause) {
        return;
    }
    let timer = 0;
    let last = Date.now();

    function isSelected(part) {
        const selection = getSelection();
        return !selection.isCollapsed && selection.containsNode(part, true);
    }

    function replace(part, fresh) {
        const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
        for (const details of part.querySelectorAll("details[open]")) {
            const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
            if (same) {
                same.open = true;
            }
        }
        if (part.outerHTML === fresh.outerHTML) {
            return;
        }
        part.replaceWith(fresh);
        if (focused) {
            document.getElementById(focused)?.focus({preventScroll: true});
        }
    }

    async function renew() {
        last = Date.now();
        try {
            const response = await fetch(location.href, {credentials: "same-origin"});
            const page = new DOMParser().parseFromString(await response.text(), "text/html");
            if (!response.ok || !page.getElementById("em-dashboard")) {
                throw new Error("not the dashboard"); // the session is over, for instance
            }
            const changed = [];
            for (const part of dashboard.querySelectorAll("[data-part]")) {
                const fresh = page.getElementById(part.id);
                if (fresh && part.outerHTML !== fresh.outerHTML) {
                    changed.push([part, fresh]);
                }
            }
            // What somebody is copying stays, and the rest with it, to be all of one moment.
            if (!changed.some(([part]) => isSelected(part))) {
                for (const [part, fresh] of changed) {
                    replace(part, document.importNode(fresh, true));
                }
            }
            document.getElementById("em-stale").hidden = true;
        } catch {
            document.getElementById("em-stale").hidden = false;
        }
        plan();
    }

    function plan() {
        clearTimeout(timer);
        if (!document.hidden) {
            timer = setTimeout(renew, Math.max(0, last + pause - Date.now()));
        }
    }

    document.addEventListener("visibilitychange", plan);
    plan();
})();
