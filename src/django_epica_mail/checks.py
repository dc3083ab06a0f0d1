"""System checks: report at start-up what is wrong with the configuration."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import ENVIRONMENT_VARIABLE, global_settings, settings
from django.core import checks, mail
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_epica_mail import conf, routing
from django_epica_mail.broker import checks as celery_checks
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.messages import encryption
from django_epica_mail.models import checks as database_checks
from django_epica_mail.queueing import names
from django_epica_mail.tracking import checks as feedback_checks
from django_epica_mail.tracking import links, webhooks
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection, dkim
from django_epica_mail.transports.config import queueing
from django_epica_mail.transports.smtp import opens_itself

_DEVELOPMENT = frozenset(
    f"django.core.mail.backends.{name}.EmailBackend"
    for name in ("console", "dummy", "filebased", "locmem")
)
_REPLACED_BY_MAILERS = frozenset(
    f"EMAIL_{name}"
    for name in (
        *("BACKEND", "FILE_PATH", "HOST", "HOST_PASSWORD", "HOST_USER", "PORT"),
        *("SSL_CERTFILE", "SSL_KEYFILE", "TIMEOUT", "USE_SSL", "USE_TLS"),
    )
)


@checks.register("mail")
def check_configuration(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[CheckMessage]:
    """Check ``EPICA_MAIL``, the transports it names, and how Celery routes our tasks."""
    try:
        conf.get()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See the settings reference.", id="epica_mail.E001")]
    found = [*celery_checks.check_app(), *celery_checks.check_task_routes()]
    found += [*celery_checks.check_single_app(), *celery_checks.check_queues(names.named_queues())]
    found += [*celery_checks.check_beat(), *_check_encryption(), *database_checks.check_database()]
    if not transports.under_test():
        found += [*_check_backends(), *_check_default(), *_check_named(), *_check_loops()]
        found += [*_check_options(), *_check_rates(), *_check_ignored()]
        found += [*_check_encrypted_logins(), *_check_in_process()]
    return [
        *found,
        *_check_links(),
        *feedback_checks.check_bounces(),
        *feedback_checks.check_evidence(),
        *feedback_checks.check_reputation(),
        *_check_webhooks(partial(checks.Warning, id="epica_mail.W031")),
    ]


@checks.register("mail", deploy=True)
def check_deployment(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[CheckMessage]:
    """Check what is fine on a developer's machine but wrong in production."""
    try:
        conf.get()
    except ImproperlyConfigured:
        return []  # reported by check_configuration
    found = (_check_development, _check_sender, _check_staging, _check_scheme, _check_storage)
    messages = [message for check in found for message in check()]
    messages += database_checks.check_locking()
    return [*messages, *_check_webhooks(partial(Error, id="epica_mail.E031"))]


def _check_backends() -> Iterator[CheckMessage]:
    for alias, spec in transports.specs().items():
        path = spec.get("BACKEND")
        if path is not None:
            try:
                backend = import_string(path)
            except ImportError as error:
                yield Error(
                    f"The transport {alias!r} cannot be loaded: {error}",
                    hint="Install the package that its BACKEND names, or correct the path.",
                    id="epica_mail.E002",
                )
                continue
            if isinstance(backend, type) and opens_itself(backend):
                yield checks.Warning(
                    f"The transport {alias!r} makes its own connection in open(): the dialogue is "
                    "not recorded. SEND_TIMEOUT does not limit it, a recipient refused beside "
                    "others goes unnoticed, and a lost connection leaves a mail 'unknown'.",
                    hint="Let open() call super().open(), or build the client with "
                    "self.connection_class(...).",
                    id="epica_mail.W041",
                )


def _check_options() -> Iterator[CheckMessage]:
    """Check the OPTIONS of each transport by building it, and those of the queue's aliases."""
    for alias, spec in transports.specs().items():
        ours, unknown = transports.our_options(alias), transports.unknown_options(alias)
        if unknown:
            yield _without_mail(alias, f"its backend has no option {', '.join(unknown)}.")
            continue
        if wrong := transports.wrong_timeout(alias):
            yield _without_mail(alias, wrong)
            continue
        if not spec.get("OPTIONS") or str(spec.get("BACKEND")) in _DEVELOPMENT:
            continue  # some of these make folders
        try:
            connection.build(alias)
        except dkim.UnreadableKey as error:
            yield checks.Warning(
                f"The transport {alias!r}: {error}",
                hint="Workers need the key. Where no worker runs, silence this warning.",
                id="epica_mail.W040",
            )
        except (ImproperlyConfigured, MissingExtra, TypeError, ValueError) as error:
            yield _without_mail(alias, str(error), has_ours=bool(ours))
        except ImportError:
            continue  # its BACKEND is missing: E002
    for alias in transports.queueing():
        try:
            mail.mailers[alias]
        except (ImproperlyConfigured, TypeError, ValueError) as error:
            yield _without_mail(alias, str(error))


def _without_mail(alias: str, reason: str, *, has_ours: bool = False) -> CheckMessage:
    """Return an error for OPTIONS of which ``has_ours`` says whether some are for this package."""
    text = f"The transport {alias!r}: {reason}"
    hint = "Correct it. Until then, none of its mail is sent."
    if has_ours:
        return Error(text, hint=hint, id="epica_mail.E040")
    return Error(text, hint=hint, id="epica_mail.E070")


def _check_default() -> Iterator[CheckMessage]:
    try:
        alias = transports.default_alias()
    except ImproperlyConfigured as error:
        yield checks.Warning(str(error), id="epica_mail.W001")
        return
    if alias not in transports.specs():
        yield Error(
            f"The default transport {alias!r} is not a real transport.",
            hint="Name an alias whose BACKEND sends mail and does not lead back to the queue. "
            f"There are: {', '.join(transports.aliases()) or 'none'}.",
            id="epica_mail.E003",
        )


def _check_named() -> Iterator[CheckMessage]:
    known, queues = transports.aliases(), queueing()
    for place, alias in _named():
        if alias not in known:
            wrong = "leads back to the queue" if alias in queues else "is not configured"
            yield Error(
                f"{place} names the transport {alias!r}, which {wrong}.",
                hint=f"Name a real transport. There are: {', '.join(known) or 'none'}.",
                id="epica_mail.E004",
            )


def _named() -> Iterator[tuple[str, str]]:
    """Yield each place that names a transport, except as the default, with the transport."""
    for number, rule in enumerate(conf.get().routes):
        for alias in rule.transports:
            yield f"Rule {number} of EPICA_MAIL['ROUTES']", alias
    for key in conf.get().rates:
        if key != "*" and not key.startswith("@"):
            yield "EPICA_MAIL['RATES']", key
    default = _default_alias()
    for alias, options in queueing().items():
        named = options.get("transport")
        if named is not None and named != default:
            yield f"MAILERS[{alias!r}]['OPTIONS']", named


def _default_alias() -> str | None:
    try:
        return transports.default_alias()
    except ImproperlyConfigured:
        return None


def _check_rates() -> Iterator[CheckMessage]:
    problem = rate_limits.problem()
    if problem is not None:
        yield Error(
            f"The rates of EPICA_MAIL['RATES'] cannot be counted: {problem}",
            hint="Install django-epica-mail[rates], and set EPICA_MAIL['RATES_STORAGE'] to a store "
            "of the limits library, such as redis://..., if the broker is not Redis.",
            id="epica_mail.E005",
        )


def _check_links() -> Iterator[CheckMessage]:
    """Find rules that need links to the site, if none can be made."""
    wanted = [
        f"Rule {number} of EPICA_MAIL['ROUTES'] has {name}"
        for number, rule in enumerate(conf.get().routes)
        for name in routing.ADDITIONS.values()
        if getattr(rule, name)
    ]
    if not wanted:
        return
    try:
        links.check()
    except ImproperlyConfigured as error:
        yield Error(f"{wanted[0]}. {error}", id="epica_mail.E030")


def _check_webhooks(message: Callable[..., CheckMessage]) -> Iterator[CheckMessage]:
    """Find webhooks to which anybody can post events; ``message`` makes the finding."""
    has_urls = getattr(settings, "ROOT_URLCONF", None)
    for provider in webhooks.routed_without_secret() if has_urls else ():
        effect = (
            "anybody can put any address on the suppression list"
            if conf.get().trust_unauthenticated_webhooks
            else "anybody can post events, so they suppress nobody"
        )
        yield message(
            f"The webhooks of {provider} are routed without a secret or a signature: {effect}.",
            hint="Set ANYMAIL['WEBHOOK_SECRET'], and put it into the URL that the provider calls, "
            "or the provider's signing key; see 'Securing webhooks' in anymail's documentation.",
        )


def _check_encrypted_logins() -> Iterator[CheckMessage]:
    for alias, host in transports.unencrypted_logins():
        yield checks.Warning(
            f"The transport {alias!r} sends its user name and password to {host} without TLS: "
            "whoever sees the connection can read them, and all mail.",
            hint=f"Set {transports.places(alias, 'use_tls')} (usually port 587), or "
            f"{transports.places(alias, 'use_ssl')} (port 465).",
            id="epica_mail.W008",
        )


def _check_encryption() -> Iterator[CheckMessage]:
    if encryption.is_on():
        if find_spec("cryptography") is None:
            yield Error(
                "EPICA_MAIL['ENCRYPTION_KEYS'] is set, but cryptography is not installed.",
                hint='pip install "django-epica-mail[encryption]".',
                id="epica_mail.E020",
            )
        return
    never = [
        f"Rule {n} of EPICA_MAIL['ROUTES']"
        for n, it in enumerate(conf.get().routes)
        if it.keep_content == "never"
    ]
    if conf.get().keep_content == "never":
        never.append("EPICA_MAIL['KEEP_CONTENT']")
    for place in never:
        yield Error(
            f"{place} is 'never', which encrypts mail while it waits, but there is no key.",
            hint="Set EPICA_MAIL['ENCRYPTION_KEYS'], or choose 'until_sent'.",
            id="epica_mail.E021",
        )


def _check_loops() -> Iterator[CheckMessage]:
    if transports.uses_mailers():
        return  # in MAILERS, such an alias is how mail gets queued
    for alias, spec in conf.get().transports.items():
        if transports.is_queue(spec) and alias != _default_alias():  # E003 reports that
            yield Error(
                f"EPICA_MAIL['TRANSPORTS'][{alias!r}] leads back to the queue: its BACKEND queues "
                "mail.",
                hint="Name a backend that sends mail.",
                id="epica_mail.E006",
            )


def _check_ignored() -> Iterator[CheckMessage]:
    """Find settings without effect: removed, or of the configuration style not in use."""
    given = getattr(settings, "EPICA_MAIL", {})
    for name in sorted(conf.REMOVED.keys() & given):
        yield checks.Warning(
            f"EPICA_MAIL[{name!r}] has no effect any more: {conf.REMOVED[name]}.",
            hint="Delete it.",
            id="epica_mail.W005",
        )
    ignored = {}
    if transports.uses_mailers():
        if conf.get().transports:
            ignored["EPICA_MAIL['TRANSPORTS']"] = "Move its transports to MAILERS."
        # django.conf.settings raises if one of these is read, so look into the settings module.
        module = sys.modules.get(os.environ.get(ENVIRONMENT_VARIABLE, ""))
        for name in sorted(_REPLACED_BY_MAILERS.intersection(vars(module) if module else ())):
            ignored[name] = "Move it to the OPTIONS of a transport in MAILERS."
    elif hasattr(settings, "MAILERS"):
        ignored["MAILERS"] = "It is new in Django 6.1: use EPICA_MAIL['TRANSPORTS']."
    style = "MAILERS" if transports.uses_mailers() else "EMAIL_BACKEND"
    for name, remedy in ignored.items():
        yield checks.Warning(
            f"{name} has no effect: mail is configured by {style} here.",
            hint=remedy,
            id="epica_mail.W005",
        )


def _check_development() -> Iterator[CheckMessage]:
    if settings.DEBUG or transports.under_test():
        return
    in_use = {_default_alias(), *(alias for _, alias in _named())}
    for alias, spec in transports.specs().items():
        if alias in in_use and spec.get("BACKEND") in _DEVELOPMENT:
            yield checks.Warning(
                f"The transport {alias!r} sends nothing: {spec['BACKEND']} is for development, but "
                "DEBUG is off. Its mail counts as sent.",
                hint="Name a backend that sends mail.",
                id="epica_mail.W002",
            )


def _check_sender() -> Iterator[CheckMessage]:
    if settings.DEFAULT_FROM_EMAIL == global_settings.DEFAULT_FROM_EMAIL:
        yield checks.Warning(
            f"DEFAULT_FROM_EMAIL is Django's default {settings.DEFAULT_FROM_EMAIL}, which servers "
            "refuse or treat as spam.",
            hint="Set it to an address in a domain that your server may send for.",
            id="epica_mail.W004",
        )


def _check_storage() -> Iterator[CheckMessage]:
    given = settings.EPICA_MAIL.get("RATES_STORAGE") if hasattr(settings, "EPICA_MAIL") else None
    if isinstance(given, str) and re.search(r"://[^/@]*:[^/@]+@", given):
        yield checks.Warning(
            "EPICA_MAIL['RATES_STORAGE'] has its password in the URI, where Django's error reports "
            "show it.",
            hint='Give {"URI": ..., "PASSWORD": ...}: reports hide the values of such keys.',
            id="epica_mail.W009",
        )


def _check_scheme() -> Iterator[CheckMessage]:
    url = conf.get().base_url
    if url is not None and not url.startswith("https://") and not settings.DEBUG:
        yield checks.Warning(
            f"EPICA_MAIL['BASE_URL'] is {url}: mail clients ignore an unsubscribe link "
            "that is not https (RFC 8058, section 3.1).",
            hint="Give the site's address with https.",
            id="epica_mail.W030",
        )


def _check_in_process() -> Iterator[CheckMessage]:
    if conf.get().deliver_in_process and not settings.DEBUG:
        yield Error(
            "EPICA_MAIL['DELIVER_IN_PROCESS'] is set, but DEBUG is off: it has no effect, and mail "
            "waits for a worker.",
            hint="Set it to DEBUG, and run a Celery worker on the real site.",
            id="epica_mail.E071",
        )


def _check_staging() -> Iterator[CheckMessage]:
    if settings.DEBUG:
        return
    effects = {
        "REDIRECT_ALL_TO": "all mail goes to its addresses",
        "ALLOWED_RECIPIENTS": "mail to anybody else is not sent",
    }
    for key, effect in effects.items():
        if getattr(conf.get(), key.lower()) is not None:
            yield checks.Warning(
                f"EPICA_MAIL[{key!r}] is set, but DEBUG is off: {effect}.",
                hint="Remove it on the real site; silence this warning on a staging site.",
                id="epica_mail.W020",
            )
