"""What the command prints for people: tables, reports, and the progress of long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django_epica_mail import lifecycle
from django_epica_mail.monitoring.backlog import StatusReport
from django_epica_mail.monitoring.health import spoken

_WIDTH = 30
"""Characters of a full progress bar."""

_LISTED = 20
"""How many rows that could not be moved are listed."""


def clean(text: object) -> str:
    """Return text that a terminal only shows: other characters as their escapes in Python.

    Foreign text (a server's reply, an address) could otherwise move the cursor, set the title or
    turn the direction of writing around.
    """
    return "".join(
        it if it.isprintable() else it.encode("unicode_escape", "surrogatepass").decode()
        for it in str(text)
    )


class CleanLines:
    """Writes lines of text to a terminal, cleaned; line ends stay."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write text that consists of whole lines."""
        for line in text.splitlines(keepends=True):
            bare = line.rstrip("\r\n")
            self._stream.write(clean(bare) + line[len(bare) :])


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; numbers are right-aligned, ``None`` is a dash."""
    cells = [["-" if cell is None else clean(cell) for cell in row] for row in rows]
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


def pair_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield one line per value, after its name."""
    width = max(map(len, report), default=0)
    for name, value in report.items():
        shown: object = value
        if isinstance(value, dict):
            shown = ", ".join(f"{key}: {it}" for key, it in value.items())
        elif isinstance(value, list):
            shown = ", ".join(map(str, value))
        yield f"{name.replace('_', ' '):<{width}}  {'-' if shown in (None, '') else clean(shown)}"


def doctor_lines(report: dict[str, Any], style: Any) -> Iterator[str]:
    """Yield the lines of the doctor's report; ``style`` is the command's."""
    if "findings" not in report:
        yield from pair_lines(report)
    elif not report["findings"]:
        yield "Nothing is wrong."
    else:
        styles = {"error": style.ERROR, "warning": style.WARNING}
        for finding in report["findings"]:
            styled = styles.get(finding["level"], style.NOTICE)
            yield styled(f"{finding['level']:<8} {clean(finding['text'])} ({finding['id']})")
            yield f"{'':<8} {clean(finding['remedy'])}"
    if "dns" in report:
        yield ""
        yield from sender_record_lines(report["dns"])


def sender_record_lines(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of senders' DNS records, and then what to publish."""
    names = ("domain", "transport", "name", "level", "text")
    headings = ("domain", "transport", "record", "", "")
    yield from table_lines(headings, [[record[name] for name in names] for record in records])
    publish = list(dict.fromkeys(record["publish"] for record in records if record["publish"]))
    if publish:
        yield ""
        yield "To publish or correct in the DNS:"
        yield from (f"  {it}" for it in publish)


def lint_lines(findings: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the findings of a lint under the template and the language of each."""
    heading = ""
    for it in findings:
        if (of := f"{it['template']} ({it['language']})") != heading:
            yield clean(of)
            heading = of
        yield clean(f"  {it['text']} ({it['rule']})")
    if not findings:
        yield "Nothing is wrong."


def status_lines(report: StatusReport) -> Iterator[str]:
    """Yield the lines of a status report."""
    if not report.queues:
        yield "There is no mail."
    else:
        yield from table_lines(
            ("queue", "waiting", "retrying", "due", "oldest due", "in flight", "unknown"),
            [
                (
                    *(queue, it.waiting, it.by_status.get("retrying", 0), it.due),
                    *(_age(it.oldest_due_age), it.in_flight, it.by_status.get("unknown", 0)),
                )
                for queue, it in report.queues.items()
            ],
        )
        yield ""
        final = [name for name in lifecycle.Status.values if name in lifecycle.FINAL]
        yield f"Finished in the last {report.hours} hours:"
        yield from table_lines(
            ("queue", *final),
            [
                (queue, *(it.by_status.get(name, 0) for name in final))
                for queue, it in report.queues.items()
            ],
        )
    yield ""
    sweep = _age(report.last_sweep_age)
    yield f"last sweep: {'never' if sweep is None else f'{sweep} ago'}"
    yield f"unfinished bulk calls: {report.unfinished_batches}"
    if report.set_apart:
        yield f"set apart, because each ended its worker twice: {report.set_apart}"
    for gate, reason in report.held_back.items():
        yield clean(f"held back: {gate}, {reason}")
    for slowed in report.slowed_domains:
        yield clean(
            "slowed down: {domain} to {per_minute:g} mails a minute by {transport} since "
            "{since:%Y-%m-%d %H:%M} UTC, {due} due{oldest}, {reply}".format(
                **slowed, oldest=_oldest(slowed["oldest_due_age"])
            )
        )
    for rate in report.reputation:
        if rate.level != "well":
            yield clean(f"reputation, {rate.level}: {rate.words}")


def import_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report that ``importers.move`` returns."""
    refused = report["refused"]
    yield ("would be moved" if report["dry_run"] else "moved")
    yield from pair_lines(
        {name: report[name] for name in ("queued", "finished", "listed", "already")}
    )
    yield f"{'refused':<8}  {len(refused)}"
    for row in refused[:_LISTED]:
        yield clean(f"  row {row['row']}: {row['reason']}")
    if len(refused) > _LISTED:
        yield f"  and {len(refused) - _LISTED} more; --json lists all"


def progress(stream: Any, doing: str) -> Callable[..., None]:
    """Return a function that shows the progress of long work on a terminal.

    ``stream`` is the command's stderr; on anything but a terminal nothing is shown. The function
    takes the number of things done and, if known, their total: with a total it draws a bar, without
    one it writes a line.
    """
    is_terminal = stream.isatty()
    shown = -1

    def advance(done: int, total: int | None = None) -> None:
        nonlocal shown
        if not is_terminal:
            return
        if total is None:
            stream.write(f"{done} {doing} so far")
            return
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            filled = "#" * (_WIDTH * done // max(total, 1))
            end = "\n" if done >= total else ""
            stream.write(f"\r{doing} [{filled:<{_WIDTH}}] {percent:3} % of {total}", ending=end)
            stream.flush()

    return advance


def _oldest(seconds: float | None) -> str:
    return "" if seconds is None else f" for up to {_age(seconds)}"


def _age(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return spoken(seconds) if seconds >= 1 else "0 s"
