"""The setting ``EPICA_MAIL``: one dict, read when first needed, checked whole."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from django_epica_mail import conf_checks as check
from django_epica_mail import rules
from django_epica_mail.rules import Rule


def _setting(default: Any, rule: Callable[[str, object], None]) -> Any:
    return field(default=default, metadata={"check": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked values of ``EPICA_MAIL``; each field is a key in upper case."""

    transports: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"check": check.transports}
    )
    """Real backends by alias, shaped like ``MAILERS``. For sites without ``MAILERS``."""
    routes: tuple[Rule, ...] = field(default=(), metadata={"read": rules.parse})
    """What mail goes where: a list of rules, of which the first that matches a mail wins."""
    rates: Mapping[str, str] = field(default_factory=dict, metadata={"check": check.rates})
    """Recipients in a time: of a transport (``"ses": "14/s"``), a domain (``"@gmail.com": "5/s"``)
    or all mail (``"*"``)."""
    rates_storage: str | None = _setting(None, check.optional_text)
    """Where rates are counted, as a URI of the library ``limits``; by default Celery's Redis."""
    default_transport: str | None = _setting(None, check.optional_name)
    """The transport of a mail that names none."""
    on_unknown: str = _setting("resend", check.policy)
    """What becomes of a mail that may have been accepted: resend, hold (for a person) or fail."""
    classify: str | None = _setting(None, check.optional_text)
    """Dotted path of a function that says what an error of a transport means, or ``None`` of it."""
    max_retries: int = _setting(3, check.count_or_zero)
    """How often a mail is tried again after its first try failed."""
    retry_delay: float = _setting(300, check.seconds_or_zero)
    """Seconds between two tries of a mail."""
    give_up_after: float = _setting(72 * 3600, check.duration)
    """Seconds after which a mail that could not be sent is given up."""
    send_timeout: float = _setting(60, check.duration)
    """Seconds one mail's whole dialogue with the server may take."""
    batch_size: int = _setting(100, check.count)
    """How many mails a worker claims at a time."""
    batch_seconds: float = _setting(5, check.duration)
    """Seconds after which a worker releases what it has claimed and not begun."""
    run_seconds: float = _setting(20, check.duration)
    """Seconds after which a busy worker process rings again and ends its task."""
    settle_delay: float = _setting(0.05, check.seconds_or_zero)
    """Seconds an outcome may wait to be written together with the next ones."""
    breaker_seconds: float = _setting(30, check.duration)
    """Seconds a transport that is out of order is left alone before one mail probes it."""
    connections: int = _setting(5, check.connections)
    """How many connections to a slow transport a worker process keeps busy."""
    connection_max_mails: int = _setting(100, check.count)
    """How many mails one connection to a server carries before it is replaced."""
    connection_max_idle: float = _setting(30, check.seconds_or_zero)
    """Seconds an unused connection to a server is kept."""
    ring_window: float = _setting(0.05, check.duration)
    """Seconds within which a process rings a queue's bell at most once."""
    ring_timeout: float = _setting(0.5, check.duration)
    """Seconds a ring may wait for the broker."""
    ring_pause: float = _setting(10, check.duration)
    """Seconds a process stops ringing after a ring failed; the sweep delivers meanwhile."""
    max_recipients: int | None = _setting(1000, check.optional_count)
    """How many recipients one mail may have."""
    max_message_bytes: int | None = _setting(25 * 1024 * 1024, check.optional_count)
    """How many bytes a mail may have as it is stored, its attachments included."""
    redirect_all_to: Sequence[str] | None = _setting(None, check.addresses)
    """Where all mail of a staging site goes, instead of to its recipients."""
    allowed_recipients: Sequence[str] | None = _setting(None, check.patterns)
    """The only domains, addresses or patterns (``*@example.com``) that mail is sent to."""
    keep_content: str = _setting("always", check.keeping)
    """How long body and attachments are kept: always (as the row is), until_sent (until the mail's
    end), or never (encrypted until then, and no subject in the row)."""
    encryption_keys: tuple[str, ...] = field(default=(), metadata={"read": check.encryption_keys})
    """Keys that encrypt stored content: the first encrypts, all of them decrypt."""
    keep_content_days: int | None = _setting(None, check.optional_count)
    """Days after which the content of finished mail is forgotten, its row being kept on."""
    base_url: str | None = _setting(None, check.site)
    """The site's own address, ``"https://www.example.com"``, for the links that mails carry."""
    store_ip: bool = _setting(False, check.flag)
    """Whether the IP address of who opens a mail or follows a link is kept."""
    transactional: Sequence[str] = _setting((), check.texts)
    """Categories of mail that people cannot unsubscribe from; ``""`` is mail without one."""
    suppression_keys: Sequence[str] = _setting((), check.secrets)
    """Keys of the suppression list's digests, the newest first; by default those of the site."""
    keep_days: int = _setting(30, check.count)
    """Days after which finished mail is deleted by the clean-up."""
    monitoring_token: str | None = field(default=None, repr=False, metadata={"check": check.token})
    """What a monitoring system shows as ``Authorization: Bearer ...``, for details and metrics."""
    health_oldest_due: float = _setting(300, check.duration)
    """Seconds for which mail may be due and not sent before the health check fails."""
    health_no_worker: float = _setting(120, check.duration)
    """Seconds for which mail may be due while no worker does anything."""
    health_last_sweep: float = _setting(300, check.duration)
    """Seconds that may pass between two sweeps."""
    health_failed_share: float = _setting(0.2, check.share)
    """What share of the mail that ends in this hour and the last may fail, from 10 failed on."""
    previews: Mapping[str, Mapping[str, Any] | str] = field(
        default_factory=dict, metadata={"check": check.previews}
    )
    """Templates that staff may preview, each with a sample context: a dict, or the dotted path of a
    function that returns one."""
    real_transports_in_tests: bool = _setting(False, check.flag)
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
