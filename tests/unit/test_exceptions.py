"""What callers can catch, and what survives on the way through Celery."""

from __future__ import annotations

import copy
import json

import pytest
from celery.backends.base import Backend
from django.core import mail
from django.core.mail import EmailMessage

from django_epica_mail import exceptions, messages
from django_epica_mail.exceptions import DeliveryFailed, EpicaMailError, Veto
from django_epica_mail.messages import encryption
from tests.conftest import app

BadHeaderError = getattr(mail.message, "BadHeaderError", ValueError)


@pytest.mark.parametrize("error", [EpicaMailError, exceptions.InvalidMessage, BadHeaderError])
def test_a_contact_form_can_catch_an_injected_header(error) -> None:
    typed = "visitor@example.com\nBcc: victim@example.com"
    with pytest.raises(error) as raised:
        messages.check(EmailMessage("Question", "Hello", typed, ["shop@example.com"]))
    assert isinstance(raised.value, exceptions.InvalidHeader)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (exceptions.InvalidMessage, ValueError),
        (exceptions.UnstorableMessage, ValueError),
        (exceptions.UnreadableEnvelope, ValueError),
        (exceptions.MissingExtra, ImportError),
    ],
)
def test_an_error_can_be_caught_as_pythons_own(error, builtin) -> None:
    with pytest.raises(builtin, match="why"):
        raise error("why")


def test_every_exception_of_the_package_can_be_caught_at_once() -> None:
    found = {it for it in vars(exceptions).values() if isinstance(it, type)}
    own = {it for it in found if it.__module__ == exceptions.__name__}
    assert len(own) >= 9
    assert all(issubclass(it, EpicaMailError) for it in own)


def test_a_missing_key_is_an_unreadable_envelope(settings) -> None:
    pytest.importorskip("cryptography")
    settings.EPICA_MAIL = {"ENCRYPTION_KEYS": ["A" * 43 + "="]}
    stored = messages.dump(EmailMessage("S", "B", None, ["a@example.com"]))
    sealed = encryption.seal(stored.envelope, "envelope/1")
    settings.EPICA_MAIL = {"ENCRYPTION_KEYS": ["B" * 42 + "A="]}
    with pytest.raises(exceptions.UnreadableEnvelope) as raised:
        messages.load(sealed, {})
    assert isinstance(raised.value, exceptions.MissingKey)


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (DeliveryFailed("permanent", 550, "5.1.1"), "permanent (550 5.1.1)"),
        (DeliveryFailed("permanent", 550), "permanent (550)"),
        (DeliveryFailed("expired"), "expired"),
    ],
)
def test_a_failed_delivery_is_the_same_after_a_result_backend(failure, shown) -> None:
    backend = Backend(app=app)
    stored = json.loads(json.dumps(backend.prepare_exception(failure, "json")))
    for found in (backend.exception_to_python(stored), copy.copy(failure)):
        assert isinstance(found, DeliveryFailed)
        assert vars(found) == vars(failure)
        assert str(found) == shown


def test_the_reason_of_a_veto_is_its_message() -> None:
    veto = copy.copy(Veto("over the month's budget"))  # by __reduce_ex__, as pickle does
    assert veto.reason == str(veto) == "over the month's budget"
