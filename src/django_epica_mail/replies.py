"""Cleans the text of servers, providers and exceptions before it is stored or shown."""

from __future__ import annotations

import base64
import re
import unicodedata

REPLY_LENGTH = 2000
"""How many characters of a server's reply are kept."""

_MIN_SECRET_LENGTH = 3
"""Characters. Anything shorter would also be found by chance."""

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # control sequences, such as colours
    r"|(?:\x1b[PX^_\]]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings
    r"|\x1b[ -/]*[0-~]?"
)


def reply_text(words: bytes | str) -> str:
    """Return the text of a server or an exception as one line, safe to store and to show.

    It is cut to ``REPLY_LENGTH``. Terminal escape sequences (ECMA-48) and control and format
    characters, among them those that reverse the direction of writing, are removed; line breaks
    become spaces; a lone surrogate becomes a question mark.
    """
    bounded = words[: 4 * REPLY_LENGTH]
    text = bounded.decode("utf-8", "replace") if isinstance(bounded, bytes) else str(bounded)
    kept = map(_shown, _ESCAPE_SEQUENCE.sub("", text))
    return "".join(kept).strip()[:REPLY_LENGTH].encode("utf-8", "replace").decode()


def secrets_in(response: str) -> set[bytes]:
    """Return a response of an AUTH dialogue, its parts, and the forms in which they are sent."""
    parts = {response, *re.split(r"[\0\x01]|auth=Bearer |user=", response)}
    plain = {part.encode() for part in parts if len(part) >= _MIN_SECRET_LENGTH}
    return plain | {base64.b64encode(part) for part in plain}


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    return "" if unicodedata.category(character) in ("Cc", "Cf") else character
