"""System checks of bounces and evidence."""

from __future__ import annotations

from typing import Any

import django
import pytest
from django.urls import include, path

from django_epica_mail import checks
from django_epica_mail.tracking.checks import check_bounces, check_evidence, check_reputation


@pytest.mark.parametrize("path", ["shop.nowhere.ask", "django.VERSION", "nodots"])
def test_e061_evidence_that_names_no_function(epica_mail, path: str) -> None:
    epica_mail(EVIDENCE=path)
    (message,) = check_evidence()
    assert message.id == "epica_mail.E061"
    assert path in message.msg


def test_evidence_that_names_a_function_is_not_reported(epica_mail) -> None:
    epica_mail(EVIDENCE="tests.integration.tracking.test_evidence.answer")
    assert list(check_evidence()) == []


def test_without_a_mailbox_no_bounce_is_expected() -> None:
    assert list(check_bounces()) == []


# -- a pause by reputation that nothing can cause


@pytest.fixture
def guarded(smtp: Any, settings: Any, epica_mail: Any) -> None:
    """Pause by reputation, on a site with no way for a report to come back."""
    settings.ROOT_URLCONF = ()
    epica_mail(PAUSE_ON_REPUTATION=True)


def ids() -> set[str]:
    return {str(it.id) for it in checks.check_configuration()}


def test_w062_a_pause_that_nothing_can_cause(guarded, epica_mail) -> None:
    (message,) = check_reputation()
    assert message.id == "epica_mail.W062"
    assert "no mail ever pauses" in message.msg
    assert "BOUNCE_MAILBOX" in str(message.hint)
    assert "epica_mail.W062" in ids()
    epica_mail(PAUSE_ON_REPUTATION=False)
    assert "epica_mail.W062" not in ids()


@pytest.mark.parametrize("key", ["SUPPRESS_REFUSED", "TRUST_UNSIGNED_BOUNCES"])
def test_bounces_that_are_believed_may_cause_the_pause(guarded, epica_mail, key) -> None:
    epica_mail(**{key: True})
    assert list(check_reputation()) == []


def test_signed_return_addresses_may_cause_the_pause(guarded, settings, epica_mail) -> None:
    options = {"envelope_from": "bounces+{id}@example.com"}
    if django.VERSION >= (6, 1):
        spec = settings.MAILERS["smtp"]
        spec = {**spec, "OPTIONS": {**spec["OPTIONS"], **options}}
        settings.MAILERS = {**settings.MAILERS, "smtp": spec}
    else:
        backend = "django.core.mail.backends.smtp.EmailBackend"
        epica_mail(TRANSPORTS={"smtp": {"BACKEND": backend, "OPTIONS": options}})
    assert list(check_reputation()) == []


def test_a_mailbox_whose_bounces_are_not_believed_does_not(guarded, epica_mail) -> None:
    epica_mail(BOUNCE_MAILBOX="maildir:/tmp/nowhere")
    assert ids() >= {"epica_mail.W050", "epica_mail.W062"}


@pytest.mark.filterwarnings("ignore:Your Anymail webhooks are insecure")
@pytest.mark.parametrize(
    ("anymail", "keys", "is_found"),
    [
        ({"WEBHOOK_SECRET": "user:secret"}, {}, False),
        ({"MAILGUN_WEBHOOK_SIGNING_KEY": "key"}, {}, False),
        ({}, {}, True),
        ({}, {"TRUST_UNAUTHENTICATED_WEBHOOKS": True}, False),
    ],
)
def test_webhooks_that_are_believed_may_cause_the_pause(
    guarded, settings, epica_mail, anymail, keys, is_found
) -> None:
    settings.ROOT_URLCONF = (path("anymail/", include("anymail.urls")),)
    settings.ANYMAIL = anymail
    epica_mail(**keys)
    assert any(check_reputation()) is is_found
