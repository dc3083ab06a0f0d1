"""The rules of ``EPICA_MAIL["ROUTES"]``: which mail they match, and what they set for it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeGuard

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What rules can match in a mail."""

    category: str = ""
    recipients: Sequence[str] = field(default=(), repr=False)
    """The addresses of To, Cc and Bcc, in their canonical form."""
    sender: str = field(default="", repr=False)
    """The address of From, in its canonical form."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    template: str = ""
    is_bulk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and after which delays, a mail that was refused for now is tried again."""

    max_retries: int | None = None
    delays: tuple[float, ...] | None = None
    """Seconds before the first retry, the second, and so on; the last one repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. A field that is ``None`` is decided by what comes next in precedence."""

    match: Mapping[str, Any] = field(default_factory=dict)
    """Conditions, all of which must hold. Without conditions, the rule matches every mail."""
    transports: tuple[str, ...] = ()
    """The transport, followed by those that take over while it is out of order."""
    queue: str | None = None
    priority: int | None = None
    on_unknown: str | None = None
    retry: RetryPolicy | None = None
    """When the mail is tried again. Its parts that are ``None`` are decided by what comes next."""
    expires_after: float | None = None
    """Seconds after which the mail is no longer worth sending."""
    keep_content: str | None = None
    unsubscribe: bool | None = None
    """Whether a mail offers one-click unsubscribe."""
    track_opens: bool | None = None
    track_clicks: bool | None = None

    def matches(self, facts: Facts) -> bool:
        """Return whether the rule matches a mail."""
        return all(_MATCHERS[key](wanted, facts) for key, wanted in self.match.items())


def parse(value: object) -> tuple[Rule, ...]:
    """Return a value of ``ROUTES`` as rules; raise ``ValueError`` naming what is wrong with it.

    The first rule that matches a mail wins.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of rules; it is {shown(value)}.")
    return tuple(_rule(number, form) for number, form in enumerate(value))


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


def _rule(number: int, form: object) -> Rule:
    where = f"rule {number}"
    if not isinstance(form, Mapping):
        raise ValueError(f"{where} must be a dict; it is {shown(form)}.")
    _check_keys(where, form, ("match", *_VALUES))
    match = form.get("match", {})
    if not isinstance(match, Mapping):
        raise ValueError(f"{where}: match must be a dict; it is {shown(match)}.")
    _check_keys(f"{where}: match", match, _MATCHERS)
    _check_match(where, match)
    values: dict[str, Any] = {}
    for key, given in form.items():
        if key != "match":
            try:
                values.update(_VALUES[key](given))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{where}: {error}") from None
    return Rule(match=dict(match), **values)


def _check_keys(
    where: str, given: Mapping[Any, Any], known: Sequence[str] | Mapping[str, Any]
) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"{where} has no key {unknown[0]!r}; its keys are: {', '.join(known)}.")


def _check_match(where: str, match: Mapping[str, Any]) -> None:
    for key, wanted in match.items():
        if key == "bulk":
            fits = isinstance(wanted, bool)
            rule = "True or False"
        elif key == "header":
            fits = isinstance(wanted, Mapping) and all(
                isinstance(part, str) for pair in wanted.items() for part in pair
            )
            rule = "a dict of header names and patterns"
        else:
            fits = isinstance(wanted, str) or are_strings(wanted)
            rule = "a pattern such as '*@example.com', or a list of patterns"
        if not fits:
            raise ValueError(f"{where}: match {key!r} must be {rule}; it is {shown(wanted)}.")


def _transports(value: object) -> dict[str, Any]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f"transport must be an alias or a list of aliases; it is {shown(value)}.")
    return {"transports": tuple(check_name("transport", alias) for alias in names)}


def parse_retry(value: object) -> RetryPolicy | None:
    """Return a retry policy, or ``None`` for ``None``; raise ``ValueError`` for anything else.

    ``value`` is a list of delays in seconds, one for each retry, or a dict of ``max_retries``,
    ``delay`` (seconds before the first retry), ``factor`` (by which each delay is longer than the
    one before) and ``max_delay``.
    """
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        if len(value) > MOST_DELAYS:
            raise invalid("retry", value, f"must list {MOST_DELAYS} delays at most")
        delays = tuple(check_seconds(f"retry[{index}]", it) for index, it in enumerate(value))
        return RetryPolicy(max_retries=len(delays), delays=delays or None)
    if not isinstance(value, Mapping):
        raise invalid("retry", value, "must be a list of delays, or a dict")
    _check_keys("retry", value, ("max_retries", "delay", "factor", "max_delay"))
    retries = value.get("max_retries")
    return RetryPolicy(
        max_retries=None if retries is None else check_retries("max_retries", retries),
        delays=_delays(**{name: it for name, it in value.items() if name != "max_retries"}),
    )


def _delays(
    delay: object = None, factor: object = None, max_delay: object = None
) -> tuple[float, ...] | None:
    first = None if delay is None else check_seconds("delay", delay)
    if factor is None and max_delay is None:
        return None if first is None else (first,)
    if not first or factor is None:
        raise ValueError("retry: factor and max_delay need a delay above 0 and a factor.")
    if not is_number(factor) or not 1.1 <= factor <= 100:
        raise invalid("factor", factor, "must be a number, 1.1 to 100")
    most = float(MOST_SECONDS if max_delay is None else check_seconds("max_delay", max_delay))
    found = [first]
    while len(found) < MOST_DELAYS and found[-1] < most:
        found.append(min(found[-1] * factor, most))
    return tuple(found)


_VALUES: dict[str, Callable[[object], dict[str, Any]]] = {
    "queue": lambda value: {"queue": check_name("queue", value)},
    "priority": lambda value: {"priority": priority_number(value)},
    "transport": _transports,
    "on_unknown": lambda value: {"on_unknown": check_on_unknown("on_unknown", value)},
    "keep_content": lambda value: {"keep_content": check_keep_content("keep_content", value)},
    "retry": lambda value: {"retry": parse_retry(value)},
    "expires_after": lambda value: {"expires_after": check_seconds("expires_after", value)},
    "unsubscribe": lambda value: {"unsubscribe": check_flag("unsubscribe", value)},
    "track_opens": lambda value: {"track_opens": check_flag("track_opens", value)},
    "track_clicks": lambda value: {"track_clicks": check_flag("track_clicks", value)},
}


def _fits(pattern: str | Sequence[str], text: str) -> bool:
    patterns = [pattern] if isinstance(pattern, str) else pattern
    return any(fnmatchcase(text.lower(), one.lower()) for one in patterns)


def _fits_address(pattern: str | Sequence[str], address: str) -> bool:
    patterns = [pattern] if isinstance(pattern, str) else pattern
    return any(fnmatchcase(address.lower(), address_pattern(one)) for one in patterns)


def _has_headers(wanted: Mapping[str, str], facts: Facts) -> bool:
    present = {key.lower(): value for key, value in facts.headers.items()}
    return all(
        key.lower() in present and _fits(pattern, present[key.lower()])
        for key, pattern in wanted.items()
    )


_MATCHERS: dict[str, Callable[[Any, Facts], bool]] = {
    "category": lambda wanted, facts: _fits(wanted, facts.category),
    "to": lambda wanted, facts: any(_fits_address(wanted, it) for it in facts.recipients),
    "from": lambda wanted, facts: _fits_address(wanted, facts.sender),
    "header": _has_headers,
    "template": lambda wanted, facts: _fits(wanted, facts.template),
    "bulk": lambda wanted, facts: wanted is facts.is_bulk,
}
