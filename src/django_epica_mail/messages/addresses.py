"""E-mail addresses: recognises plain ones without a parser, and gives each its one canonical form.

Nearly all addresses are plain, and parsing one costs about a twentieth of a millisecond.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable
from email.headerregistry import AddressHeader
from email.utils import getaddresses

from django_epica_mail import rules

LENGTH = 320
"""The characters of a canonical address at most: what the columns hold. RFC 5321, section
4.5.3.1.3, allows 254."""

_LONGEST_DOMAIN = 255

_ATOM = r"[A-Za-z0-9_+-]+"
_LABEL = r"[A-Za-z0-9-]{1,63}"
_BARE = rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*"
_PLAIN_BARE = re.compile(_BARE, re.ASCII)
_PLAIN = re.compile(rf"{_BARE}|{_ATOM}(?: {_ATOM})* <({_BARE})>", re.ASCII)
_COMPLETE = re.compile(
    r'(?:"(?:[^"\\]|\\.)*"|[^\s@,;:<>()\[\]"\\]+)@(?:\[[^\s\]]+\]|[^\s@,;:<>()\[\]"\\]+)'
)
_DEFECTS = {
    "addr-spec local part with no domain",  # a mailbox of this machine, such as root
    "local-part contains non-ASCII characters)",
}
"""What the parser complains about in addresses that Django sends to; the second is a typo of its
own."""


def is_plain(address: object) -> bool:
    """Return whether every version of Django accepts an address, name included, unchanged.

    ``False`` only means that Django has to decide.
    """
    # A SimpleLazyObject may be an instance of str, but no pattern takes it.
    return isinstance(address, str) and _PLAIN.fullmatch(str(address)) is not None


def is_plain_and_bare(address: object) -> bool:
    """Return whether an address is plain and has no display name."""
    return isinstance(address, str) and _PLAIN_BARE.fullmatch(str(address)) is not None


def canonical(address: object) -> str:
    """Return the one form of an address by which it is stored, matched, suppressed and found.

    It is the address of the RCPT command, without display name, comments and needless quotes, with
    its domain in ASCII, and in lower case: the local part may be case-sensitive (RFC 5321, section
    2.4), but in practice it never is. Invisible characters are dropped, and letters composed (NFC).
    Text that is no address is returned likewise folded.
    """
    text = str(address)
    plain = _PLAIN.fullmatch(text)
    if plain:
        return (plain[1] or text).lower()[:LENGTH].rstrip(".")
    local, at, domain = _rcpt(_visible(text)).rpartition("@")
    local = unicodedata.normalize("NFC", local.lower())
    domain = unicodedata.normalize("NFC", domain.lower())
    return f"{local}{at}{rules.ascii_domain(domain)}"[:LENGTH].rstrip(".")


def resembles_another(address: object) -> bool:
    """Return whether the canonical form of an address may be another mailbox than servers look for.

    Its local part has invisible characters, which are dropped, or letters such as the Kelvin sign,
    which is ``k`` in lower case. ``EmailField`` accepts that sign.
    """
    if is_plain(address):
        return False
    local = _rcpt(str(address)).rpartition("@")[0]
    folded = unicodedata.normalize("NFC", local.lower())
    return _visible(local) != local.strip() or folded.isascii() != local.isascii()


def masked(address: str) -> str:
    """Return an address so that its owner knows it and nobody else: ``a…@e….com``."""
    local, _, domain = address.rpartition("@")
    first, dot, last = domain.rpartition(".")
    return f"{local[:1]}…@{first[:1]}…{dot}{last}" if local and dot else f"{address[:1]}…"


def common_domain(addresses: Iterable[str]) -> str:
    """Return the one domain of canonical addresses; an empty string if there are several, or none.

    Also if it is longer than a domain may be (RFC 1035, section 2.3.4), and so is none.
    """
    domains = {address.rpartition("@")[2] for address in addresses}
    domain = domains.pop() if len(domains) == 1 else ""
    return domain if len(domain) <= _LONGEST_DOMAIN else ""


def is_complete(address: str) -> bool:
    """Return whether a canonical address is one address, with a local part and a domain."""
    return _COMPLETE.fullmatch(address) is not None and address.isprintable()


def spellings(address: str) -> list[str]:
    """Return a canonical address and, for an international domain, the form that people read."""
    local, at, domain = address.rpartition("@")
    with contextlib.suppress(UnicodeError):
        readable = domain.encode("ascii").decode("idna")
        if readable != domain:
            return [address, f"{local}{at}{readable}"]
    return [address]


def _visible(text: str) -> str:
    """Return text without invisible characters and without surrounding white space."""
    return "".join(it for it in text if unicodedata.category(it) not in ("Cf", "Cc")).strip()


_MOST_PARSED = 512
"""Characters of an address with its display name, as ``bounds.MAX_ADDRESS``. Longer text is no
address, and parsers take quadratic time: what reports and webhooks name was not bounded before."""


def _rcpt(text: str) -> str:
    """Return the address that Django hands to the server, or the text if it is no address."""
    if len(text) > _MOST_PARSED:
        return text
    with contextlib.suppress(Exception):  # the parser of older Pythons fails on some text
        parsed = AddressHeader.value_parser(text)
        (mailbox,) = parsed.all_mailboxes
        if mailbox.local_part and not {*map(str, parsed.all_defects)} - _DEFECTS:
            return str(mailbox.addr_spec)
    found: list[tuple[str, str]] = []
    with contextlib.suppress(RecursionError):  # comments within comments
        found = getaddresses([text])
    return found[0][1] if len(found) == 1 and "@" in found[0][1] else text
