"""Finds an e-mail address in text, in the encodings in which mail, URLs, HTML and JSON write it.

A reading is the text as one decoder, or several after each other, give it back; each of its
characters knows which piece of the original it stands for, so that what is found can be replaced.
Only the surroundings of each at sign are read. Octets that are no UTF-8, and words in an unknown
charset, are read as far as possible, so that they hide nothing beside them.
"""

from __future__ import annotations

import base64
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

ERASED = "[erased]"

_WORD = r"=\?[^?\s]+\?[BbQq]\?[^?\s]{0,32768}\?="
"""A word of a header (RFC 2047), which is no longer than the longest header: ``bounds.MAX_HEADER``.
What is longer is read as the text that it is, or it would take as much memory as it is long."""
_SOFT = r"(?:=\r?\n)?"
"""A soft line break (RFC 2045, section 6.7), which may split what is encoded."""
_AT = re.compile(
    r"[@\uff20\ufe6b]"
    rf"|[%=](?:{_SOFT}(?:2{_SOFT}5|3{_SOFT}D))*{_SOFT}4{_SOFT}0"
    rf"|[ux](?:{_SOFT}0)*{_SOFT}4{_SOFT}0"
    rf"|(?:#|2{_SOFT}3)(?:{_SOFT}0)*{_SOFT}6{_SOFT}4"
    rf"|{_SOFT.join('commat')}"
    rf"|{_WORD}",
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
_WINDOW = 4
"""After how many reaches a window ends, so that dense text is read in parts and not all at once."""
_BORDER = 4 * _WIDEST
"""How near the border of a window nothing counts: a longer address may have been cut there. What
is around the at sign of a window is further away."""
_NO_OCTET = "\ufdd0"
"""Follows ``=E9`` in a reading if that is no UTF-8: as in ``to=E9ann@example.com``, it may be no
octet but the beginning of a longer address. No text contains this noncharacter of Unicode."""
_LEFT = re.compile(rf"[\w._+\-'{_NO_OCTET}]*")
"""What can stand between a letter and the beginning of another local part, read backwards."""
_RIGHT = re.compile(r"(?:[.-]\w[\w-]*)*")
_READ_AS_UTF_8 = frozenset({"ascii", "punycode", "idna", "unicode-escape"})
"""Codecs that UTF-8 includes, or that are the charsets of no mail: some take quadratic time."""


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
        quote = r"\\{0,3}\""
        forms = []
        for address in sorted(self._folded, key=len, reverse=True):
            local, _, domain = map(re.escape, address.rpartition("@"))
            forms.append(f"(?:{quote}{local}{tag}{quote}|{local}{tag})@{domain}")
        self._pattern = re.compile("|".join(forms))
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
        for start, end in self._windows(text):
            window = text[start:end]
            if not self.may_be_in(window):
                continue
            first = start + _BORDER if start else 0
            last = end - _BORDER if end < len(text) else end
            for hit in chain.from_iterable(map(self._hits, _readings(window, start))):
                if first <= hit.start and hit.end <= last:
                    yield hit

    def _windows(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the surroundings of the at signs; those that overlap are one, up to a length."""
        start = end = 0
        for at in _AT.finditer(text):
            first = max(at.start() - self._reach, 0)
            if first > end or first - start > _WINDOW * self._reach:
                if end:
                    yield start, end
                start = first
            end = min(at.end() + self._reach, len(text))
        if end:
            yield start, end

    def _hits(self, reading: _Reading) -> Iterator[Hit]:
        for match in self._pattern.finditer(reading.text):
            # Only the surroundings, or the time would grow with the square of the hits.
            before = reading.text[max(match.start() - self._reach, 0) : match.start()]
            after = reading.text[match.end() : match.end() + self._reach]
            is_quoted = match[0][0] in '"\\'
            if (_is_letter(before[-1:]) and not is_quoted) or _is_letter(after[:1]):
                continue  # of another address
            left = _LEFT.match(before[::-1])
            right = _RIGHT.match(after)
            prefix = (left[0][::-1] if left else "").replace(_NO_OCTET, "").lstrip(".+-'")
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
                    before = reading.text[start - 1 : start] if start else ""
                    if before != _NO_OCTET and not _is_letter(before):
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
    for depth in range(1, _DEPTH + 1):
        decoded = []
        for reading in layer:
            for pattern, decode in _DECODERS:
                further = _decoded(reading, pattern, decode)
                if further.text not in seen:
                    seen.add(further.text)
                    if depth < _DEPTH:
                        decoded.append(further)
                    yield _folded(further)
        layer = decoded


def _raw(text: str, start: int) -> _Reading:
    return _Reading(text, [(start + at, start + at + 1) for at in range(len(text))])


def _folded(reading: _Reading) -> _Reading:
    if reading.text.isascii():
        return _Reading(reading.text.lower(), reading.pieces)
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
    """Return the character that ``%40`` or ``%C3%BC`` stands for, even if it is no UTF-8."""
    return bytes.fromhex(written.replace("%", "")).decode(errors="replace")


def _from_quoted_printable(written: str) -> str:
    """Return the character that ``=40`` or ``=C3=BC`` stands for; what is no UTF-8 is marked."""
    try:
        return bytes.fromhex(written.replace("=", "")).decode()
    except UnicodeDecodeError:
        return re.sub("=[0-9A-F]{2}", rf"\g<0>{_NO_OCTET}", written)


def _from_escape(written: str) -> str:
    escape = written.lstrip("\\")
    return chr(int(escape[1:], 16)) if len(escape) > 1 else _CONTROLS[escape]


def _from_word(written: str) -> str:
    """Return what an encoded word stands for, or nothing for the space between two of them."""
    if written.isspace():
        return ""
    _, charset, encoding, content, _ = written.replace(_NO_OCTET, "").split("?")
    charset = charset.partition("*")[0]  # without the language (RFC 2231, section 5)
    if encoding in "Bb":
        return _in_charset(_from_base64(content), charset)
    # What is not encoded although it should be is in no charset.
    return re.sub("[\0-\x7f]+", lambda part: _in_charset(_from_q(part[0]), charset), content)


def _in_charset(octets: bytes, charset: str) -> str:
    """Return text in a charset, or else in UTF-8, with U+FFFD for what cannot be decoded."""
    try:
        if codecs.lookup(charset).name not in _READ_AS_UTF_8:
            return octets.decode(charset, errors="replace")
    except (LookupError, ValueError):  # unknown, or no charset
        pass
    return octets.decode(errors="replace")


def _from_base64(content: str) -> bytes:
    """Return the octets of Base64 that may be cut off, padded within or otherwise damaged."""
    parts = re.sub("[^A-Za-z0-9+/=]", "", content).split("=")
    wholes = (part[:-1] if len(part) % 4 == 1 else part for part in parts)
    return b"".join(base64.b64decode(it + "=" * (-len(it) % 4)) for it in wholes)


def _from_q(content: str) -> bytes:
    octets = content.replace("_", " ").encode("ascii")
    return re.sub(
        rb"=([0-9A-Fa-f]{2})", lambda octet: bytes.fromhex(octet[1].decode("ascii")), octets
    )


def _character(sign: str, between: str = "", unless: str = "") -> str:
    """Return the pattern of one character in UTF-8, or of one octet that belongs to none."""
    octet = "[0-9A-F]"
    more = f"(?:{between}{sign}[89AB]{octet})"
    forms = f"[CD]{octet}{more}|E{octet}{more}{{2}}|F{octet}{more}{{3}}|{octet}{{2}}{unless}"
    return f"{sign}(?:{forms})"


_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


_DECODERS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(_character("%"), re.IGNORECASE), _from_octets),
    (re.compile(r"=\r?\n"), lambda written: ""),
    # In capitals (RFC 2045, section 6.7), or every = before a word would be one.
    (re.compile(_character("=", _SOFT, f"(?!{_NO_OCTET})")), _from_quoted_printable),
    (re.compile(r"\\+(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[bfnrt])"), _from_escape),
    (re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|\w{2,31});?"), html.unescape),
    (re.compile(rf"{_WORD}|(?<=\?=)\s+(?==\?[^?\s]+\?[BbQq]\?)"), _from_word),
)
