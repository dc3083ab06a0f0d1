"""System checks of what comes back: bounces, complaints, and evidence of unknown outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.tracking import webhooks
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
    if not _believes_bounces():
        yield checks.Warning(
            "EPICA_MAIL['BOUNCE_MAILBOX'] is set, but no transport signs the return addresses of "
            "its mail: bounces are recorded, and suppress nobody.",
            hint="Give a transport the option 'envelope_from': 'bounces+{id}@example.com'.",
            id="epica_mail.W050",
        )


def check_reputation() -> Iterator[CheckMessage]:
    """Report a pause by reputation that no report can cause.

    Bounces may come through a pipe, which no setting shows: signed return addresses show it.
    """
    if not conf.get().pause_on_reputation:
        return
    is_routed = getattr(settings, "ROOT_URLCONF", None) and webhooks.is_routed_and_believed()
    if not (is_routed or _believes_bounces() or conf.get().suppress_refused):
        yield checks.Warning(
            "EPICA_MAIL['PAUSE_ON_REPUTATION'] is set, but no bounce or complaint that counts can "
            "come back: no mail ever pauses.",
            hint="Route anymail's webhooks with ANYMAIL['WEBHOOK_SECRET'] or the provider's "
            "signing key, or give a transport the option 'envelope_from' and set "
            "EPICA_MAIL['BOUNCE_MAILBOX']. Silence this where another project receives them.",
            id="epica_mail.W062",
        )


def _believes_bounces() -> bool:
    """Return whether a bounce by mail may be believed: some mail has a signed return address."""
    return conf.get().trust_unsigned_bounces or any(
        "envelope_from" in transports.our_options(it) for it in transports.aliases()
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
