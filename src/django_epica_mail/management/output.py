"""What the command prints for people: aligned text, and times as one says them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django_epica_mail import lifecycle

_UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; numbers stand to the right, and ``None`` as a dash."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    numeric = [
        bool(column) and all(cell.isdigit() for cell in column)
        for column in (list(column) for column in zip(*cells, strict=True))
    ] or [False] * len(headings)
    for line in (list(headings), *cells):
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        yield "  ".join(aligned).rstrip()


def spoken_age(seconds: float | None) -> str | None:
    """Return seconds as one says them: ``45 s``, ``12 min``, ``3 h``, ``5 days``."""
    if seconds is None:
        return None
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def status_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what ``status.status`` reports."""
    queues: dict[str, dict[str, Any]] = report["queues"]
    if not queues:
        yield "There is no mail."
    else:
        yield from table_lines(
            ("queue", "waiting", "retrying", "due", "oldest due", "in flight", "unknown"),
            [
                (
                    *(queue, it["waiting"], it.get("retrying", 0), it["due"]),
                    *(spoken_age(it["oldest due age"]), it["in flight"], it.get("unknown", 0)),
                )
                for queue, it in queues.items()
            ],
        )
        yield ""
        final = [name for name in lifecycle.Status.values if name in lifecycle.FINAL]
        yield f"What came to its end in the last {report['hours']} hours:"
        yield from table_lines(
            ("queue", *final),
            [(queue, *(it.get(name, 0) for name in final)) for queue, it in queues.items()],
        )
    yield ""
    yield f"last sweep: {_ago(report['last sweep age'])}"
    yield f"unfinished bulk calls: {report['unfinished batches']}"
    for gate, reason in report["held back"].items():
        yield f"held back: {gate}, {reason}"


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{spoken_age(seconds)} ago"


def _old_bar(done: int, total: int, width: int = 40) -> str:
    """Return a bar of progress, filled as far as work is done."""
    share = min(1.0, done / total) if total else 1.0
    filled = int(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}] {done} of {total}"


_LISTED = 20
"""How many rows that cannot be moved are shown."""


def import_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of what ``importing.move`` reports."""
    refused = report["refused"]
    yield ("would be moved" if report["dry_run"] else "moved")
    yield from pair_lines(
        {name: report[name] for name in ("queued", "finished", "listed", "already")}
    )
    yield f"{'refused':<8}  {len(refused)}"
    for row in refused[:_LISTED]:
        yield f"  row {row['row']}: {row['reason']}"
    if len(refused) > _LISTED:
        yield f"  and {len(refused) - _LISTED} more; --json has all"


def pair_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each value, after its name."""
    width = max(map(len, report), default=0)
    for name, value in report.items():
        shown: object = value
        if isinstance(value, dict):
            shown = ", ".join(f"{key}: {it}" for key, it in value.items())
        elif isinstance(value, list):
            shown = ", ".join(map(str, value))
        yield f"{name:<{width}}  {'-' if shown in (None, '') else shown}"


_WIDTH = 30


def progress_bar(stream: Any, doing: str) -> Callable[[int, int], None]:
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
