"""Reads which transports a site configures, from ``MAILERS`` (Django 6.1) or ``EMAIL_BACKEND``.

Apart from the checks, only this module knows which of the two a site uses.
"""

from __future__ import annotations

import inspect
import ipaddress
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.core.validators import validate_email
from django.utils.module_loading import import_string

from django_epica_mail import conf
from django_epica_mail.messages import Rules
from django_epica_mail.transports import anymail

QUEUE_BACKEND = "django_epica_mail.backends.EmailBackend"
SITE_SMTP = "smtp"
"""The alias of Django's SMTP backend with the site's own ``EMAIL_*`` settings."""

DJANGO_SMTP = "django.core.mail.backends.smtp.EmailBackend"
OUR_OPTIONS = ("oauth", "dkim", "envelope_from")
"""Keys of a transport's OPTIONS that are for this package, not for the backend."""
ENVELOPE_FROM = "epica_mail_envelope_from"
"""The attribute of a message that names the sender of its SMTP envelope, if not ``from_email``."""
RETURN_ID_LENGTH = 42
"""Characters that stand for ``{id}`` in ``envelope_from``: an e-mail's id, and its signature."""
_LOCAL_PART_LENGTH = 64
"""RFC 5321, section 4.5.3.1.1."""
LOCMEM = "django.core.mail.backends.locmem.EmailBackend"

_SETTING_OF_OPTION = {
    "host": "EMAIL_HOST",
    "port": "EMAIL_PORT",
    "username": "EMAIL_HOST_USER",
    "password": "EMAIL_HOST_PASSWORD",
    "use_tls": "EMAIL_USE_TLS",
    "use_ssl": "EMAIL_USE_SSL",
    "timeout": "EMAIL_TIMEOUT",
}
"""The setting that stands in for an option of SMTP that is not given, except in ``MAILERS``."""


def uses_mailers() -> bool:
    """Return whether the site configures mail with ``MAILERS``."""
    return hasattr(mail, "mailers") and hasattr(settings, "MAILERS")


def under_test() -> bool:
    """Return whether Django's test runner has replaced the site's mail backends with locmem.

    Delivery then uses locmem too: no test of a site can send real mail. The outbox alone does not
    show it: whatever opens the locmem backend makes one, in production too.
    """
    runner = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    is_at_work = hasattr(runner, "saved_data") and hasattr(mail, "outbox")
    return is_at_work and not conf.get().real_transports_in_tests


def before_tests(setting: str, default: Any) -> Any:
    """Return a value that Django's test runner has replaced, ``mailers`` or ``email_backend``.

    Returns ``default`` where it has replaced none.
    """
    runner = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return getattr(getattr(runner, "saved_data", None), setting, None) or default


def is_queue(spec: Mapping[str, Any]) -> bool:
    """Return whether a backend's configuration leads back to the queue."""
    path = spec.get("BACKEND", DJANGO_SMTP)
    try:
        ancestors = import_string(path).__mro__
    except ImportError:
        return False  # reported by the checks, and by the first mail that needs it
    return any(f"{base.__module__}.{base.__qualname__}" == QUEUE_BACKEND for base in ancestors)


def specs() -> dict[str, Mapping[str, Any]]:
    """Return the configuration of every real transport (never the queue itself), by alias."""
    if uses_mailers():
        configured: Mapping[str, Mapping[str, Any]] = settings.MAILERS
    else:
        configured = conf.get().transports or {SITE_SMTP: {"BACKEND": DJANGO_SMTP}}
    return {alias: spec for alias, spec in configured.items() if not is_queue(spec)}


def our_options(alias: str) -> dict[str, Any]:
    """Return those of a transport's OPTIONS that are for this package, not for its backend."""
    options = specs()[alias].get("OPTIONS", {})
    return {key: options[key] for key in OUR_OPTIONS if options.get(key) is not None}


def envelope_from(alias: str) -> str | None:
    """Return the pattern of a transport's return addresses, ``bounces+{id}@example.com``."""
    if under_test():
        return None
    configured: Mapping[str, Mapping[str, Any]] = conf.get().transports
    if uses_mailers():
        configured = settings.MAILERS
    pattern: str | None = configured.get(alias, {}).get("OPTIONS", {}).get("envelope_from")
    return pattern


def check_envelope_from(pattern: object) -> None:
    """Raise ``ImproperlyConfigured`` for an option ``envelope_from`` that makes no addresses."""
    parts = pattern.split("{id}") if isinstance(pattern, str) else []
    local = parts[0] if parts else ""
    try:
        if len(parts) != 2 or not str(pattern).isascii() or "@" in local:
            raise ValidationError("form")
        validate_email(str(pattern).format(id="a" * RETURN_ID_LENGTH))
    except (ValidationError, LookupError, ValueError):
        raise ImproperlyConfigured(
            "envelope_from must be an address with '{id}' once before the @, such as "
            f"'bounces+{{id}}@example.com'; it is {pattern!r}."
        ) from None
    length = len(str(pattern).partition("@")[0]) - len("{id}") + RETURN_ID_LENGTH
    if length > _LOCAL_PART_LENGTH:
        raise ImproperlyConfigured(
            f"envelope_from makes local parts of {length} characters ({{id}} takes "
            f"{RETURN_ID_LENGTH}), but {_LOCAL_PART_LENGTH} are allowed (RFC 5321, section "
            f"4.5.3.1.1): shorten {pattern!r}."
        )


def aliases() -> tuple[str, ...]:
    """Return the aliases a mail may name as its transport."""
    return tuple(specs())


def tracks(alias: str) -> bool:
    """Return whether a transport is a provider that tracks opens and clicks itself."""
    backend = None if under_test() else _backend(alias)
    return backend is not None and anymail.is_provider(backend) and anymail.tracks(backend)


def rules_of(aliases: Iterable[str], message: EmailMessage) -> Rules:
    """Return the rules with which a message complies if any of these transports may send it."""
    found = set()
    for alias in aliases:
        backend = None if under_test() else _backend(alias)
        if backend is None or not anymail.is_provider(backend):
            return Rules.SMTP
        found.add(anymail.rules(backend, message))
    return Rules.MIME if Rules.MIME in found else Rules.FIELDS


def read_attributes(aliases: Iterable[str]) -> bool:
    """Return whether one of these transports may read attributes of a message that are a site's.

    Django's backends and anymail's read only their own, and so does a subclass of Django's SMTP
    backend that sends as that does.
    """
    return any(_reads_attributes(_backend(alias)) for alias in aliases)


def _reads_attributes(backend: type[BaseEmailBackend] | None) -> bool:
    if backend is None or backend.__module__.startswith(("django.core.mail.", "anymail.")):
        return backend is None
    smtp = import_string(DJANGO_SMTP)
    is_smtp = issubclass(backend, smtp)
    return not is_smtp or any(
        getattr(backend, name) is not getattr(smtp, name) for name in ("send_messages", "_send")
    )


def _backend(alias: str) -> type[BaseEmailBackend] | None:
    """Return the class of a transport's backend; ``None`` if there is none to import."""
    spec = specs().get(alias)
    try:
        found: type[BaseEmailBackend] | None = (
            None if spec is None else import_string(spec.get("BACKEND", DJANGO_SMTP))
        )
    except ImportError:
        return None  # reported by the checks, and by the first mail that needs it
    return found


def unencrypted_logins() -> Iterator[tuple[str, str]]:
    """Yield the transports that log in to an SMTP server on another host without TLS, and the host.

    A transport whose options name no host, user or encryption uses the ``EMAIL_*`` settings, except
    in ``MAILERS``.
    """
    for alias, spec in specs().items():
        try:
            backend = import_string(spec.get("BACKEND", DJANGO_SMTP))
        except ImportError:
            continue  # reported by the checks
        options = spec.get("OPTIONS", {})
        if not issubclass(backend, import_string(DJANGO_SMTP)):
            continue
        user = _smtp_option(options, "username")
        host = str(_smtp_option(options, "host") or "localhost")
        is_encrypted = _smtp_option(options, "use_tls") or _smtp_option(options, "use_ssl")
        if user and not is_encrypted and not _is_this_machine(host):
            yield alias, host


def has_option(transport: str | None, name: str, value: object) -> bool:
    """Return whether a transport connects with this value of an option already.

    ``transport`` is by default that of a mail that names none. Only options of SMTP are compared.
    Those of a transport that stands for the outbox of a test are what the site has set for it.
    """
    try:
        alias = transport or default_alias()
        spec = specs()[alias]
        if under_test() and uses_mailers() and spec.get("BACKEND") == LOCMEM:
            spec = before_tests("mailers", {}).get(alias, spec)
        backend = import_string(spec.get("BACKEND", DJANGO_SMTP))
        is_smtp = issubclass(backend, import_string(DJANGO_SMTP))
    except (ImproperlyConfigured, ImportError, KeyError):
        return False
    own = _smtp_option(spec.get("OPTIONS", {}), name) if name in _SETTING_OF_OPTION else None
    return is_smtp and own is not None and str(own) == str(value)


def _smtp_option(options: Mapping[str, Any], name: str) -> Any:
    if options.get(name) is not None or uses_mailers():
        return options.get(name)
    with warnings.catch_warnings():  # Django 6.1 deprecates the settings
        warnings.simplefilter("ignore")
        return getattr(settings, _SETTING_OF_OPTION[name], None)


def places(alias: str, *names: str) -> str:
    """Return where the site sets options of a transport, for a person: ``EMAIL_HOST_USER``, or
    its OPTIONS.
    """
    spec = specs().get(alias, {})
    options, is_smtp = spec.get("OPTIONS", {}), spec.get("BACKEND", DJANGO_SMTP) == DJANGO_SMTP
    reads_settings = is_smtp and not uses_mailers()
    if reads_settings and not options.keys() & set(names):
        return " and ".join(_SETTING_OF_OPTION[name] for name in names)
    setting = "MAILERS" if uses_mailers() else "EPICA_MAIL['TRANSPORTS']"
    return f"{' and '.join(names)} in {setting}[{alias!r}]['OPTIONS']"


def wrong_timeout(alias: str) -> str:
    """Return what is wrong with a transport's time-out, for a person, or ``""``.

    A text from the environment, such as ``"10"``, fails only when a socket is opened.
    """
    backend = _backend(alias)
    if backend is None or not issubclass(backend, import_string(DJANGO_SMTP)):
        return ""
    value = _smtp_option(specs()[alias].get("OPTIONS", {}), "timeout")
    if value is None or isinstance(value, (int, float)):
        return ""
    return f"{places(alias, 'timeout')} is {value!r}, not a number of seconds."


def unknown_options(alias: str) -> list[str]:
    """Return the OPTIONS of a transport of Django's own backends that the backend does not know.

    Before Django 6.1, and outside ``MAILERS``, Django ignores them without a word.
    """
    backend = _backend(alias)
    if backend is None or not backend.__module__.startswith("django.core.mail.backends."):
        return []
    known = {name for it in backend.__mro__[:-1] for name in inspect.signature(it).parameters}
    return [it for it in specs()[alias].get("OPTIONS", {}) if it not in {*known, *OUR_OPTIONS}]


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def default_alias() -> str:
    """Return the transport of a mail that names none.

    Raises ``ImproperlyConfigured`` if the site's settings do not name one either.
    """
    named = conf.get().default_transport
    if named is not None:
        return named
    if uses_mailers():
        default: Mapping[str, Any] = settings.MAILERS.get("default", {})
        named = default.get("OPTIONS", {}).get("transport")
        if named is not None:
            return str(named)
        if under_test():
            return "default"
    elif not conf.get().transports:
        return SITE_SMTP
    elif len(conf.get().transports) == 1:
        return next(iter(conf.get().transports))
    raise ImproperlyConfigured(
        "This mail names no transport. Name one in the call, in the backend's OPTIONS, or in "
        "EPICA_MAIL['DEFAULT_TRANSPORT']."
    )


def queueing() -> dict[str, Mapping[str, Any]]:
    """Return the OPTIONS of every alias in ``MAILERS`` that queues mail; empty without it."""
    if not uses_mailers():
        return {}
    mailers: Mapping[str, Mapping[str, Any]] = settings.MAILERS
    found = {alias: spec for alias, spec in mailers.items() if is_queue(spec)}
    return {alias: spec.get("OPTIONS", {}) for alias, spec in found.items()}


def is_send_mail_queued() -> bool:
    """Return whether ``send_mail()`` without a named backend goes through the queue."""
    if under_test():
        return True
    if uses_mailers():
        return "default" in queueing()
    with warnings.catch_warnings():  # Django 6.1 deprecates the setting
        warnings.simplefilter("ignore")
        return is_queue({"BACKEND": settings.EMAIL_BACKEND})
