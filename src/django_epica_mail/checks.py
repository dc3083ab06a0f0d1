"""System checks: what can be known at start-up to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_epica_mail import conf, rates, transport


@checks.register("mail")
def check_configuration(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[CheckMessage]:
    """Check ``EPICA_MAIL`` and the transports it names."""
    try:
        conf.get()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="See the settings reference.", id="epica_mail.E001")]
    if transport.under_test():
        return []
    return [*_check_backends(), *_check_default(), *_check_routes(), *_check_rates()]


def _check_backends() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias, spec in transport.specs().items():
        path = spec.get("BACKEND")
        if path is not None:
            try:
                import_string(path)
            except ImportError as error:
                found.append(
                    Error(
                        f"The transport {alias!r} cannot be loaded: {error}",
                        hint="Install the package its BACKEND names, or correct the path.",
                        id="epica_mail.E002",
                    )
                )
    return found


def _check_default() -> list[CheckMessage]:
    try:
        alias = transport.default_alias()
    except ImproperlyConfigured as error:
        return [checks.Warning(str(error), id="epica_mail.W001")]
    if alias in transport.specs():
        return []
    return [
        Error(
            f"Mail goes to the transport {alias!r} by default, which is no real transport.",
            hint="Name an alias whose BACKEND sends mail, and does not lead back to the queue. "
            f"There are: {', '.join(transport.aliases()) or 'none'}.",
            id="epica_mail.E003",
        )
    ]


def _check_routes() -> list[CheckMessage]:
    known = transport.specs()
    return [
        Error(
            f"Rule {number} of EPICA_MAIL['ROUTES'] names the transport {alias!r}, which there is "
            "not.",
            hint=f"There are: {', '.join(known) or 'none'}.",
            id="epica_mail.E004",
        )
        for number, rule in enumerate(conf.get().routes)
        for alias in rule.transports
        if alias not in known
    ]


def _check_rates() -> list[CheckMessage]:
    problem = rates.problem()
    if problem is None:
        return []
    return [
        Error(
            f"The rates of EPICA_MAIL['RATES'] cannot be counted: {problem}",
            hint="Install django-epica-mail[rates], and set EPICA_MAIL['RATES_STORAGE'] to a store "
            "of the library limits, redis://... for instance, where the broker is no Redis.",
            id="epica_mail.E005",
        )
    ]
