"""The rules of ``EPICA_MAIL["ROUTES"]``: which mail they match, and what they set for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from django_epica_mail.rules import (
    MOST_DELAYS,
    MOST_SECONDS,
    address_pattern,
    are_strings,
    check_flag,
    check_keep_content,
    check_name,
    check_on_unknown,
    check_retries,
    check_seconds,
    invalid,
    is_number,
    priority_number,
    shown,
)


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
