"""The transports a site configures, with ``MAILERS`` and with ``EMAIL_BACKEND``."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.test.utils import _TestState

from django_epica_mail.backends import EmailBackend
from django_epica_mail.transports import config

SMTP = {"BACKEND": config.DJANGO_SMTP, "OPTIONS": {"host": "mail.example.com"}}
QUEUE = {"BACKEND": config.QUEUE_BACKEND}
MISSING = {"BACKEND": "gone.module.EmailBackend"}
MAILGUN = {"BACKEND": "anymail.backends.mailgun.EmailBackend"}
AMAZON = {"BACKEND": "anymail.backends.amazon_ses.EmailBackend"}

needs_mailers = pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")


class OwnQueueBackend(EmailBackend):
    """A site's own subclass of the queue's backend."""


OWN_QUEUE = {"BACKEND": f"{__name__}.OwnQueueBackend"}


@pytest.fixture(autouse=True)
def epica_mail(settings: Any) -> Callable[..., None]:
    """Set ``EPICA_MAIL``; without keys it holds only what keeps locmem out of these tests."""

    def set_keys(**keys: Any) -> None:
        settings.EPICA_MAIL = {"REAL_TRANSPORTS_IN_TESTS": True, **keys}

    set_keys()
    return set_keys


@pytest.fixture
def without_mailers(settings: Any) -> None:
    """Remove ``MAILERS``, which a site on Django 6.1 may still do without."""
    if hasattr(settings, "MAILERS"):
        del settings.MAILERS


@contextlib.contextmanager
def email_backend(path: str) -> Iterator[None]:
    """Set ``EMAIL_BACKEND``, ignoring only the warnings about setting it."""
    override = override_settings(EMAIL_BACKEND=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        override.enable()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            override.disable()


@pytest.fixture
def configure(settings: Any, epica_mail: Callable[..., None]) -> Callable[..., None]:
    """Configure transports as this version of Django does: ``configure(smtp=SMTP)``."""

    def set_transports(**specs: Any) -> None:
        if django.VERSION >= (6, 1):
            settings.MAILERS = specs
        else:
            epica_mail(TRANSPORTS=specs)

    return set_transports


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (QUEUE, True),
        (OWN_QUEUE, True),
        (SMTP, False),
        ({"BACKEND": config.LOCMEM}, False),
        ({}, False),
        (MISSING, False),
        ({"BACKEND": "django_epica_mail.backends.Missing"}, False),
    ],
    ids=str,
)
def test_only_the_queues_backend_and_its_subclasses_queue(spec: Any, expected: bool) -> None:
    assert config.is_queue(spec) is expected


def test_every_transport_except_the_queue_is_listed(configure) -> None:
    configure(first=SMTP, queued=QUEUE, own=OWN_QUEUE, gone=MISSING, last={})
    assert config.specs() == {"first": SMTP, "gone": MISSING, "last": {}}
    assert config.aliases() == ("first", "gone", "last")


def test_under_test_unless_real_transports_are_allowed(epica_mail) -> None:
    assert not config.under_test()
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    assert config.under_test()


def test_not_under_test_without_the_runners_outbox(epica_mail, monkeypatch) -> None:
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    monkeypatch.delattr(mail, "outbox")
    assert not config.under_test()


def test_an_outbox_that_no_runner_made_is_no_test(epica_mail, monkeypatch) -> None:
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    monkeypatch.delattr(_TestState, "saved_data")
    assert hasattr(mail, "outbox"), "as after opening the locmem backend in production"
    assert not config.under_test()
    monkeypatch.delitem(sys.modules, "django.test.utils")
    assert not config.under_test()


@pytest.mark.parametrize(
    ("alias", "expected"),
    [("mailgun", True), ("amazon", False), ("smtp", False), ("gone", False), ("unknown", False)],
)
def test_only_a_tracking_provider_tracks(configure, alias: str, expected: bool) -> None:
    configure(mailgun=MAILGUN, amazon=AMAZON, smtp=SMTP, gone=MISSING)
    assert config.tracks(alias) is expected


def test_nothing_tracks_under_test(settings, configure) -> None:
    configure(mailgun=MAILGUN)
    settings.EPICA_MAIL = {**settings.EPICA_MAIL, "REAL_TRANSPORTS_IN_TESTS": False}
    assert not config.tracks("mailgun")


def test_the_setting_default_transport_names_the_default(settings, configure) -> None:
    configure(a=SMTP, b=SMTP)
    settings.EPICA_MAIL = {**settings.EPICA_MAIL, "DEFAULT_TRANSPORT": "b"}
    assert config.default_alias() == "b"


def test_without_a_default_transport_the_error_names_the_setting(configure) -> None:
    configure(a=SMTP, b=SMTP)
    with pytest.raises(ImproperlyConfigured, match="DEFAULT_TRANSPORT"):
        config.default_alias()


def test_send_mail_counts_as_queued_under_test(epica_mail, configure) -> None:
    configure(default=SMTP)
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    assert config.is_send_mail_queued()


@needs_mailers
def test_mailers_are_used_if_configured(configure) -> None:
    configure(default=SMTP)
    assert config.uses_mailers()


@needs_mailers
def test_mailers_take_precedence_over_transports(epica_mail, configure) -> None:
    epica_mail(TRANSPORTS={"old": SMTP})
    configure(new=SMTP)
    assert config.aliases() == ("new",)


@needs_mailers
def test_the_default_mailers_options_name_the_transport(configure, epica_mail) -> None:
    configure(default={**QUEUE, "OPTIONS": {"transport": "b"}}, a=SMTP, b=SMTP)
    assert config.default_alias() == "b"
    epica_mail(DEFAULT_TRANSPORT="a")
    assert config.default_alias() == "a"


@needs_mailers
@pytest.mark.parametrize("mailers", [{}, {"default": QUEUE, "smtp": SMTP}], ids=str)
def test_a_queue_without_a_transport_has_no_default(configure, mailers: Any) -> None:
    configure(**mailers)
    with pytest.raises(ImproperlyConfigured, match="OPTIONS"):
        config.default_alias()


@needs_mailers
def test_under_test_the_default_mailer_is_the_default(epica_mail, configure) -> None:
    configure(default={"BACKEND": config.LOCMEM}, other={"BACKEND": config.LOCMEM})
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    assert config.default_alias() == "default"


@needs_mailers
def test_the_options_of_every_queueing_mailer_are_returned(configure) -> None:
    bulk = {"transport": "smtp", "queue": "bulk"}
    configure(default=QUEUE, bulk={**OWN_QUEUE, "OPTIONS": bulk}, smtp=SMTP)
    assert config.queueing() == {"default": {}, "bulk": bulk}


@needs_mailers
@pytest.mark.parametrize(("default", "expected"), [(QUEUE, True), (SMTP, False)], ids=str)
def test_send_mail_is_queued_if_the_default_mailer_queues(
    configure, default: Any, expected: bool
) -> None:
    configure(default=default, other=QUEUE, smtp=SMTP)
    assert config.is_send_mail_queued() is expected


@pytest.mark.usefixtures("without_mailers")
def test_without_mailers_the_sites_smtp_server_is_the_default(epica_mail) -> None:
    assert not config.uses_mailers()
    assert config.specs() == {"smtp": {"BACKEND": config.DJANGO_SMTP}}
    assert config.default_alias() == "smtp"
    assert config.queueing() == {}
    epica_mail(DEFAULT_TRANSPORT="other")
    assert config.default_alias() == "other"


@pytest.mark.usefixtures("without_mailers")
def test_without_mailers_transports_replace_the_smtp_server(epica_mail) -> None:
    epica_mail(TRANSPORTS={"mailgun": MAILGUN})
    assert config.aliases() == ("mailgun",)


@pytest.mark.usefixtures("without_mailers")
def test_without_mailers_a_single_transport_is_the_default(epica_mail) -> None:
    epica_mail(TRANSPORTS={"mailgun": MAILGUN})
    assert config.default_alias() == "mailgun"
    epica_mail(TRANSPORTS={"mailgun": MAILGUN, "smtp": SMTP})
    with pytest.raises(ImproperlyConfigured, match="DEFAULT_TRANSPORT"):
        config.default_alias()


@pytest.mark.usefixtures("without_mailers")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (config.QUEUE_BACKEND, True),
        (OWN_QUEUE["BACKEND"], True),
        (config.DJANGO_SMTP, False),
        (MISSING["BACKEND"], False),
    ],
)
def test_without_mailers_email_backend_decides_about_send_mail(path: str, expected: bool) -> None:
    with email_backend(path):
        assert config.is_send_mail_queued() is expected
