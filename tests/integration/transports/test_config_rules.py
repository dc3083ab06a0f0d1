"""By which rules a mail is judged, and what of it is kept: those of the transports it may take."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from anymail.backends.test import EmailBackend as AnymailBackend
from anymail.message import AnymailMessage
from anymail.signals import pre_send
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend
from django.urls import include, path

from devservers.provider import KEY, Provider
from django_epica_mail import outbox
from django_epica_mail.exceptions import InvalidHeader, InvalidMessage, UnstorableMessage
from django_epica_mail.messages import RawMessage, Rules, fields
from django_epica_mail.models import EmailLog
from django_epica_mail.transports import config, connection

pytestmark = pytest.mark.django_db

SMTP = "django.core.mail.backends.smtp.EmailBackend"
TEST = "anymail.backends.test.EmailBackend"


class Quiet(SMTPBackend):
    """A site's backend that sends as Django's does."""

    def open(self) -> bool | None:
        return super().open()


class Curious(SMTPBackend):
    """A site's backend that reads what the site's messages carry."""

    def _send(self, email_message: EmailMessage) -> bool:
        email_message.subject += getattr(email_message, "context", {}).get("suffix", "")
        return super()._send(email_message)


class Own(AnymailBackend):
    """A site's backend of a provider."""


class WithContext(EmailMultiAlternatives):
    """A message as djoser leaves it: the context stays on it after rendering."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context = {"user": object()}


class Signed(EmailMultiAlternatives):
    def message(self, **options: Any) -> Any:
        mime = super().message(**options)
        mime["X-Signature"] = "good"
        return mime


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def transports(smtp, settings, epica_mail, server) -> Iterator[None]:
    """Configure one transport of each sort; ``smtp`` and ``amazon`` have a server."""
    own = f"{__name__}."
    amazon = {
        "endpoint_url": server.amazon_url,
        "region_name": "eu-west-1",
        "aws_access_key_id": "id",
        "aws_secret_access_key": "secret",
    }
    specs: dict[str, Any] = {
        "quiet": {"BACKEND": f"{own}Quiet"},
        "curious": {"BACKEND": f"{own}Curious"},
        "own": {"BACKEND": f"{own}Own"},
        "gone": {"BACKEND": "shop.mail.Backend"},
        "test": {"BACKEND": TEST},
        "console": {"BACKEND": "django.core.mail.backends.console.EmailBackend"},
        "sendgrid": {
            "BACKEND": "anymail.backends.sendgrid.EmailBackend",
            "OPTIONS": {"api_key": KEY, "api_url": server.sendgrid_url},
        },
        "sparkpost": {
            "BACKEND": "anymail.backends.sparkpost.EmailBackend",
            "OPTIONS": {"api_key": KEY, "api_url": "http://127.0.0.1:1/"},
        },
        "amazon": {
            "BACKEND": "anymail.backends.amazon_ses.EmailBackend",
            "OPTIONS": {"client_params": amazon},
        },
    }
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, **specs}
    else:
        options = {"host": settings.EMAIL_HOST, "port": settings.EMAIL_PORT}
        epica_mail(TRANSPORTS={"smtp": {"BACKEND": SMTP, "OPTIONS": options}, **specs})
    fields._report.cache_clear()
    yield
    connection.close_connections()
    server.forget()


@pytest.fixture
def site_urls(settings, epica_mail) -> None:
    """Serve the public addresses of the package."""
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(BASE_URL="https://www.example.com")


@pytest.fixture
def handed_over() -> Iterator[list[EmailMessage]]:
    """Record the messages that anymail's backends get."""
    found: list[EmailMessage] = []

    def record(sender: Any, message: EmailMessage, **_: Any) -> None:
        found.append(message)

    pre_send.connect(record, weak=False)
    yield found
    pre_send.disconnect(record)


def message(cls: type[EmailMessage] = EmailMessage, **fields: Any) -> Any:
    made = cls("S", "B", "shop@example.com", ["to@example.com"])
    vars(made).update(fields)
    return made


@pytest.fixture
def queue(transports, epica_mail) -> Callable[..., EmailLog]:
    def enqueue(mail: EmailMessage, *aliases: str, **options: Any) -> EmailLog:
        epica_mail(ROUTES=[{"transport": list(aliases)}])
        return outbox.enqueue(mail, **options)

    return enqueue


# -- attributes that cannot be stored


@pytest.mark.parametrize("aliases", [["smtp"], ["quiet"], ["test", "smtp"], ["console"]], ids=str)
def test_an_attribute_that_no_transport_reads_is_left_out(queue, aliases, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            log = queue(message(WithContext), *aliases)
    assert "context" not in vars(log.message())
    (record,) = (it for it in caplog.records if "context" in it.getMessage())
    assert "test_config_rules.WithContext" in record.getMessage()


def test_such_a_mail_arrives(queue, smtp, deliver) -> None:
    queue(message(WithContext, order="A-1"), "smtp")
    assert deliver() == 1
    assert len(smtp.accepted) == 1


@pytest.mark.parametrize("aliases", [["curious"], ["own"], ["smtp", "curious"], ["gone"]], ids=str)
def test_where_a_backend_of_the_site_may_read_it_the_mail_is_refused(queue, aliases) -> None:
    with pytest.raises(UnstorableMessage, match="'context'"):
        queue(message(WithContext), *aliases)
    assert not EmailLog.objects.exists()


@pytest.mark.parametrize("name", ["metadata", "esp_extra", "merge_data", "tags", "send_at"])
def test_what_decides_what_is_sent_is_never_left_out(queue, name) -> None:
    with pytest.raises(UnstorableMessage, match=name):
        queue(message(**{name: {"user": object()}}), "test")


def test_every_attribute_of_anymail_is_decisive() -> None:
    known = set(vars(AnymailMessage())) - set(vars(EmailMultiAlternatives())) - {"anymail_status"}
    assert known <= fields._DECISIVE


# -- the rules


TO_PROVIDERS: dict[str, dict[str, Any]] = {
    "two senders": {"from_email": "a@example.com, b@example.com"},
    "local part": {"to": ["jörg@example.com"]},
    "idna 2008": {"to": ["a@faß.example", "b@☕.example"]},
    "numeric header": {"extra_headers": {"X-Priority": 1}},
    "template": {"body": None, "subject": None, "template_id": "welcome"},
    "template's sender": {"from_email": None, "template_id": "welcome"},
}


@pytest.mark.parametrize("case", TO_PROVIDERS)
def test_a_provider_judges_its_mail_itself(queue, deliver, handed_over, case) -> None:
    log = queue(message(**TO_PROVIDERS[case]), "test")
    deliver()
    log.refresh_from_db()
    assert log.status == ("failed" if "multiple from emails" in log.reply else "sent")
    (given,) = handed_over
    for name, value in TO_PROVIDERS[case].items():
        if name == "extra_headers":
            value = {"Message-ID": log.message_id, **value}
        assert getattr(given, name) == value
    assert "None" not in (log.subject, log.from_email)


@pytest.mark.parametrize("field", ["to", "cc", "bcc"])
@pytest.mark.parametrize("typed", ["mi\u212ae@example.com", "mi\u200bke@example.com"])
def test_no_provider_gets_an_address_whose_bounce_would_suppress_another(
    queue, field, typed
) -> None:
    with pytest.raises(InvalidMessage, match="mike@example"):
        queue(message(**{field: [typed]}), "test")
    assert not EmailLog.objects.exists()


@pytest.mark.parametrize(
    ("case", "aliases"),
    [
        ("two senders", ["smtp"]),
        ("two senders", ["test", "smtp"]),
        ("two senders", ["amazon", "smtp"]),
    ],
    ids=str,
)
def test_with_an_smtp_server_among_the_transports_its_rules_hold(queue, case, aliases) -> None:
    with pytest.raises((ValueError, TypeError, InvalidMessage)):
        queue(message(**TO_PROVIDERS[case]), *aliases)
    assert not EmailLog.objects.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "S\nBcc: x@example.com"},
        {"from_email": "a@example.com\nBcc: x@example.com"},
        {"to": ["a@example.com\r\nBcc: x@example.com"]},
        {"reply_to": ["a@example.com\nBcc: x@example.com"]},
        {"extra_headers": {"X-A": "1\nBcc: x@example.com"}},
        {"extra_headers": {"X A": "1"}},
        {"extra_headers": {"Bcc": "x@example.com"}},
    ],
    ids=str,
)
def test_headers_within_headers_are_refused_for_every_transport(queue, changes) -> None:
    with pytest.raises(InvalidHeader):
        queue(message(**changes), "test")
    assert not EmailLog.objects.exists()


def test_amazon_reads_mime_but_of_a_template_only_fields(transports) -> None:
    assert config.rules_of(["amazon"], message()) is Rules.MIME
    assert config.rules_of(["amazon"], message(template_id="t")) is Rules.FIELDS
    assert config.rules_of(["amazon", "test"], message()) is Rules.MIME
    assert config.rules_of(["test"], message()) is Rules.FIELDS
    assert config.rules_of(["test", "smtp"], message(template_id="t")) is Rules.SMTP
    assert config.rules_of(["unknown"], message()) is Rules.SMTP


def test_under_test_the_rules_of_djangos_outbox_hold(transports, epica_mail) -> None:
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    assert config.rules_of(["test"], message()) is Rules.SMTP


# -- messages that build their own MIME


def test_a_provider_gets_the_fields_of_a_message_that_builds_itself(
    queue, deliver, handed_over
) -> None:
    mail = message(Signed)
    mail.attach_alternative("<p>B", "text/html")
    log = queue(mail, "test", track_opens=False)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    (given,) = handed_over
    assert given.body == "B"
    assert given.alternatives[0].content == "<p>B"


def test_amazon_gets_the_mime_that_it_builds(queue, deliver, server) -> None:
    queue(message(Signed), "amazon")
    deliver()
    raw = base64.b64decode(server.taken[0].request["Content"]["Raw"]["Data"])
    assert b"X-Signature: good" in raw


def test_a_message_that_is_only_mime_does_not_arrive_empty(
    queue, deliver, handed_over, smtp
) -> None:
    wire = b"From: shop@example.com\r\nTo: to@example.com\r\nSubject: S\r\n\r\nB\r\n"
    logs = [queue(RawMessage(wire, ["to@example.com"]), alias) for alias in ("test", "smtp")]
    deliver()
    for log in logs:
        log.refresh_from_db()
    assert [(log.status, log.failure_kind) for log in logs] == [("failed", "message"), ("sent", "")]
    assert "Test takes only fields" in logs[0].reply
    assert handed_over == []


def test_a_fallback_that_takes_only_fields_sends_nothing_empty(
    queue, deliver, handed_over, smtp
) -> None:
    log = queue(message(Signed), "test", "smtp")
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("failed", "message")
    assert handed_over == []


# -- what is added to a message, and to what it is not


@pytest.mark.parametrize("alias", ["sparkpost", "amazon"])
@pytest.mark.parametrize("own", [{}, {"Message-ID": "<own@example.com>"}], ids=["ours", "own"])
def test_a_provider_that_makes_the_headers_gets_no_message_id_of_ours(
    queue, deliver, handed_over, alias, own
) -> None:
    template = {"template_id": "t", "subject": "", "body": "", "from_email": None}
    log = queue(message(**template, extra_headers=own), alias)
    deliver()
    assert handed_over[0].extra_headers == own
    log.refresh_from_db()
    assert ("template_id with" in log.reply) == (alias == "sparkpost" and bool(own))


def test_a_message_id_of_ours_goes_to_other_providers(queue, deliver, handed_over) -> None:
    log = queue(message(template_id="t"), "test")
    deliver()
    assert handed_over[0].extra_headers == {"Message-ID": log.message_id}


def test_no_reply_to_and_an_attachment(queue, deliver, smtp) -> None:
    queue(message(reply_to=None, attachments=[("a.txt", "A", "text/plain")]), "smtp")
    assert deliver() == 1
    assert "Reply-To" not in smtp.accepted[0].content.decode()


@pytest.mark.parametrize("name", ["List-Unsubscribe", "list-unsubscribe", "List-Help"])
def test_a_long_link_of_the_sites_own_stays_on_one_line(queue, deliver, smtp, server, name) -> None:
    line = f"{name}: <https://www.example.com/unsubscribe/{'a' * 300}>"
    headers = dict([line.split(": ", 1)])
    queue(message(extra_headers=headers), "smtp")
    queue(message(extra_headers=headers), "amazon")
    deliver()
    raw = base64.b64decode(server.taken[0].request["Content"]["Raw"]["Data"])
    for content in (smtp.accepted[0].content, raw):
        if django.VERSION < (6, 0):  # Python's older policy folds, but encodes nothing
            content = re.sub(rb" *\r?\n +", b" ", content)
        assert line.encode() in content.splitlines()


def test_an_addition_to_a_message_that_builds_itself_is_refused(queue, site_urls) -> None:
    for name in ("unsubscribe", "track_opens", "track_clicks"):
        with pytest.raises(InvalidMessage, match=f"{name} cannot be added to a message"):
            queue(message(Signed), "smtp", **{name: True})
    assert not EmailLog.objects.exists()
    assert queue(message(Signed), "test", unsubscribe=True).additions == "unsubscribe"


def test_a_rules_addition_to_a_message_that_builds_itself_is_left_out_and_said(
    transports, epica_mail, site_urls, caplog
) -> None:
    epica_mail(ROUTES=[{"transport": "smtp", "unsubscribe": True}])
    with caplog.at_level(logging.WARNING):
        log = outbox.enqueue(message(Signed))
    assert log.additions == ""
    assert f"E-mail {log.pk} builds its own MIME" in caplog.text
    assert outbox.enqueue(message()).additions == "unsubscribe"
