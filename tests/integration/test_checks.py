"""The system checks, each by what makes it speak."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.core.checks import ERROR, WARNING, CheckMessage, run_checks

from django_epica_mail import rates

SMTP = {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": {"host": "127.0.0.1"}}


def found() -> list[CheckMessage]:
    """Run the checks of mail as ``manage.py check`` does, and return ours."""
    return [
        message
        for message in run_checks(tags=["mail"])
        if str(message.id).startswith("epica_mail.")
    ]


def only() -> CheckMessage:
    (message,) = found()
    return message


@pytest.fixture
def transports(smtp: object, settings: Any, epica_mail: Any) -> Callable[..., None]:
    """Set the transports of the site by alias, in the style of the running Django."""

    def use(**specs: dict[str, Any]) -> None:
        if django.VERSION >= (6, 1):
            settings.MAILERS = {"default": settings.MAILERS["default"], **specs}
        else:
            epica_mail(TRANSPORTS=specs, DEFAULT_TRANSPORT="smtp")

    return use


def test_a_sound_site_hears_nothing(smtp) -> None:
    assert found() == []


def test_sound_transports_are_not_spoken_of(transports) -> None:
    transports(smtp=SMTP)
    assert found() == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"BATCH_SZE": 5}, "Did you mean 'BATCH_SIZE'"),
        ({"BATCH_SIZE": 0}, "BATCH_SIZE.*above 0; it is 0"),
        ([], "must be a dict"),
    ],
)
def test_e001_a_setting_that_cannot_be_meant(settings, value, words) -> None:
    settings.EPICA_MAIL = value
    message = only()
    assert (message.id, message.level) == ("epica_mail.E001", ERROR)
    assert re.search(words, message.msg)


def test_e002_a_backend_that_cannot_be_imported(transports) -> None:
    transports(smtp=SMTP, ses={"BACKEND": "no_such_package.EmailBackend"})
    message = only()
    assert (message.id, message.level) == ("epica_mail.E002", ERROR)
    assert "'ses'" in message.msg
    assert "no_such_package" in message.msg
    assert message.hint


def test_e003_a_default_transport_that_does_not_exist(smtp, epica_mail) -> None:
    epica_mail(DEFAULT_TRANSPORT="sntp")
    message = only()
    assert (message.id, message.level) == ("epica_mail.E003", ERROR)
    assert "'sntp'" in message.msg
    assert "There are: smtp." in str(message.hint)


def test_e003_a_default_transport_that_leads_back_to_the_queue(transports, epica_mail) -> None:
    transports(smtp=SMTP, again={"BACKEND": "django_epica_mail.backends.EmailBackend"})
    epica_mail(DEFAULT_TRANSPORT="again")
    message = only()
    assert message.id == "epica_mail.E003"
    assert "does not lead back to the queue" in str(message.hint)


def test_w001_a_site_without_a_default_transport(smtp, settings, epica_mail) -> None:
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": SMTP, "other": SMTP}
    else:
        epica_mail(TRANSPORTS={"one": SMTP, "other": SMTP})
    message = only()
    assert (message.id, message.level) == ("epica_mail.W001", WARNING)
    assert "DEFAULT_TRANSPORT" in message.msg


def test_a_test_run_is_not_asked_for_its_transports(settings) -> None:
    settings.EPICA_MAIL = {"DEFAULT_TRANSPORT": "missing"}
    assert found() == []


@pytest.mark.parametrize(
    ("aliases", "spoken"), [(["gone"], True), (["smtp", "gone"], True), (["smtp"], False)]
)
def test_a_rule_that_names_no_transport_is_an_error(
    smtp: object, epica_mail: Any, aliases: list[str], spoken: bool
) -> None:
    epica_mail(ROUTES=[{"transport": aliases}])
    assert [message.id for message in found()] == ["epica_mail.E004"] * spoken


def test_rates_that_cannot_be_counted_are_an_error(
    smtp: object, epica_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates._budgets.clear()
    epica_mail(RATES={"smtp": "5/s"}, RATES_STORAGE="nowhere://")
    assert only().id == "epica_mail.E005"
    epica_mail(RATES_STORAGE="memory://")
    assert found() == []
    rates._budgets.clear()
    monkeypatch.setitem(sys.modules, "limits", None)
    assert 'pip install "django-epica-mail[rates]"' in only().msg
