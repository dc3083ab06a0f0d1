"""The suppression list as CSV: to move it between sites and providers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from django.db.models import QuerySet
from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive, make_aware

from django_epica_mail import suppression
from django_epica_mail.models import Suppression
from django_epica_mail.portions import portions
from django_epica_mail.suppression import Reason

COLUMNS = ("address", "scope", "reason", "note", "created_at", "expires_at", "digest")

_PORTION = 400
_CALLED_ALSO = {"email": "address", "e-mail": "address", "email address": "address"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take a cell that begins so for; OWASP, CSV Injection."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file came to."""

    added: int
    known: int
    refused: list[dict[str, Any]] = field(default_factory=list)
    """``{"line": 3, "reason": "..."}``: what is no entry."""


def write(
    file: TextIO, rows: QuerySet[Suppression], *, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write entries as CSV, and return how many; ``advance`` is told after each portion."""
    count = -1  # the first line names the columns
    for line in lines(rows):
        file.write(line)
        count += 1
        if count and count % _PORTION == 0:
            advance(count)
    return count


def lines(rows: QuerySet[Suppression]) -> Iterator[str]:
    """Yield the lines of a CSV file of entries, reading them in portions."""
    writer: Any = csv.writer(_Echo())
    yield writer.writerow(COLUMNS)
    for row in rows.order_by("pk").iterator(_PORTION):
        yield writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])


class _Echo:
    """Takes what ``csv`` writes, and gives it back."""

    def write(self, value: str) -> str:
        return value


def read(file: Iterable[str], *, advance: Callable[[int], None] = lambda _: None) -> Imported:
    """Add the entries of a CSV file, and say of each line that is none why.

    Its first line names the columns, of which ``address`` (or ``email``) is enough; of an entry
    whose address was erased it is ``digest``. Goes in portions, and calls ``advance`` with the
    number of lines so far. Raises ``ValueError`` for a file without such a column.
    """
    done, added, refused = 0, 0, []
    for portion in portions(_lines(file), _PORTION):
        entries = []
        for number, cells in portion:
            try:
                entries.append(_entry(cells))
            except ValueError as error:
                refused.append({"line": number, "reason": str(error)})
        added += suppression.insert(entries)
        done += len(portion)
        advance(done)
    return Imported(added, done - added - len(refused), refused)


def _lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the named cells of each line that says something."""
    # Python 3.10 reads no line with a NUL; this is no part of an address either.
    reader = csv.reader(line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file)
    names = [name.strip().lower().lstrip("\ufeff") for name in next(reader, [])]
    names = [_CALLED_ALSO.get(name, name) for name in names]
    if not {"address", "digest"} & set(names):
        raise ValueError(
            f"The first line must name a column 'address'; it names {', '.join(names) or 'none'}."
        )
    for cells in reader:
        if any(cells):
            yield reader.line_num, dict(zip(names, map(_plain, cells), strict=False))


def _entry(cells: Mapping[str, str]) -> Suppression:
    """Return the entry that the cells of a line mean; a reason not known to us becomes a note."""
    reason, note = cells.get("reason", ""), cells.get("note", "")
    if reason not in Reason.values:
        reason, note = Reason.MANUAL, note or reason
    expires_at = None
    if cells.get("expires_at"):
        expires_at = parse_datetime(cells["expires_at"])
        if expires_at is None:
            raise ValueError(f"expires_at must be a time in ISO 8601; it is {cells['expires_at']}.")
        if is_naive(expires_at):
            expires_at = make_aware(expires_at)
    return suppression.entry(
        cells.get("address", ""),
        found_by=cells.get("digest", ""),
        reason=reason,
        scope=cells.get("scope", ""),
        note=note,
        expires_at=expires_at,
    )


def _cell(value: Any) -> str:
    text = "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain(cell: str) -> str:
    text = cell.strip()
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text
