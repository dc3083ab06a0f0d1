"""E-mail addresses: recognises plain ones without a parser, and strips display names.

Nearly all addresses are plain, and parsing one costs about a twentieth of a millisecond.
"""

from __future__ import annotations

import re
from email.utils import parseaddr

_ATOM = r"[A-Za-z0-9_+-]+"
_LABEL = r"[A-Za-z0-9-]{1,63}"
_BARE = rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*"
_PLAIN_BARE = re.compile(_BARE, re.ASCII)
_PLAIN = re.compile(rf"{_BARE}|{_ATOM}(?: {_ATOM})* <{_BARE}>", re.ASCII)


def is_plain(address: object) -> bool:
    """Return whether every version of Django accepts an address, name included, unchanged.

    ``False`` only means that Django has to decide.
    """
    return isinstance(address, str) and _PLAIN.fullmatch(address) is not None


def is_plain_and_bare(address: object) -> bool:
    """Return whether an address is plain and has no display name."""
    return isinstance(address, str) and _PLAIN_BARE.fullmatch(address) is not None


def bare(address: str) -> str:
    """Return an address without its display name; an invalid address is returned unchanged."""
    return address if is_plain_and_bare(address) else parseaddr(address)[1] or address
