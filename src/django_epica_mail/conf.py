"""The setting ``EPICA_MAIL``: one dict, read when first needed, checked whole."""

from __future__ import annotations

import base64
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.signals import setting_changed
from django.core.validators import validate_email

from django_epica_mail import rules
from django_epica_mail.rules import Rule

MOST_CONNECTIONS = 20
"""Fewer than ``lifecycle.PERMITS``: each mail under way holds one."""

_RATE = re.compile(r"[1-9]\d*/([1-9]\d*)?(s|m|h|d|second|minute|hour|day)")
_SHORTEST_TOKEN = 16


def _refused(key: str, value: object, rule: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"EPICA_MAIL[{key!r}] {rule}; it is {value!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_strings(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, (list, tuple)) and all(isinstance(it, str) for it in value)


def check_duration(key: str, value: object) -> None:
    if not _is_number(value) or value <= 0:
        raise _refused(key, value, "must be a number of seconds above 0")


def check_seconds_or_zero(key: str, value: object) -> None:
    if not _is_number(value) or value < 0:
        raise _refused(key, value, "must be a number of seconds, 0 or more")


def check_count(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refused(key, value, "must be a whole number above 0")


def check_connections(key: str, value: object) -> None:
    check_count(key, value)
    if isinstance(value, int) and value > MOST_CONNECTIONS:
        raise _refused(key, value, f"must be {MOST_CONNECTIONS} at most")


def check_count_or_zero(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refused(key, value, "must be a whole number, 0 or more")


def check_flag(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _refused(key, value, "must be True or False")


def check_name(key: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise _refused(key, value, "must be a name of 1 to 64 characters")


def check_optional_name(key: str, value: object) -> None:
    if value is not None:
        check_name(key, value)


def check_policy(key: str, value: object) -> None:
    if value not in rules.ON_UNKNOWN:
        raise _refused(key, value, f"must be one of {', '.join(map(repr, rules.ON_UNKNOWN))}")


def check_keeping(key: str, value: object) -> None:
    if value not in rules.KEEP_CONTENT:
        raise _refused(key, value, f"must be one of {', '.join(map(repr, rules.KEEP_CONTENT))}")


def check_optional_count(key: str, value: object) -> None:
    if value is not None:
        check_count(key, value)


def check_addresses(key: str, value: object) -> None:
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


def check_patterns(key: str, value: object) -> None:
    if value is not None and not (_are_strings(value) and all(value)):
        rule = "must be a list of domains, addresses or patterns as in '*@example.com', or None"
        raise _refused(key, value, rule)


def check_previews(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of sample contexts by template name")
    for name, context in value.items():
        if not isinstance(name, str) or not name:
            raise _refused(key, name, "names a template, as in 'emails/welcome'")
        if not isinstance(context, (Mapping, str)):
            rule = "must be a dict, or the dotted path of a function that returns one"
            raise _refused(f"{key}[{name!r}]", context, rule)


def parse_encryption_keys(value: object) -> tuple[str, ...]:
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


def check_transports(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of aliases, shaped like Django's MAILERS")
    for alias, spec in value.items():
        check_name(f"{key} alias", alias)
        if not isinstance(spec, Mapping) or not set(spec) <= {"BACKEND", "OPTIONS"}:
            # Named by its keys, for a value may be a password.
            found = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
            rule = "must be a dict with no other keys than BACKEND and OPTIONS"
            raise _refused(f"{key}[{alias!r}]", found, rule)


def check_rates(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise _refused(key, value, "must be a dict of rates by transport or @domain")
    for name, rate in value.items():
        if not isinstance(name, str) or (name.strip("@*") == "" and name != "*"):
            raise _refused(key, name, "names a transport, or a domain as in '@example.com'")
        if not isinstance(rate, str) or not _RATE.fullmatch(rate):
            raise _refused(f"{key}[{name!r}]", rate, "must be a rate as '14/s' or '1000/h'")


def check_optional_text(key: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise _refused(key, value, "must be text")


def check_site(key: str, value: object) -> None:
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


def check_share(key: str, value: object) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise _refused(key, value, "must be a share above 0 and up to 1")


def check_token(key: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and len(value) >= _SHORTEST_TOKEN):
        raise ImproperlyConfigured(  # without the value, which is a secret
            f"EPICA_MAIL[{key!r}] must be text of {_SHORTEST_TOKEN} characters or more."
        )


def check_texts(key: str, value: object) -> None:
    if not _are_strings(value):
        raise _refused(key, value, "must be a list of texts")


def check_secrets(key: str, value: object) -> None:
    if not _are_strings(value):
        raise ImproperlyConfigured(  # without the value
            f"EPICA_MAIL[{key!r}] must be a list of texts; it is a {type(value).__name__}."
        )


def _setting(default: Any, rule: Callable[[str, object], None]) -> Any:
    return field(default=default, metadata={"check": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked values of ``EPICA_MAIL``; each field is a key in upper case."""

    transports: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"check": check_transports}
    )
    """Real backends by alias, shaped like ``MAILERS``. For sites without ``MAILERS``."""
    routes: tuple[Rule, ...] = field(default=(), metadata={"read": rules.parse})
    """What mail goes where: a list of rules, of which the first that matches a mail wins."""
    rates: Mapping[str, str] = field(default_factory=dict, metadata={"check": check_rates})
    """Recipients in a time: of a transport (``"ses": "14/s"``), a domain (``"@gmail.com": "5/s"``)
    or all mail (``"*"``)."""
    rates_storage: str | None = _setting(None, check_optional_text)
    """Where rates are counted, as a URI of the library ``limits``; by default Celery's Redis."""
    default_transport: str | None = _setting(None, check_optional_name)
    """The transport of a mail that names none."""
    on_unknown: str = _setting("resend", check_policy)
    """What becomes of a mail that may have been accepted: resend, hold (for a person) or fail."""
    classify: str | None = _setting(None, check_optional_text)
    """Dotted path of a function that says what an error of a transport means, or ``None`` of it."""
    max_retries: int = _setting(3, check_count_or_zero)
    """How often a mail is tried again after its first try failed."""
    retry_delay: float = _setting(300, check_seconds_or_zero)
    """Seconds between two tries of a mail."""
    give_up_after: float = _setting(72 * 3600, check_duration)
    """Seconds after which a mail that could not be sent is given up."""
    send_timeout: float = _setting(60, check_duration)
    """Seconds one mail's whole dialogue with the server may take."""
    batch_size: int = _setting(100, check_count)
    """How many mails a worker claims at a time."""
    batch_seconds: float = _setting(5, check_duration)
    """Seconds after which a worker releases what it has claimed and not begun."""
    run_seconds: float = _setting(20, check_duration)
    """Seconds after which a busy worker process rings again and ends its task."""
    settle_delay: float = _setting(0.05, check_seconds_or_zero)
    """Seconds an outcome may wait to be written together with the next ones."""
    breaker_seconds: float = _setting(30, check_duration)
    """Seconds a transport that is out of order is left alone before one mail probes it."""
    connections: int = _setting(5, check_connections)
    """How many connections to a slow transport a worker process keeps busy."""
    connection_max_mails: int = _setting(100, check_count)
    """How many mails one connection to a server carries before it is replaced."""
    connection_max_idle: float = _setting(30, check_seconds_or_zero)
    """Seconds an unused connection to a server is kept."""
    ring_window: float = _setting(0.05, check_duration)
    """Seconds within which a process rings a queue's bell at most once."""
    ring_timeout: float = _setting(0.5, check_duration)
    """Seconds a ring may wait for the broker."""
    ring_pause: float = _setting(10, check_duration)
    """Seconds a process stops ringing after a ring failed; the sweep delivers meanwhile."""
    max_recipients: int | None = _setting(1000, check_optional_count)
    """How many recipients one mail may have."""
    max_message_bytes: int | None = _setting(25 * 1024 * 1024, check_optional_count)
    """How many bytes a mail may have as it is stored, its attachments included."""
    redirect_all_to: Sequence[str] | None = _setting(None, check_addresses)
    """Where all mail of a staging site goes, instead of to its recipients."""
    allowed_recipients: Sequence[str] | None = _setting(None, check_patterns)
    """The only domains, addresses or patterns (``*@example.com``) that mail is sent to."""
    keep_content: str = _setting("always", check_keeping)
    """How long body and attachments are kept: always (as the row is), until_sent (until the mail's
    end), or never (encrypted until then, and no subject in the row)."""
    encryption_keys: tuple[str, ...] = field(default=(), metadata={"read": parse_encryption_keys})
    """Keys that encrypt stored content: the first encrypts, all of them decrypt."""
    keep_content_days: int | None = _setting(None, check_optional_count)
    """Days after which the content of finished mail is forgotten, its row being kept on."""
    base_url: str | None = _setting(None, check_site)
    """The site's own address, ``"https://www.example.com"``, for the links that mails carry."""
    store_ip: bool = _setting(False, check_flag)
    """Whether the IP address of who opens a mail or follows a link is kept."""
    transactional: Sequence[str] = _setting((), check_texts)
    """Categories of mail that people cannot unsubscribe from; ``""`` is mail without one."""
    suppression_keys: Sequence[str] = _setting((), check_secrets)
    """Keys of the suppression list's digests, the newest first; by default those of the site."""
    keep_days: int = _setting(30, check_count)
    """Days after which finished mail is deleted by the clean-up."""
    monitoring_token: str | None = field(default=None, repr=False, metadata={"check": check_token})
    """What a monitoring system shows as ``Authorization: Bearer ...``, for details and metrics."""
    health_oldest_due: float = _setting(300, check_duration)
    """Seconds for which mail may be due and not sent before the health check fails."""
    health_no_worker: float = _setting(120, check_duration)
    """Seconds for which mail may be due while no worker does anything."""
    health_last_sweep: float = _setting(300, check_duration)
    """Seconds that may pass between two sweeps."""
    health_failed_share: float = _setting(0.2, check_share)
    """What share of the mail that ends in this hour and the last may fail, from 10 failed on."""
    previews: Mapping[str, Mapping[str, Any] | str] = field(
        default_factory=dict, metadata={"check": check_previews}
    )
    """Templates that staff may preview, each with a sample context: a dict, or the dotted path of a
    function that returns one."""
    real_transports_in_tests: bool = _setting(False, check_flag)
    """Whether Django's test runner may open real transports; otherwise all mail goes to locmem."""

    @property
    def lease_seconds(self) -> float:
        """Seconds a worker may hold a claim: its batch, one last mail, and time to settle."""
        return self.batch_seconds + 2 * self.send_timeout

    @property
    def task_seconds(self) -> int:
        """Seconds after which a delivery task, which ends by itself long before, hangs for sure."""
        return math.ceil(self.run_seconds + 2 * self.lease_seconds)


def parse(value: object) -> Settings:
    """Return the ``Settings`` that a value of ``EPICA_MAIL`` means.

    Raises ``ImproperlyConfigured`` naming the key, the value and the rule it breaks.
    """
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"EPICA_MAIL must be a dict; it is {value!r}.")
    known = {item.name.upper(): item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for key, given in value.items():
        if key not in known:
            near = difflib.get_close_matches(str(key).upper(), known, n=1, cutoff=0)
            raise ImproperlyConfigured(f"EPICA_MAIL has no key {key!r}. Did you mean {near[0]!r}?")
        values[key.lower()] = _read(key, given, known[key].metadata)
    return Settings(**values)


def _read(key: str, given: object, metadata: Mapping[str, Any]) -> object:
    if "check" in metadata:
        metadata["check"](key, given)
        return given
    try:
        return metadata["read"](given)
    except ValueError as error:
        raise ImproperlyConfigured(f"EPICA_MAIL[{key!r}]: {error}") from None


@lru_cache(maxsize=1)
def get() -> Settings:
    """Return the site's settings, checked once and again after a test has overridden them."""
    return parse(getattr(settings, "EPICA_MAIL", {}))


def _forget(*, setting: str, **_: object) -> None:
    if setting == "EPICA_MAIL":
        get.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_epica_mail.conf")
