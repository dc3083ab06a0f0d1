/* Unfolds the filters beside the list in a wide window. Without it they unfold at a click. */
"use strict";

(() => {
    const wide = matchMedia("(min-width: 1025px)");
    const unfold = () => {
        const fold = document.querySelector("#changelist-filter .epica-fold");
        if (fold) {
            fold.open = wide.matches;
        }
    };
    wide.addEventListener("change", unfold);
    unfold();
})();
