"""What each key of ``EPICA_MAIL`` may hold; for more a check raises ``ImproperlyConfigured``."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeGuard
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email

from django_epica_mail import rules

MOST_CONNECTIONS = 20
"""Fewer than ``lifecycle.PERMITS``: each mail under way holds one."""

_RATE = re.compile(r"[1-9]\d*/([1-9]\d*)?(s|m|h|d|second|minute|hour|day)")
_SHORTEST_TOKEN = 16


def _refused(key: str, value: object, rule: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"EPICA_MAIL[{key!r}] {rule}; it is {value!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, (list, tuple)) and all(isinstance(it, str) for it in value)


def duration(key: str, value: object) -> None:
    if not _is_number(value) or value <= 0:
        raise _refused(key, value, "must be a number of seconds above 0")


def seconds_or_zero(key: str, value: object) -> None:
    if not _is_number(value) or value < 0:
        raise _refused(key, value, "must be a number of seconds, 0 or more")


def count(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refused(key, value, "must be a whole number above 0")


def connections(key: str, value: object) -> None:
    count(key, value)
    if isinstance(value, int) and value > MOST_CONNECTIONS:
        raise _refused(key, value, f"must be {MOST_CONNECTIONS} at most")


def count_or_zero(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refused(key, value, "must be a whole number, 0 or more")


def flag(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _refused(key, value, "must be True or False")


def name(key: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise _refused(key, value, "must be a name of 1 to 64 characters")


def optional_name(key: str, value: object) -> None:
    if value is not None:
        name(key, value)


def policy(key: str, value: object) -> None:
    if value not in rules.ON_UNKNOWN:
        raise _refused(key, value, f"must be one of {', '.join(map(repr, rules.ON_UNKNOWN))}")


def keeping(key: str, value: object) -> None:
    if value not in rules.KEEP_CONTENT:
        raise _refused(key, value, f"must be one of {', '.join(map(repr, rules.KEEP_CONTENT))}")


def optional_count(key: str, value: object) -> None:
    if value is not None:
        count(key, value)


def addresses(key: str, value: object) -> None:
    rule = "must be a list of e-mail addresses, one at least, or None"
    if value is None:
        return
    if not isinstance(value, (list, tuple)) or not value:
        raise _refused(key, value, rule)
    for address in value:
        try:
            validate_email(address)
        except ValidationError:
            raise _refused(key, value, rule) from None


def patterns(key: str, value: object) -> None:
    if value is not None and not (_are_texts(value) and all(value)):
        rule = "must be a list of domains, addresses or patterns as in '*@example.com', or None"
        raise _refused(key, value, rule)


def previews(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of sample contexts by template name")
    for name, context in value.items():
        if not isinstance(name, str) or not name:
            raise _refused(key, name, "names a template, as in 'emails/welcome'")
        if not isinstance(context, (Mapping, str)):
            rule = "must be a dict, or the dotted path of a function that returns one"
            raise _refused(f"{key}[{name!r}]", context, rule)


def encryption_keys(value: object) -> tuple[str, ...]:
    """Return Fernet keys; raise ``ValueError`` for what is none, which names no secret."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of keys; it is a {type(value).__name__}.")
    for number, one in enumerate(value):
        try:
            size = len(base64.urlsafe_b64decode(one))
        except (TypeError, ValueError):
            size = 0
        if not isinstance(one, str) or size != 32:
            raise ValueError(
                f"key {number} must be 32 bytes as URL-safe Base64: make it with "
                "cryptography.fernet.Fernet.generate_key().decode()."
            )
    return tuple(value)


def transports(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of aliases, shaped like Django's MAILERS")
    for alias, spec in value.items():
        name(f"{key} alias", alias)
        if not isinstance(spec, Mapping) or not set(spec) <= {"BACKEND", "OPTIONS"}:
            # Named by its keys, for a value may be a password.
            found = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
            rule = "must be a dict with no other keys than BACKEND and OPTIONS"
            raise _refused(f"{key}[{alias!r}]", found, rule)


def rates(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of rates by transport or @domain")
    for name, rate in value.items():
        if not isinstance(name, str) or (name.strip("@*") == "" and name != "*"):
            raise _refused(key, name, "names a transport, or a domain as in '@example.com'")
        if not isinstance(rate, str) or not _RATE.fullmatch(rate):
            raise _refused(f"{key}[{name!r}]", rate, "must be a rate as '14/s' or '1000/h'")


def optional_text(key: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise _refused(key, value, "must be text")


def site(key: str, value: object) -> None:
    if value is None:
        return
    parts = urlsplit(value) if isinstance(value, str) else None
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
    ):
        raise _refused(key, value, "must be the address of a site, as 'https://www.example.com'")


def share(key: str, value: object) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise _refused(key, value, "must be a share above 0 and up to 1")


def token(key: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and len(value) >= _SHORTEST_TOKEN):
        raise ImproperlyConfigured(  # without the value, which is a secret
            f"EPICA_MAIL[{key!r}] must be text of {_SHORTEST_TOKEN} characters or more."
        )


def texts(key: str, value: object) -> None:
    if not _are_texts(value):
        raise _refused(key, value, "must be a list of texts")


def secrets(key: str, value: object) -> None:
    if not _are_texts(value):
        raise ImproperlyConfigured(  # without the value
            f"EPICA_MAIL[{key!r}] must be a list of texts; it is a {type(value).__name__}."
        )
