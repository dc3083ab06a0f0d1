"""Show the progress of arriving mail: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

Count = tuple[str, "Callable[[], int]"]


class Display:
    """Counts that grow to a total; output printed in the `with` block appears above them."""

    def __init__(self, console: Console, counts: list[Count], total: int) -> None:
        self.counts = counts
        self.total = total
        self.console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bars = [self._progress.add_task(name, total=total) for name, _ in counts]
        self._printed_at = 0.0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self) -> bool:
        """Update and show the counts; return whether all have reached the total."""
        now = [count() for _, count in self.counts]
        for bar, value in zip(self._bars, now, strict=True):
            self._progress.update(bar, completed=value)
        complete = all(value >= self.total for value in now)
        if not self.console.is_terminal:
            self._print_line(now, complete)
        return complete

    def _print_line(self, now: list[int], complete: bool) -> None:
        """Print the counts, at most once a second."""
        if complete or time.monotonic() - self._printed_at >= 1:
            self._printed_at = time.monotonic()
            pairs = zip(self.counts, now, strict=True)
            line = ", ".join(f"{value} of {self.total} {name}" for (name, _), value in pairs)
            self.console.print(f"  {line}")
