"""A bar that says how far long work is, where a person looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_WIDTH = 30


def bar(stream: Any, doing: str) -> Callable[[int, int], None]:
    """Return what draws, on a terminal, how much of the whole is done; elsewhere, nothing.

    ``stream`` is the command's stderr. What is returned takes the number so far and the whole.
    """
    is_terminal = stream.isatty()
    shown = -1

    def advance(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if is_terminal and percent != shown:
            shown = percent
            filled = "#" * (_WIDTH * done // max(total, 1))
            end = "\n" if done >= total else ""
            stream.write(f"\r{doing} [{filled:<{_WIDTH}}] {percent:3} % of {total}", ending=end)
            stream.flush()

    return advance
