"""The system checks, and what triggers each."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.core.checks import ERROR, WARNING, CheckMessage, run_checks
from django.db import connections
from django.db.models import Model

import tests.settings
from django_epica_mail import checks
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.monitoring import doctor

SMTP = {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": {"host": "127.0.0.1"}}


def found() -> list[CheckMessage]:
    """Run the mail checks like ``manage.py check``, and return ours."""
    return [
        message
        for message in run_checks(tags=["mail"], databases=[])
        if str(message.id).startswith("epica_mail.")
    ]


@pytest.mark.parametrize("debug", [True, False])
def test_delivery_in_the_process_is_for_development(smtp, epica_mail, settings, debug) -> None:
    epica_mail(DELIVER_IN_PROCESS=True)
    settings.DEBUG = debug
    assert [it.id for it in found()] == ([] if debug else ["epica_mail.E071"])


def only() -> CheckMessage:
    (message,) = found()
    return message


@pytest.fixture
def transports(smtp: object, settings: Any, epica_mail: Any) -> Callable[..., None]:
    """Set the site's transports by alias, in the style of the installed Django."""

    def use(**specs: dict[str, Any]) -> None:
        if django.VERSION >= (6, 1):
            settings.MAILERS = {"default": settings.MAILERS["default"], **specs}
        else:
            epica_mail(TRANSPORTS=specs, DEFAULT_TRANSPORT="smtp")

    return use


def test_a_correct_site_gets_no_message(smtp) -> None:
    assert found() == []


def test_correct_transports_are_not_reported(transports) -> None:
    transports(smtp=SMTP)
    assert found() == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"BATCH_SZE": 5}, "Did you mean 'BATCH_SIZE'"),
        ({"BATCH_SIZE": 0}, "BATCH_SIZE.*above 0 .*; it is 0"),
        ([], "must be a dict"),
    ],
)
def test_e001_an_invalid_setting(settings, value, words) -> None:
    settings.EPICA_MAIL = value
    message = only()
    assert (message.id, message.level) == ("epica_mail.E001", ERROR)
    assert re.search(words, message.msg)


def test_w041_a_backend_that_makes_its_own_connection(transports) -> None:
    path = "tests.integration.transports.test_connection_backends.OwnConnection"
    transports(smtp={"BACKEND": path})
    message = only()
    assert (message.id, message.level) == ("epica_mail.W041", WARNING)
    assert "'smtp'" in message.msg


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


def test_transports_are_not_checked_in_a_test_run(settings) -> None:
    settings.EPICA_MAIL = {"DEFAULT_TRANSPORT": "missing"}
    assert found() == []


QUEUED = {"BACKEND": "django_epica_mail.backends.EmailBackend"}
CONSOLE = {"BACKEND": "django.core.mail.backends.console.EmailBackend"}


def deployment() -> list[CheckMessage]:
    """Run the mail checks like ``manage.py check --deploy``, and return ours."""
    return [
        message
        for message in run_checks(tags=["mail"], include_deployment_checks=True)
        if str(message.id).startswith("epica_mail.")
    ]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"ROUTES": [{}, {"transport": ["smtp", "gone"]}]}, "Rule 1 of EPICA_MAIL['ROUTES']"),
        ({"RATES": {"*": "1/s", "@example.com": "1/s", "gone": "1/s"}}, "EPICA_MAIL['RATES']"),
    ],
)
def test_e004_a_transport_that_does_not_exist(smtp, epica_mail, keys, place) -> None:
    epica_mail(**keys)
    message = only()
    assert (message.id, message.level) == ("epica_mail.E004", ERROR)
    assert message.msg == f"{place} names the transport 'gone', which is not configured."
    assert "There are: smtp." in str(message.hint)


@pytest.mark.skipif("django.VERSION < (6, 1)", reason="MAILERS came with Django 6.1")
def test_e004_an_alias_that_leads_to_itself(smtp, settings) -> None:
    loop = {**QUEUED, "OPTIONS": {"transport": "bulk"}}
    settings.MAILERS = {**settings.MAILERS, "bulk": loop}
    message = only()
    assert message.id == "epica_mail.E004"
    assert "MAILERS['bulk']['OPTIONS'] names the transport 'bulk'" in message.msg
    assert "leads back to the queue" in message.msg


@pytest.mark.skipif("django.VERSION >= (6, 1)", reason="Django 6.1 reads MAILERS instead")
def test_e006_a_transport_that_leads_back_to_the_queue(smtp, epica_mail) -> None:
    epica_mail(TRANSPORTS={"smtp": SMTP, "again": QUEUED}, DEFAULT_TRANSPORT="smtp")
    message = only()
    assert (message.id, message.level) == ("epica_mail.E006", ERROR)
    assert "['again']" in message.msg


def test_w002_a_development_backend_in_production(transports, settings) -> None:
    transports(smtp=CONSOLE, screen=CONSOLE)
    assert found() == []
    (message,) = deployment()
    assert (message.id, message.level) == ("epica_mail.W002", WARNING)
    assert "'smtp' sends nothing" in message.msg  # no setting names the other transport
    settings.DEBUG = True
    assert deployment() == []


def test_w004_a_site_without_a_sender(smtp, settings) -> None:
    settings.DEFAULT_FROM_EMAIL = "webmaster@localhost"
    assert found() == []
    (message,) = deployment()
    assert (message.id, message.level) == ("epica_mail.W004", WARNING)


def test_w005_a_key_that_was_removed(smtp, epica_mail) -> None:
    epica_mail(SETTLE_DELAY=0.05)
    (message,) = found()
    assert (message.id, message.level) == ("epica_mail.W005", WARNING)
    assert message.msg.startswith("EPICA_MAIL['SETTLE_DELAY'] has no effect any more")


@pytest.mark.skipif("django.VERSION < (6, 1)", reason="MAILERS came with Django 6.1")
def test_w005_settings_that_mailers_replaces(smtp, epica_mail, monkeypatch) -> None:
    epica_mail(TRANSPORTS={"smtp": SMTP})
    monkeypatch.setattr(tests.settings, "EMAIL_HOST", "smtp.example.com", raising=False)
    monkeypatch.setattr(tests.settings, "EMAIL_SUBJECT_PREFIX", "[shop]", raising=False)
    first, second = found()
    assert (first.id, first.level, second.id) == ("epica_mail.W005", WARNING, "epica_mail.W005")
    assert first.msg.startswith("EPICA_MAIL['TRANSPORTS'] has no effect")
    assert second.msg.startswith("EMAIL_HOST has no effect")


@pytest.mark.skipif("django.VERSION >= (6, 1)", reason="Django 6.1 reads MAILERS")
def test_w005_mailers_before_django_6_1(smtp, settings) -> None:
    settings.MAILERS = {"default": SMTP}
    message = only()
    assert (message.id, message.level) == ("epica_mail.W005", WARNING)
    assert message.msg.startswith("MAILERS has no effect")


class MailElsewhere:
    """A database router that stores mail in another database."""

    def db_for_write(self, model: type[Model], **_: object) -> str | None:
        return "mail" if model._meta.app_label == "epica_mail" else None


@pytest.mark.parametrize("none", [None, ""])
def test_a_site_whose_urls_are_named_as_none_is_checked_as_one_without(
    smtp, settings, epica_mail, none
) -> None:
    settings.ROOT_URLCONF = none
    epica_mail(PAUSE_ON_REPUTATION=True)
    assert [it.id for it in checks.check_configuration()] == ["epica_mail.W062"]
    assert "public-page" not in {it.id for it in doctor.examine()}


def test_w006_mail_outside_the_sites_transactions(smtp, settings, monkeypatch) -> None:
    monkeypatch.setitem(connections.settings, "mail", connections.settings["default"])
    settings.DATABASE_ROUTERS = [MailElsewhere()]
    message = only()
    assert (message.id, message.level) == ("epica_mail.W006", WARNING)
    assert "'mail'" in message.msg


def test_e007_a_site_without_time_zones(smtp, settings) -> None:
    settings.USE_TZ = False
    message = only()
    assert (message.id, message.level) == ("epica_mail.E007", ERROR)
    assert "USE_TZ = True" in str(message.hint)


def test_e005_rates_that_cannot_be_counted(
    smtp: object, epica_mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_limits._budgets.clear()
    epica_mail(RATES={"smtp": "5/s"}, RATES_STORAGE="nowhere://")
    assert only().id == "epica_mail.E005"
    epica_mail(RATES_STORAGE="memory://")
    assert found() == []
    rate_limits._budgets.clear()
    monkeypatch.setitem(sys.modules, "limits", None)
    assert 'pip install "django-epica-mail[rates]"' in only().msg


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"oauth": {"provider": "yahoo"}}, "'provider'] must be one of"),
        ({"oauth": {"token": "os.getcwd"}}, "'username'"),
        ({"dkim": {"selector": "s"}}, "either key_file, a path, or key_env"),
        ({"dkim": {"selector": "s", "key_env": "PATH"}}, "no usable private key"),
    ],
)
def test_e040_an_option_of_a_transport_that_is_wrong(transports, options, told) -> None:
    transports(smtp={"OPTIONS": {"host": "127.0.0.1", **options}})
    assert only().id == "epica_mail.E040"
    assert only().level == ERROR
    assert told in only().msg


def test_e040_names_the_extra_that_is_missing(transports, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dkim", None)
    monkeypatch.setenv("THE_KEY", "A" * 43 + "=")
    transports(
        smtp={"OPTIONS": {"host": "127.0.0.1", "dkim": {"selector": "s", "key_env": "THE_KEY"}}}
    )
    assert only().id == "epica_mail.E040"
    assert 'pip install "django-epica-mail[dkim]"' in only().msg


def test_w040_a_key_that_this_process_cannot_read(transports) -> None:
    dkim = {"selector": "s", "key_file": "/nowhere/key"}
    transports(smtp={"OPTIONS": {"host": "127.0.0.1", "dkim": dkim}})
    assert only().id == "epica_mail.W040"
    assert "'/nowhere/key'" in only().msg


def test_options_of_ours_that_are_right_are_not_reported(transports, monkeypatch) -> None:
    monkeypatch.setenv("THE_KEY", "A" * 43 + "=")
    options = {
        "host": "127.0.0.1",
        "username": "shop@example.com",
        "oauth": {"token": "os.getcwd"},
        "dkim": [{"selector": "s", "key_env": "THE_KEY"}],
    }
    transports(smtp={"OPTIONS": options})
    assert found() == []


def test_e021_keep_content_never_without_a_key(smtp, epica_mail) -> None:
    epica_mail(KEEP_CONTENT="never", ROUTES=[{"keep_content": "never"}])
    assert [it.id for it in found()] == ["epica_mail.E021"] * 2
    assert "Rule 0" in found()[0].msg
    epica_mail(ENCRYPTION_KEYS=["MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="])
    assert found() == []


def test_e020_keys_without_cryptography(smtp, epica_mail, monkeypatch) -> None:
    epica_mail(ENCRYPTION_KEYS=["MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="])
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert only().id == "epica_mail.E020"


@pytest.mark.parametrize(
    ("options", "is_found"),
    [
        ({"host": "mail.example.com", "username": "u", "password": "p"}, True),
        ({"host": "10.0.0.7", "username": "u", "password": "p"}, True),
        ({"host": "mail.example.com", "username": "u", "use_tls": True}, False),
        ({"host": "mail.example.com", "username": "u", "use_ssl": True}, False),
        ({"host": "127.0.0.1", "username": "u"}, False),
        ({"host": "::1", "username": "u"}, False),
        ({"host": "localhost", "username": "u"}, False),
        ({"host": "mail.example.com"}, False),
    ],
)
def test_w008_credentials_without_tls_to_another_host(transports, options, is_found) -> None:
    transports(smtp={**SMTP, "OPTIONS": options})
    assert [it.id for it in found()] == ["epica_mail.W008"] * is_found
    if is_found:
        assert "'p'" not in str(only()), "a message tells no password"


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="Django 6.1 has MAILERS")
def test_w008_credentials_of_the_email_settings(smtp, settings) -> None:
    settings.EMAIL_HOST, settings.EMAIL_HOST_USER = "mail.example.com", "u"
    assert only().id == "epica_mail.W008"
    settings.EMAIL_USE_TLS = True
    assert found() == []


def test_e070_an_option_that_djangos_backend_does_not_have(transports) -> None:
    transports(smtp={**SMTP, "OPTIONS": {"host": "127.0.0.1", "usename": "secret"}})
    assert (only().id, only().level) == ("epica_mail.E070", ERROR)
    assert "'smtp': its backend has no option usename." in only().msg
    assert "secret" not in str(only())


def test_e070_an_option_whose_value_no_backend_takes(transports) -> None:
    options = {"host": "127.0.0.1", "use_tls": True, "use_ssl": True}
    transports(smtp={**SMTP, "OPTIONS": options})
    assert only().id == "epica_mail.E070"
    assert "use_ssl" in only().msg.lower()


def test_e070_a_timeout_that_is_text(transports) -> None:
    transports(smtp={**SMTP, "OPTIONS": {"host": "127.0.0.1", "timeout": "10"}})
    assert only().id == "epica_mail.E070"
    assert "['smtp']['OPTIONS'] is '10', not a number of seconds." in only().msg


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="Django 6.1 has MAILERS")
def test_e070_a_timeout_of_the_settings_that_is_text(smtp, settings) -> None:
    settings.EMAIL_TIMEOUT = "10"
    assert only().id == "epica_mail.E070"
    assert "EMAIL_TIMEOUT is '10', not a number of seconds." in only().msg


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS is new in Django 6.1")
def test_e070_an_option_that_the_queue_does_not_have(smtp, settings) -> None:
    options = {**settings.MAILERS["default"].get("OPTIONS", {}), "prioriti": "high"}
    queue = {**settings.MAILERS["default"], "OPTIONS": options}
    settings.MAILERS = {**settings.MAILERS, "default": queue}
    assert only().id == "epica_mail.E070"
    assert "'default'" in only().msg
    assert "prioriti" in only().msg


def test_e070_makes_no_folder_while_it_checks(transports, tmp_path) -> None:
    backend = "django.core.mail.backends.filebased.EmailBackend"
    folder = tmp_path / "mail"
    transports(smtp=SMTP, files={"BACKEND": backend, "OPTIONS": {"file_path": str(folder)}})
    assert found() == []
    assert not folder.exists()


def test_a_hint_names_the_place_where_the_site_sets_the_option(transports) -> None:
    transports(smtp={**SMTP, "OPTIONS": {"host": "mail.example.com", "username": "u"}})
    setting = "MAILERS" if django.VERSION >= (6, 1) else "EPICA_MAIL['TRANSPORTS']"
    assert f"Set use_tls in {setting}['smtp']['OPTIONS'] (" in str(only().hint) or (
        django.VERSION < (6, 1) and "Set EMAIL_USE_TLS (" in str(only().hint)
    )
