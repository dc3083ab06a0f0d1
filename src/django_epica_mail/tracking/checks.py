"""System checks of what comes back: bounces, and evidence of unknown outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.tracking.bounces import mailbox
from django_epica_mail.transports import config as transports


def check_bounces() -> Iterator[CheckMessage]:
    """Report a mailbox of bounces that cannot be read, or whose bounces suppress nobody."""
    if conf.get().bounce_mailbox is None:
        return
    try:
        mailbox.parse(conf.get().bounce_mailbox)
    except (ImproperlyConfigured, MissingExtra) as error:
        yield Error(str(error), hint="Until then, no bounce is read.", id="epica_mail.E050")
    signs = any("envelope_from" in transports.our_options(it) for it in transports.aliases())
    if not signs and not conf.get().trust_unsigned_bounces:
        yield checks.Warning(
            "EPICA_MAIL['BOUNCE_MAILBOX'] is set, but no transport signs the return addresses of "
            "its mail: bounces are recorded, and suppress nobody.",
            hint="Give a transport the option 'envelope_from': 'bounces+{id}@example.com'.",
            id="epica_mail.W050",
        )


def check_evidence() -> Iterator[CheckMessage]:
    """Report a function for evidence that does not exist."""
    path = conf.get().evidence
    if path is None:
        return
    try:
        if callable(import_string(path)):
            return
        found = "it is not a function"
    except ImportError as error:
        found = str(error)
    yield Error(
        f"EPICA_MAIL['EVIDENCE'] is {path!r}: {found}.",
        hint="Name a function by its dotted path, such as 'shop.evidence.ask'; until then, no mail "
        "of unknown outcome is resolved by it.",
        id="epica_mail.E061",
    )
