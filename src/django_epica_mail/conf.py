"""The setting ``EPICA_MAIL``: a dict, checked as a whole when it is first read."""

from __future__ import annotations

import base64
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from django_epica_mail import rules
from django_epica_mail.rules import routes as route_rules
from django_epica_mail.rules.routes import RetryPolicy, Rule

PERMITS = 25
"""The most mails that a worker process may hold: if it dies, each of them is in doubt."""

MOST_CONNECTIONS = 20
"""The highest value of ``CONNECTIONS``: below ``PERMITS``, for a worker holds what it sends."""

BEGIN_SECONDS = 2.0
"""Seconds after its claim within which a mail is begun; then it is released."""

_SETTLE_SECONDS = 2.0
"""Seconds that a lease outlasts the longest mail, for the outcome to be written."""

_RATE = re.compile(r"[1-9]\d*/([1-9]\d*)?(s|m|h|d|second|minute|hour|day)")
_SHORTEST_TOKEN = 16

REMOVED = {
    "BATCH_SECONDS": "a worker claims only what it begins within two seconds",
    "SETTLE_DELAY": "outcomes are written once what was claimed is begun",
}
"""Keys without effect, with the reason."""

Check = Callable[[str, object], object]
"""Raises ``ValueError`` or ``TypeError`` naming the key, the value and the rule it breaks."""


def _optional(check: Check) -> Check:
    """Return ``check`` for a setting that may also be ``None``."""

    def check_unless_none(key: str, value: object) -> None:
        if value is not None:
            check(key, value)

    return check_unless_none


def check_transports(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise rules.invalid(key, value, "must be a dict by alias, shaped like Django's MAILERS")
    for alias, spec in value.items():
        rules.check_name(f"An alias in {key}", alias)
        if not isinstance(spec, Mapping) or not set(spec) <= {"BACKEND", "OPTIONS"}:
            # Only the keys are shown, because a value may be a password.
            found = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
            rule = "must be a dict with no keys other than BACKEND and OPTIONS"
            raise rules.invalid(f"{key}[{alias!r}]", found, rule)


def check_rates(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise rules.invalid(key, value, "must be a dict of rates by transport or @domain")
    for name, rate in value.items():
        if not isinstance(name, str) or (name.strip("@*") == "" and name != "*"):
            rule = "must be a transport, a domain such as '@example.com', or '*'"
            raise rules.invalid(f"A key of {key}", name, rule)
        if not isinstance(rate, str) or not _RATE.fullmatch(rate):
            raise rules.invalid(
                f"{key}[{name!r}]", rate, "must be a rate such as '14/s' or '1000/h'"
            )


# The errors below do not show the value, which is a secret.


def parse_storage(value: object) -> str | None:
    """Return the URI of a storage, with its password; raise ``ValueError`` if it is none."""
    if value is None:
        return None
    parts: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"URI": value}
    is_named = "URI" in parts and set(parts) <= {"URI", "PASSWORD"}
    if not is_named or not all(isinstance(it, str) and it for it in parts.values()):
        raise ValueError("must be a URI, or a dict of URI and PASSWORD; each is a string.")
    uri: str = parts["URI"]
    if "PASSWORD" not in parts:
        return uri
    scheme, _, rest = uri.partition("://")
    user, _, host = rest.rpartition("@")
    return f"{scheme}://{user}:{quote(parts['PASSWORD'], safe='')}@{host}"


def check_token(key: str, value: object) -> None:
    if not isinstance(value, str) or len(value) < _SHORTEST_TOKEN:
        raise ValueError(f"{key} must be a string of {_SHORTEST_TOKEN} characters or more.")


def check_secrets(key: str, value: object) -> None:
    if not rules.are_strings(value):
        raise ValueError(f"{key} must be a list of strings; it is a {type(value).__name__}.")


def parse_encryption_keys(value: object) -> tuple[str, ...]:
    """Return the Fernet keys; raise ``ValueError`` if one is invalid."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of keys; it is a {type(value).__name__}.")
    for number, key in enumerate(value):
        try:
            size = len(base64.urlsafe_b64decode(key))
        except (TypeError, ValueError):
            size = 0
        if not isinstance(key, str) or size != 32:
            raise ValueError(
                f"key {number} must be 32 bytes in URL-safe Base64: generate one with "
                "cryptography.fernet.Fernet.generate_key().decode()."
            )
    return tuple(value)


def _setting(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked values of ``EPICA_MAIL``. The key of a field is its name in upper case."""

    transports: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, repr=False, metadata={"check": check_transports}
    )
    """Real backends by alias, shaped like ``MAILERS``. For sites without ``MAILERS``."""
    routes: tuple[Rule, ...] = field(default=(), metadata={"parse": route_rules.parse})
    """Rules that decide where mail goes. The first rule that matches a mail wins."""
    rates: Mapping[str, str] = field(default_factory=dict, metadata={"check": check_rates})
    """Limits on recipients per unit of time: for a transport (``"ses": "14/s"``), a domain
    (``"@gmail.com": "5/s"``) or all mail (``"*"``)."""
    find_rates: bool = _setting(True, rules.check_flag)
    """Whether mail to a domain slows down by itself when its server complains of the rate."""
    rates_storage: str | None = field(default=None, repr=False, metadata={"parse": parse_storage})
    """Where rates are counted, as a URI of the ``limits`` library; by default Celery's Redis. A
    password stands beside it, ``{"URI": ..., "PASSWORD": ...}``, which Django's reports hide."""
    default_transport: str | None = _setting(None, _optional(rules.check_name))
    """The transport of mail that names none."""
    on_unknown: str = _setting("resend", rules.check_on_unknown)
    """What to do with a mail that may have been accepted: resend it, hold it for a person, or
    fail it."""
    evidence: str | None = _setting(None, _optional(rules.check_string))
    """Dotted path of a function that is asked about mail of unknown outcome, before it is sent
    again: ``"accepted"``, ``"refused"`` or ``"unknown"``."""
    evidence_timeout: float = _setting(5, rules.check_duration)
    """Seconds that ``EVIDENCE`` may take; then its answer is ``"unknown"``."""
    evidence_wait: float = _setting(0, rules.check_seconds)
    """Seconds for which mail of unknown outcome waits for evidence, before its policy decides."""
    classify: str | None = _setting(None, _optional(rules.check_string))
    """Dotted path of a function that classifies a transport's errors; where it returns ``None``,
    the package's own classification applies."""
    max_retries: int = _setting(3, rules.check_retries)
    """How often a mail is retried after its first attempt failed."""
    retry_delay: float = _setting(300, rules.check_seconds)
    """Seconds between two attempts at a mail."""
    retry: RetryPolicy | None = field(default=None, metadata={"parse": route_rules.parse_retry})
    """When a mail is tried again, instead of the two above: a list of delays in seconds, or a dict
    of ``max_retries``, ``delay``, ``factor`` and ``max_delay``."""
    give_up_after: float = _setting(72 * 3600, rules.check_duration)
    """Seconds after which a mail that could not be sent is given up."""
    send_timeout: float = _setting(60, rules.check_duration)
    """Seconds that one mail's whole dialogue with the server may take."""
    batch_size: int = _setting(10, rules.at_most(PERMITS))
    """How many mails a worker claims at a time; what a killed worker process leaves in doubt."""
    run_seconds: float = _setting(20, rules.check_duration)
    """Seconds after which a busy worker process rings again and ends its task."""
    breaker_seconds: float = _setting(30, rules.check_duration)
    """Seconds before one mail probes a transport that is out of order."""
    connections: int = _setting(5, rules.at_most(MOST_CONNECTIONS))
    """How many connections to a slow transport a worker process keeps busy; 20 at most."""
    connection_max_mails: int = _setting(100, rules.check_count)
    """How many mails a connection to a server carries before it is replaced."""
    connection_max_idle: float = _setting(30, rules.check_seconds)
    """Seconds an unused connection to a server is kept."""
    ring_window: float = _setting(0.05, rules.check_duration)
    """Seconds within which a process rings a queue's bell at most once."""
    ring_timeout: float = _setting(0.5, rules.check_duration)
    """Seconds a ring may wait for the broker."""
    ring_pause: float = _setting(10, rules.check_duration)
    """Seconds a process stops ringing after a ring failed, for the one queue if the broker refused
    it; the sweep delivers meanwhile."""
    max_recipients: int | None = _setting(1000, _optional(rules.check_count))
    """How many recipients one mail may have; ``None``: any number."""
    max_message_bytes: int | None = _setting(25 * 1024 * 1024, _optional(rules.check_count))
    """How many bytes a stored mail may have, attachments included; ``None``: any number."""
    redirect_all_to: Sequence[str] | None = _setting(None, _optional(rules.check_addresses))
    """Addresses that receive all mail of a staging site instead of its recipients."""
    allowed_recipients: Sequence[str] | None = _setting(None, _optional(rules.check_patterns))
    """The only domains, addresses or patterns (``*@example.com``) that mail is sent to."""
    keep_content: str = _setting("always", rules.check_keep_content)
    """How long body and attachments are kept: always (as long as the row), until_sent (until the
    mail's end), or never (encrypted until then, and the row does not show the subject)."""
    encryption_keys: tuple[str, ...] = field(
        default=(), repr=False, metadata={"parse": parse_encryption_keys}
    )
    """Keys for stored content: the first encrypts, all of them decrypt."""
    encryption_required: bool = _setting(False, rules.check_flag)
    """Whether stored content that is not encrypted is refused, as somebody else's; set it once
    ``epica_mail reencrypt`` reports that all of it is encrypted."""
    message_modules: Sequence[str] = _setting((), rules.check_strings)
    """Packages, besides installed apps, whose classes of messages a worker may import."""
    keep_content_days: int | None = _setting(None, _optional(rules.check_days))
    """Days after which the content of finished mail is deleted; the row is kept."""
    base_url: str | None = _setting(None, _optional(rules.check_site))
    """The site's own address, ``"https://www.example.com"``, for links in mail."""
    click_link_days: int | None = _setting(None, _optional(rules.check_days))
    """Days after which the tracked links of a mail lead nowhere, counted from when it was queued;
    ``None``: they never end."""
    click_hosts: Sequence[str] | None = _setting(None, _optional(rules.check_strings))
    """The only hosts that tracked links lead to at once, as in ``ALLOWED_HOSTS``; before any other,
    a page names it and asks. ``None``: all hosts."""
    store_ip: bool = _setting(False, rules.check_flag)
    """Whether to store the IP address of people who open a mail or follow a link."""
    categories: Mapping[str, Any] = field(
        default_factory=dict, metadata={"check": rules.check_categories}
    )
    """Titles of the categories that people choose among on the page to unsubscribe; a title may be
    a lazy translation. Without any, the page asks about the mail's own category alone."""
    transactional: Sequence[str] = _setting((), rules.check_strings)
    """Categories of mail that people cannot unsubscribe from; ``""`` is mail without a category."""
    suppression_keys: Sequence[str] = field(
        default=(), repr=False, metadata={"check": check_secrets}
    )
    """Keys for the suppression list's digests, newest first; by default Django's secret keys."""
    keep_days: int = _setting(30, rules.check_days)
    """Days after which the clean-up deletes finished mail."""
    cleanup_min_days: int = _setting(1, rules.check_days_or_zero)
    """The fewest days that the task ``cleanup_old_email_logs`` accepts; the command takes any."""
    bulk_entries_from_broker: bool = _setting(False, rules.check_flag)
    """Whether bulk calls may bring their entries through the broker, and not only a batch's id."""
    trust_unauthenticated_webhooks: bool = _setting(False, rules.check_flag)
    """Whether provider events suppress addresses without a webhook secret or a signature."""
    bounce_mailbox: str | Mapping[str, Any] | None = field(
        default=None, repr=False, metadata={"check": _optional(rules.check_mailbox)}
    )
    """The mailbox that bounces come back to: ``"maildir:/path"``, or a dict of an ``imaps`` URI
    and its PASSWORD or OAUTH."""
    delete_bounces: bool = _setting(False, rules.check_flag)
    """Whether reports are deleted from the mailbox once recorded; otherwise they become seen."""
    trust_unsigned_bounces: bool = _setting(False, rules.check_flag)
    """Whether bounces suppress addresses without a signed return address."""
    suppress_refused: bool = _setting(False, rules.check_flag)
    """Whether a recipient that the server refuses as "no such user" counts as bounced for good."""
    monitoring_token: str | None = field(
        default=None, repr=False, metadata={"check": _optional(check_token)}
    )
    """What a monitoring system sends as ``Authorization: Bearer ...`` to see details and metrics;
    16 characters or more."""
    health_oldest_due: float = _setting(300, rules.check_duration)
    """Seconds that mail may be due and unsent before the health check fails."""
    health_no_worker: float = _setting(120, rules.check_duration)
    """Seconds that mail may be due while no worker is active."""
    health_last_sweep: float = _setting(300, rules.check_duration)
    """Seconds that may pass between two sweeps."""
    health_failed_share: float = _setting(0.2, rules.check_share)
    """What share of the mail that finished in this hour and the last may have failed; checked
    from 10 failures on."""
    reputation_days: int = _setting(7, rules.check_days)
    """Over how many days bounce and complaint rates are computed, today included."""
    complaint_rates: Sequence[float] = _setting((0.001, 0.003), rules.check_rates_reached)
    """The shares of complaints that are a warning, and too high: what Gmail and Yahoo publish."""
    bounce_rates: Sequence[float] = _setting((0.05, 0.1), rules.check_rates_reached)
    """The shares of bounces that are a warning, and too high: where Amazon SES acts."""
    pause_on_reputation: bool = _setting(False, rules.check_flag)
    """Whether bulk mail of a category pauses by itself when its rates are too high."""
    previews: Mapping[str, Mapping[str, Any] | str] = field(
        default_factory=dict, metadata={"check": rules.check_previews}
    )
    """Templates that staff may preview, each with a sample context: a dict, or the dotted path of a
    function that returns one."""
    deliver_in_process: bool = _setting(False, rules.check_flag)
    """Whether the process that queued a mail delivers it at the commit, without a broker and a
    worker: for development. It has no effect where ``DEBUG`` is off."""
    real_transports_in_tests: bool = _setting(False, rules.check_flag)
    """Whether Django's test runner may open real transports; otherwise all mail goes to locmem."""

    @property
    def awaits_evidence(self) -> bool:
        """Whether mail of unknown outcome may still be resolved by evidence."""
        return self.evidence is not None or self.evidence_wait > 0

    @property
    def lease_seconds(self) -> float:
        """Seconds a worker may hold a claim: to begin its last mail, send it, and settle it."""
        return BEGIN_SECONDS + self.send_timeout + _SETTLE_SECONDS

    @property
    def settle_patience(self) -> float:
        """Seconds for which an outcome is kept while the database is out of reach."""
        return self.lease_seconds + self.send_timeout

    @property
    def task_seconds(self) -> int:
        """Seconds after which a delivery task must be stuck: normally it ends long before."""
        return math.ceil(self.run_seconds + self.lease_seconds + self.settle_patience)


@lru_cache(maxsize=1)
def get() -> Settings:
    """Return the site's settings. They are parsed once, and again after a test overrides them."""
    return parse(getattr(settings, "EPICA_MAIL", {}))


def parse(value: object) -> Settings:
    """Return a value of ``EPICA_MAIL`` as ``Settings``.

    Raises ``ImproperlyConfigured`` naming the key, the value and the rule it breaks.
    """
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"EPICA_MAIL must be a dict; it is {rules.shown(value)}.")
    known = {item.name.upper(): item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for key, given in value.items():
        if key in REMOVED:
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key).upper(), known, n=1, cutoff=0)
            raise ImproperlyConfigured(f"EPICA_MAIL has no key {key!r}. Did you mean {near[0]!r}?")
        values[key.lower()] = _read(f"EPICA_MAIL[{key!r}]", given, known[key].metadata)
    parsed = Settings(**values)
    if parsed.retry is not None and (both := sorted({"max_retries", "retry_delay"} & set(values))):
        raise ImproperlyConfigured(
            f"EPICA_MAIL['RETRY'] replaces EPICA_MAIL[{both[0].upper()!r}]: give one of them."
        )
    if parsed.encryption_required and not parsed.encryption_keys:
        raise ImproperlyConfigured(
            "EPICA_MAIL['ENCRYPTION_REQUIRED'] is set, but there is nothing to encrypt with: set "
            "EPICA_MAIL['ENCRYPTION_KEYS'] too."
        )
    return parsed


def _read(key: str, given: object, metadata: Mapping[str, Any]) -> object:
    if "parse" in metadata:
        try:
            return metadata["parse"](given)
        except ValueError as error:
            raise ImproperlyConfigured(f"{key}: {error}") from None
    try:
        metadata["check"](key, given)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(str(error)) from None
    return given


def _forget(*, setting: str, **_: object) -> None:
    if setting == "EPICA_MAIL":
        get.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_epica_mail.conf")
