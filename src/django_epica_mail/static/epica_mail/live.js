/* Renews the parts of an e-mail's page that have changed, until the e-mail has come to its end.
   Without it the page is the same, of the moment it was loaded. */
"use strict";

(() => {
    const pause = Number(document.getElementById("epica-live").dataset.refresh) * 1000;
    let timer = 0;
    let isOver = false;

    function isInUse(part) {
        const selection = getSelection();
        return part.contains(document.activeElement)
            || (!selection.isCollapsed && selection.containsNode(part, true));
    }

    async function renew() {
        try {
            const response = await fetch(location.href, {credentials: "same-origin"});
            const page = new DOMParser().parseFromString(await response.text(), "text/html");
            const live = response.ok && page.getElementById("epica-live");
            if (live) {
                isOver = !live.dataset.refresh;
                for (const part of document.querySelectorAll("[data-part]")) {
                    const fresh = page.getElementById(part.id);
                    // What somebody is copying, or about to press, stays until the next time.
                    if (fresh && part.outerHTML !== fresh.outerHTML) {
                        if (isInUse(part)) {
                            isOver = false;
                        } else {
                            part.replaceWith(document.importNode(fresh, true));
                        }
                    }
                }
            }
        } catch {
            // The server is away for a moment; the next time it may be there.
        }
        plan();
    }

    function plan() {
        clearTimeout(timer);
        if (!document.hidden && !isOver) {
            timer = setTimeout(renew, pause);
        }
    }

    document.addEventListener("visibilitychange", plan);
    plan();
})();
