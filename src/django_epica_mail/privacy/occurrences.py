"""Finds an e-mail address in text, in the encodings in which mail, URLs, HTML and JSON write it.

A reading is the text as one decoder, or several after each other, give it back; each of its
characters knows which piece of the original it stands for, so that what is found can be replaced.
Only the surroundings of each at sign are read.
"""

from __future__ import annotations

import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from itertools import chain
from typing import NamedTuple

ERASED = "[erased]"

_SOFT = r"(?:=\r?\n)?"
"""A soft line break (RFC 2045, section 6.7), which may split what is encoded."""
_AT = re.compile(
    r"[@\uff20\ufe6b]"
    rf"|[%=](?:{_SOFT}(?:2{_SOFT}5|3{_SOFT}D))*{_SOFT}4{_SOFT}0"
    rf"|[ux](?:{_SOFT}0)*{_SOFT}4{_SOFT}0"
    rf"|(?:#|2{_SOFT}3)(?:{_SOFT}0)*{_SOFT}6{_SOFT}4"
    rf"|{_SOFT.join('commat')}"
    r"|=\?[^?\s]+\?[BQ]\?[^?\s]*\?=",
    re.IGNORECASE,
)
"""The ways to write an at sign, without what may itself be encoded before it, and the words of a
header that may hide one (RFC 2047)."""

_ENCODED = re.compile(r"[%=&\\]")
_HIDDEN_LETTER = re.compile(
    r"[%=](?:25|3D)*(?:3[0-9]|[46][1-9A-F]|[57][0-9A])|\\+[ux]|&(?:amp;)*#|=\?|=(?:\\[rn]|\r?\n)",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)
"""The invisible characters (category Cf) that the quick look at a text passes over."""

_WIDEST = 12
"""How many characters one character of an address is written in at most, as in ``%25252540``."""
_DEPTH = 3
"""How many encodings within each other are read."""
_FEWEST = 3
"""How many characters must be left of an address that the end of a column cut off."""
_LEFT = re.compile(r"[\w._+\-']*")
"""What can stand between a letter and the beginning of another local part, read backwards."""
_RIGHT = re.compile(r"(?:[.-]\w[\w-]*)*")
_QUADRATIC = frozenset({"punycode", "idna"})
"""Codecs of Python that take quadratic time, and are the charsets of no mail."""


class Hit(NamedTuple):
    """An occurrence of the address: where it is, and what longer address it may be part of."""

    start: int
    end: int
    longer: str = ""
    """The longer address; empty if the occurrence is whole."""


class _Reading(NamedTuple):
    """A text, and for each of its characters the piece of the original."""

    text: str
    pieces: Sequence[tuple[int, int]]


class Needle:
    """What is looked for: the spellings of one address."""

    def __init__(self, spellings: Sequence[str], *, tagged: bool = False) -> None:
        """Take the spellings; ``tagged`` includes ``local+tag@domain``."""
        self._folded = [fold(it) for it in spellings]
        tag = r"(?:\+[^\s@<>\"]*)?" if tagged else ""
        forms = [
            f"{re.escape(local)}{tag}@{re.escape(domain)}"
            for local, _, domain in (it.rpartition("@") for it in self._folded)
        ]
        self._pattern = re.compile("|".join(sorted(forms, key=len, reverse=True)))
        local = self._folded[0].rpartition("@")[0]
        self._letters = max(re.findall(r"[a-z0-9]+", local), key=len, default="")
        self._reach = _WIDEST * (max(map(len, self._folded)) + 8)

    def find(self, text: str, *, is_cut: bool = False) -> list[Hit]:
        """Return the occurrences in a text, in order and without overlaps.

        ``is_cut`` says that the text fills its column: then its end may be the beginning of an
        address.
        """
        found = set(self.each(text))
        if is_cut:
            start = max(len(text) - self._reach, 0)
            found.update(*map(self._cut_off, _readings(text[start:], start)))
        return _without_overlaps(found)

    def may_be_in(self, text: str) -> bool:
        """Return whether a text may contain the address: ``False`` is certain, and fast."""
        plain = text.lower()
        if not text.isascii():
            plain = _INVISIBLE.sub("", unicodedata.normalize("NFKD", text).lower())
        return self._letters in plain or _HIDDEN_LETTER.search(text) is not None

    def each(self, text: str) -> Iterator[Hit]:
        """Yield the occurrences in a text as they are found, some of them repeatedly."""
        if not self.may_be_in(text):
            return
        for at in _AT.finditer(text):
            start = max(at.start() - self._reach, 0)
            window = text[start : at.end() + self._reach]
            if self.may_be_in(window):
                yield from chain.from_iterable(map(self._hits, _readings(window, start)))

    def _hits(self, reading: _Reading) -> Iterator[Hit]:
        for match in self._pattern.finditer(reading.text):
            # Only the surroundings, or the time would grow with the square of the hits.
            before = reading.text[max(match.start() - self._reach, 0) : match.start()]
            after = reading.text[match.end() : match.end() + self._reach]
            if _is_letter(before[-1:]) or _is_letter(after[:1]):
                continue  # of another address
            left = _LEFT.match(before[::-1])
            right = _RIGHT.match(after)
            prefix = (left[0][::-1] if left else "").lstrip(".+-'")
            suffix = right[0] if right else ""
            if prefix.strip("_") == "" and after.startswith(prefix):
                prefix = ""  # emphasis, as in _ann@example.com_
            longer = f"{prefix}{match[0]}{suffix}" if prefix or suffix else ""
            first, last = reading.pieces[match.start()], reading.pieces[match.end() - 1]
            yield Hit(first[0], last[1], longer)

    def _cut_off(self, reading: _Reading) -> Iterator[Hit]:
        for address in self._folded:
            for length in range(len(address) - 1, _FEWEST - 1, -1):
                start = len(reading.text) - length
                if start >= 0 and reading.text.endswith(address[:length]):
                    if not _is_letter(reading.text[start - 1 : start] if start else ""):
                        yield Hit(reading.pieces[start][0], reading.pieces[-1][1])
                    break


def replace(text: str, hits: Sequence[Hit]) -> str:
    """Return a text with ``[erased]`` instead of the whole occurrences."""
    done, position = [], 0
    for hit in hits:
        if not hit.longer:
            done += [text[position : hit.start], ERASED]
            position = hit.end
    return "".join([*done, text[position:]])


def fold(text: str) -> str:
    """Return text in lower case, decomposed and without invisible characters."""
    return _folded(_raw(text, 0)).text


def _without_overlaps(hits: Iterable[Hit]) -> list[Hit]:
    """Return the hits in order; of two that overlap, the whole one, then the wider one."""
    kept: list[Hit] = []
    for hit in sorted(hits):
        if kept and hit.start < kept[-1].end:
            kept.append(min(kept.pop(), hit, key=lambda it: (bool(it.longer), it.start - it.end)))
        else:
            kept.append(hit)
    return kept


def _is_letter(character: str) -> bool:
    return character.isalnum() or (bool(character) and unicodedata.category(character)[0] == "M")


def _readings(window: str, start: int) -> Iterator[_Reading]:
    """Yield the window of a text that begins at ``start`` in each reading, folded."""
    seen = {window}
    layer = [_raw(window, start)]
    yield _folded(layer[0])
    if not _ENCODED.search(window):
        return
    for _ in range(_DEPTH):
        decoded = []
        for reading in layer:
            for pattern, decode in _DECODERS:
                further = _decoded(reading, pattern, decode)
                if further.text not in seen:
                    seen.add(further.text)
                    decoded.append(further)
                    yield _folded(further)
        layer = decoded


def _raw(text: str, start: int) -> _Reading:
    return _Reading(text, [(start + at, start + at + 1) for at in range(len(text))])


def _folded(reading: _Reading) -> _Reading:
    text: list[str] = []
    pieces: list[tuple[int, int]] = []
    for character, piece in zip(reading.text, reading.pieces, strict=True):
        if character.isascii():
            form = character.lower()
        elif unicodedata.category(character) == "Cf":
            continue
        else:
            form = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).lower())
        text.append(form)
        pieces += [piece] * len(form)
    return _Reading("".join(text), pieces)


def _decoded(reading: _Reading, pattern: re.Pattern[str], decode: Callable[[str], str]) -> _Reading:
    text: list[str] = []
    pieces: list[tuple[int, int]] = []
    position = 0
    for match in pattern.finditer(reading.text):
        form = decode(match[0])
        if form == match[0]:
            continue
        text += [reading.text[position : match.start()], form]
        pieces += reading.pieces[position : match.start()]
        span = (reading.pieces[match.start()][0], reading.pieces[match.end() - 1][1])
        pieces += [span] * len(form)
        position = match.end()
    text.append(reading.text[position:])
    pieces += reading.pieces[position:]
    return _Reading("".join(text), pieces)


def _from_octets(written: str) -> str:
    """Return what ``%40%C3%BC`` or ``=40`` stands for; unchanged if it is not UTF-8."""
    try:
        return bytes.fromhex(written.replace(written[0], "")).decode()
    except UnicodeDecodeError:
        return written


def _from_escape(written: str) -> str:
    escape = written.lstrip("\\")
    return (
        chr(int(escape[1:], 16)) if len(escape) > 1 else {"n": "\n", "r": "\r", "t": "\t"}[escape]
    )


def _from_header(written: str) -> str:
    """Return what encoded words stand for; if one of them cannot be read, it stays as it is."""
    try:
        return _decoded_words(written)
    except (HeaderParseError, ValueError, LookupError):
        return _WORD.sub(_word_or_itself, written)


def _word_or_itself(word: re.Match[str]) -> str:
    try:
        return _decoded_words(word[0])
    except (HeaderParseError, ValueError, LookupError):  # bad Base64, or an unknown charset
        return word[0]


def _decoded_words(written: str) -> str:
    words = decode_header(written)
    if any(charset and codecs.lookup(charset).name in _QUADRATIC for _, charset in words):
        raise LookupError("This is the charset of no mail.")
    return str(make_header(words))


_WORD = re.compile(r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=")


_DECODERS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r"(?:%[0-9A-Fa-f]{2})+"), _from_octets),
    (re.compile(r"=\r?\n"), lambda written: ""),
    # In capitals (RFC 2045, section 6.7), or every = before a word would be one.
    (re.compile(r"(?:=[0-9A-F]{2})+"), _from_octets),
    (re.compile(r"\\+(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[nrt])"), _from_escape),
    (re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|\w{2,31});?"), html.unescape),
    (re.compile(r"(?:=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=\s*)+"), _from_header),
)
