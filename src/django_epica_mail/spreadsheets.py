"""CSV cells that no spreadsheet program takes for a formula (OWASP, CSV Injection)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from io import StringIO

_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula starts with; the last four are the full-width forms."""

_SKIPPED = " \t\r\n\v\f\0\u00a0\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2060\ufeff"
"""What a spreadsheet program may ignore before the sign: white space, NBSP, zero-width, BOM."""


_SEPARATORS = re.compile(r"([;\t\r\n]+)")
"""Where a spreadsheet program begins a cell, quoted or not, if its language separates by them."""


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet program might evaluate a cell with this text."""
    return text[:1] in ("\t", "\r", "\n") or text.lstrip(_SKIPPED).startswith(_SIGNS)


def escape(text: str) -> str:
    """Return the text of a cell, with an apostrophe before what looks like a formula.

    That may stand at its beginning, or behind a semicolon, tab or line break, by which the program
    may split it. What has an apostrophe before a formula gets another one, so that ``unescape``
    returns it unchanged.
    """
    return _behind_separators(_escaped, _escaped(text))


def unescape(text: str) -> str:
    """Return the text that ``escape`` was given."""
    return _unescaped(_behind_separators(_unescaped, text))


def _escaped(text: str) -> str:
    return f"'{text}" if is_formula(text.lstrip("'")) else text


def _unescaped(text: str) -> str:
    return text[1:] if text[:1] == "'" and is_formula(text.lstrip("'")) else text


def _behind_separators(change: Callable[[str], str], text: str) -> str:
    """Return text with each part behind a separator changed; the first part stays."""
    first, *rest = _SEPARATORS.split(text)
    parts = (part if at % 2 == 0 else change(part) for at, part in enumerate(rest))
    return "".join([first, *parts])


def line(cells: Iterable[str], *, quotes_all: bool = False) -> str:
    """Return one line of CSV with its line end; ``quotes_all`` quotes every cell."""
    written = StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL)
    writer.writerow(cells)
    return written.getvalue()


def read(file: Iterable[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the number and the cells of each line, or the error of a line that is no CSV."""
    # Python 3.10 cannot read a NUL; its replacement is not valid in an address either.
    reader = csv.reader(line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:  # a cell that is too long; the next line is read as usual
            yield reader.line_num, error
            continue
        if cells is None:
            return
        yield reader.line_num, cells
