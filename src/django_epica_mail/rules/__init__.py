"""The forms of values: what settings, calls and the rules of ``ROUTES`` may give."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeGuard
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.functional import Promise

PRIORITIES = {"urgent": 9, "high": 6, "normal": 3, "low": 0}
"""Names of priorities; 9 is most urgent, on every broker and database."""

LEVELS = range(10)
"""All priorities."""

MOST_SECONDS = 10**10
"""The longest span, some 300 years: databases can store what follows from it."""

MOST_RETRIES = 1000
"""How often a mail may be retried at most."""

MOST_DELAYS = 50
"""How many different delays between tries a mail may have; their column holds as many."""

MOST_DAYS = 36_500
"""A hundred years: databases can store what lies as far back."""

_MOST_COUNT = 10**12
_MOST_SHOWN = 500

ON_UNKNOWN = ("resend", "hold", "fail")
"""What to do with a mail whose outcome is unknown."""

KEEP_CONTENT = ("always", "until_sent", "never")
"""How long content is kept: as long as the row, until the mail's end, or encrypted until then."""


def priority_number(priority: object) -> int:
    """Return a priority as 0 to 9; raise ``ValueError`` if it is invalid."""
    number = PRIORITIES.get(priority) if isinstance(priority, str) else priority
    if isinstance(number, bool) or not isinstance(number, int) or number not in LEVELS:
        names = ", ".join(PRIORITIES)
        raise ValueError(f"priority must be 0 to 9 or one of {names}; it is {shown(priority)}.")
    return number


def check_on_unknown(key: str, value: object) -> str:
    """Return a policy for unknown outcomes; raise ``ValueError`` if it is invalid."""
    return _check_choice(key, value, ON_UNKNOWN)


def check_keep_content(key: str, value: object) -> str:
    """Return how long content is kept; raise ``ValueError`` if it is invalid."""
    return _check_choice(key, value, KEEP_CONTENT)


def check_name(key: str, value: object) -> str:
    """Return the name of a queue, transport or category; raise ``ValueError`` if it is invalid.

    Names are stored in columns of 64 characters, and PostgreSQL accepts neither NUL nor lone
    surrogates.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 64 or not value.isprintable():
        raise invalid(key, value, "must be a name of 1 to 64 printable characters")
    return value


def check_flag(key: str, value: object) -> bool:
    """Return a flag; raise ``TypeError`` if it is not a ``bool``."""
    if not isinstance(value, bool):
        raise TypeError(f"{key} must be True or False; it is {shown(value)}.")
    return value


def check_categories(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a dict of titles by category."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} must be a dict of titles by category; it is {value!r}.")
    for name, title in value.items():
        check_name(f"A category in {key}", name)
        if not isinstance(title, (str, Promise)) or title == "":
            raise ValueError(f"{key}[{name!r}] must be a title; it is {title!r}.")


def check_mailbox(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value has the form of ``BOUNCE_MAILBOX``; never shows it."""
    parts = value if isinstance(value, Mapping) else {"URI": value}
    texts = [it for name, it in parts.items() if name != "OAUTH"]
    is_named = "URI" in parts and set(parts) <= {"URI", "PASSWORD", "OAUTH"}
    if not is_named or not all(isinstance(it, str) and it for it in texts):
        raise ValueError(f"{key} must be a URI, or a dict of URI and PASSWORD or OAUTH.")
    if not isinstance(parts.get("OAUTH", {}), Mapping):
        raise ValueError(f"{key}['OAUTH'] must be a dict, as a transport's option 'oauth'.")


def check_previews(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a dict of sample contexts by template name."""
    if not isinstance(value, Mapping):
        raise invalid(key, value, "must be a dict of sample contexts by template name")
    for name, context in value.items():
        if not isinstance(name, str) or not name:
            rule = "must be a template name such as 'emails/welcome'"
            raise invalid(f"A key of {key}", name, rule)
        if not isinstance(context, (Mapping, str)):
            rule = "must be a dict, or the dotted path of a function that returns one"
            raise invalid(f"{key}[{name!r}]", context, rule)


def check_string(key: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise invalid(key, value, "must be a non-empty string")


def check_strings(key: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is a list of strings."""
    if not are_strings(value):
        raise invalid(key, value, "must be a list of strings")


def check_site(key: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is the URL of a site, without query and fragment."""
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
    except ValueError:  # a bracket without its partner
        parts = urlsplit("")
    is_site = parts.scheme in ("http", "https") and parts.hostname
    if not is_site or parts.query or parts.fragment:
        rule = "must be the address of a site, such as 'https://www.example.com'"
        raise invalid(key, value, rule)


def check_addresses(key: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is a non-empty list of e-mail addresses."""
    rule = "must be a non-empty list of e-mail addresses, or None"
    if not are_strings(value) or not value:
        raise invalid(key, value, rule)
    for address in value:
        try:
            validate_email(address)
        except ValidationError:
            raise invalid(key, value, rule) from None


def check_patterns(key: str, value: object) -> None:
    """Raise ``ValueError`` unless the value is a list of domains, addresses or patterns."""
    if not are_strings(value) or not all(value):
        rule = "must be a list of domains, addresses or patterns such as '*@example.com', or None"
        raise invalid(key, value, rule)


def check_seconds(key: str, value: object) -> float:
    """Return a number of seconds, 0 or more; raise ``ValueError`` if it is invalid."""
    if not is_number(value) or not 0 <= value <= MOST_SECONDS:
        raise invalid(key, value, f"must be a number of seconds, 0 to {MOST_SECONDS}")
    return value


def check_retries(key: str, value: object) -> int:
    """Return a number of retries, which fits its column; raise ``ValueError`` if it does not."""
    if not is_whole(value) or not 0 <= value <= MOST_RETRIES:
        raise invalid(key, value, f"must be a whole number, 0 to {MOST_RETRIES}")
    return value


def check_duration(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a number of seconds above 0."""
    if not is_number(value) or not 0 < value <= MOST_SECONDS:
        raise invalid(key, value, f"must be a number of seconds above 0 and up to {MOST_SECONDS}")


def check_share(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a fraction above 0 and up to 1."""
    if not is_number(value) or not 0 < value <= 1:
        raise invalid(key, value, "must be a fraction above 0 and up to 1")


def check_rates_reached(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is two fractions, the first below the second."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))
    if not is_pair or not 0 < value[0] < value[1] <= 1:  # type: ignore[index]
        raise invalid(key, value, "must be two fractions, a warning's and a higher limit, up to 1")


def check_count(key: str, value: object) -> int:
    """Return a whole number above 0; raise ``ValueError`` if it is invalid."""
    if not is_whole(value) or not 0 < value <= _MOST_COUNT:
        raise invalid(key, value, f"must be a whole number above 0 and up to {_MOST_COUNT}")
    return value


def check_days(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a whole number of days above 0."""
    if not is_whole(value) or not 0 < value <= MOST_DAYS:
        raise invalid(key, value, f"must be a whole number of days, 1 to {MOST_DAYS}")


def check_days_or_zero(key: str, value: object) -> None:
    """Raise ``ValueError`` unless a value is a whole number of days, 0 or more."""
    if value != 0 or not is_whole(value):
        check_days(key, value)


def at_most(most: int) -> Callable[[str, object], None]:
    """Return a check for a whole number from 1 to ``most``."""

    def check_at_most(key: str, value: object) -> None:
        if check_count(key, value) > most:
            raise invalid(key, value, f"must be {most} at most")

    return check_at_most


def invalid(key: str, value: object, rule: str) -> ValueError:
    """Return the error for a value that breaks a rule."""
    return ValueError(f"{key} {rule}; it is {shown(value)}.")


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def shown(value: object) -> str:
    """Return a value as an error message shows it: bounded, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes (sys.int_info)
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def are_strings(value: object) -> TypeGuard[Sequence[str]]:
    """Return whether a value is a list (or tuple) of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(it, str) for it in value)


def ascii_domain(domain: str) -> str:
    """Return a domain in ASCII (RFC 3490); one that has no such form is returned unchanged."""
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode().lower().strip()
    except UnicodeError:
        return domain


@lru_cache(maxsize=256)  # a site has few patterns, and routing reads them for every mail
def address_pattern(pattern: str) -> str:
    """Return a pattern such as ``*@Bücher.example`` in the form of canonical addresses."""
    local, at, domain = unicodedata.normalize("NFC", pattern.lower()).rpartition("@")
    return f"{local}{at}{'.'.join(map(ascii_domain, domain.split('.')))}"


def _check_choice(key: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}; it is {shown(value)}.")
    return value
