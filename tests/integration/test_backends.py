"""The mail backend, as send_mail() and send_messages() of a site use it."""

from __future__ import annotations

import asyncio
import logging
from unittest import mock

import django
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage, get_connection, mail_admins, send_mail
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.log import AdminEmailHandler

from django_epica_mail.backends import EmailBackend
from django_epica_mail.exceptions import InvalidMessage
from django_epica_mail.models import EmailLog
from django_epica_mail.queueing import enqueue

pytestmark = pytest.mark.django_db


def message(to: str = "to@example.com", **fields) -> EmailMessage:
    return EmailMessage("Subject", "Body", None, [to] if to else [], **fields)


@pytest.fixture
def backend() -> EmailBackend:
    return EmailBackend(transport="smtp")


@pytest.fixture
def broken_database():
    """Make the insert of a mail fail, as with a lost connection or a full disk."""

    def fail(*args, **kwargs):
        raise OperationalError("could not extend file")

    with mock.patch.object(enqueue, "_insert_blobs", fail):
        yield


def test_send_mail_queues_with_no_more_than_settings(smtp) -> None:
    assert send_mail("Subject", "Body", None, ["to@example.com"]) == 1
    log = EmailLog.objects.get()
    assert (log.status, log.queue, log.transport) == ("queued", "emails", "smtp")
    assert smtp.accepted == []


@pytest.mark.skipif("django.VERSION < (6, 1)", reason="MAILERS came with Django 6.1")
def test_an_alias_in_mailers_sets_transport_queue_and_priority(smtp, settings) -> None:
    settings.MAILERS = {
        **settings.MAILERS,
        "bulk": {
            "BACKEND": "django_epica_mail.backends.EmailBackend",
            "OPTIONS": {"transport": "smtp", "queue": "bulk_emails", "priority": "normal"},
        },
    }
    send_mail("Subject", "Body", None, ["to@example.com"], using="bulk")
    log = EmailLog.objects.get()
    assert (log.queue, log.priority) == ("bulk_emails", 3)


def test_a_retry_policy_of_the_backend_reaches_the_row() -> None:
    with pytest.raises(ValueError, match=r"retry\[1\] must be a number of seconds"):
        EmailBackend(retry=[60, -1])
    assert EmailBackend(retry=[60, 300]).send_messages([message()]) == 1
    log = EmailLog.objects.get()
    assert (log.max_retries, log.retry_delay, log.delays) == (2, 60, [60, 300])


def test_the_number_of_queued_messages_is_returned(backend) -> None:
    assert backend.send_messages([message(), message("")]) == 1
    assert backend.send_messages(message() for _ in range(3)) == 3
    assert EmailLog.objects.count() == 4


@pytest.mark.parametrize("nothing", [[], (), None, iter(())])
def test_no_messages_cost_no_query(backend, nothing, django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        assert backend.send_messages(nothing) == 0


def test_many_messages_cost_two_inserts(backend, django_assert_num_queries) -> None:
    number = 1 if connection.vendor == "postgresql" else 2
    with transaction.atomic(), django_assert_num_queries(number):
        backend.send_messages([message() for _ in range(20)])


def test_all_messages_are_queued_or_none(backend) -> None:
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        backend.send_messages([message(), message(headers={"X-Bad": "a\nb"})])
    assert EmailLog.objects.count() == 0


def test_fail_silently_does_not_hide_a_bad_header() -> None:
    backend = EmailBackend(fail_silently=True, transport="smtp")
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        backend.send_messages([EmailMessage("a\nb", "Body", None, ["to@example.com"])])


def test_a_database_error_reaches_the_caller(backend, broken_database) -> None:
    with pytest.raises(OperationalError), transaction.atomic():
        backend.send_messages([message()])


def test_fail_silently_leaves_the_callers_transaction_usable(broken_database, caplog) -> None:
    backend = EmailBackend(fail_silently=True, transport="smtp")
    with transaction.atomic():
        assert backend.send_messages([message()]) == 0
        assert not connection.needs_rollback
        assert EmailLog.objects.count() == 0
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "to@example.com" not in record.getMessage()


def test_fail_silently_hides_a_connection_that_the_driver_has_lost(monkeypatch, caplog) -> None:
    def fail(*args, **kwargs):
        raise InterfaceError("connection already closed")

    monkeypatch.setattr(enqueue, "insert_drafts", fail)
    assert EmailBackend(fail_silently=True, transport="smtp").send_messages([message()]) == 0
    assert "the database refused it (InterfaceError)" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_log_line_in_a_coroutine_is_reported(monkeypatch) -> None:
    # Otherwise the thread's connection to SQLite in memory stays open.
    wrapper = type(connections["default"])
    monkeypatch.setattr(wrapper, "is_in_memory_db", lambda _: False, raising=False)

    async def view() -> int:
        return EmailBackend(fail_silently=True, transport="smtp").send_messages([message()])

    assert asyncio.run(view()) == 1
    assert EmailLog.objects.get().subject == "Subject"


def test_the_report_of_an_enqueue_error_is_not_queued(broken_database, settings, smtp) -> None:
    settings.ADMINS = (
        ["admin@example.com"] if django.VERSION >= (6, 0) else [("Admin", "admin@example.com")]
    )
    handler = AdminEmailHandler()
    logger = logging.getLogger("django_epica_mail")
    logger.addHandler(handler)
    calls = []
    real = EmailBackend.send_messages

    def count(self, messages):
        calls.append(1)
        return real(self, messages)

    try:
        with mock.patch.object(EmailBackend, "send_messages", count):
            backend = EmailBackend(fail_silently=True, transport="smtp")
            assert backend.send_messages([message()]) == 0
    finally:
        logger.removeHandler(handler)
    assert len(calls) == 2, "once for the mail and once for the report, which is not stored"


@pytest.mark.parametrize("text", ["x" * 2000, "\u015f " * 20_000], ids=["long", "very long"])
def test_a_long_log_line_is_reported_and_does_not_raise(smtp, settings, caplog, text) -> None:
    settings.ADMINS = (
        ["admin@example.com"] if django.VERSION >= (6, 0) else [("Admin", "admin@example.com")]
    )
    handler = AdminEmailHandler()
    logger = logging.getLogger("shop")
    logger.addHandler(handler)
    try:
        logger.error("The bank answered: %s", text)
    finally:
        logger.removeHandler(handler)
    subject = EmailLog.objects.get().subject
    assert len(subject) == 998
    assert "The bank answered: " in subject
    assert "it is cut to 998" in caplog.text


@pytest.mark.skipif("django.VERSION < (6, 0)", reason="lazy addresses came with Django 6.0")
def test_a_report_to_a_lazy_address_is_a_report(smtp, settings) -> None:
    settings.ADMINS = [lazystr("admin@example.com")]
    mail_admins("x" * 2000, "Body")
    assert EmailLog.objects.get().subject.endswith("x")


def test_the_callers_own_message_keeps_its_subject(backend, settings) -> None:
    settings.MANAGERS = ["to@example.com"] if django.VERSION >= (6, 0) else [("", "to@example.com")]
    long = EmailMessage("x" * 2000, "Body", None, ["to@example.com"])
    assert backend.send_messages([long]) == 1
    assert len(long.subject) == 2000


def test_other_mail_with_such_a_subject_is_refused(backend) -> None:
    long = EmailMessage("x" * 2000, "Body", None, ["to@example.com"])
    with pytest.raises(InvalidMessage, match="The subject has 2000 characters"):
        backend.send_messages([long])


@pytest.mark.parametrize("name", ["username", "password", "host", "api_key"])
def test_credentials_are_refused_naming_the_alternative(name) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"'{name}'.*TRANSPORTS"):
        EmailBackend(**{name: "secret"})


def test_absent_credentials_from_send_mail_are_accepted() -> None:
    if django.VERSION >= (6, 1):
        EmailBackend(alias="default")
    else:
        EmailBackend(username=None, password=None, fail_silently=False)


@pytest.mark.skipif("django.VERSION < (6, 1)", reason="aliases came with Django 6.1")
def test_an_unknown_option_of_an_alias_is_refused() -> None:
    from django.core.mail import InvalidMailer

    with pytest.raises(InvalidMailer, match="colour"):
        EmailBackend(alias="default", colour="red")


def test_an_async_view_queues_in_a_thread(smtp) -> None:
    def view() -> int:
        with transaction.atomic():
            return send_mail("Subject", "Body", None, ["to@example.com"])

    async def main() -> int:
        return await sync_to_async(view)()

    assert async_to_sync(main)() == 1
    assert EmailLog.objects.count() == 1


def test_a_bcc_header_is_refused_on_every_version(backend) -> None:
    with pytest.raises(ValueError, match="bcc argument"):
        backend.send_messages([message(headers={"Bcc": "hidden@example.com"})])


def test_the_callers_message_can_be_reused(backend) -> None:
    same = message()
    backend.send_messages([same])
    same.to = ["second@example.com"]
    backend.send_messages([same])
    addresses = EmailLog.objects.order_by("id").values_list("recipients__address", flat=True)
    assert list(addresses) == ["to@example.com", "second@example.com"]


def test_empty_credentials_from_django_are_accepted() -> None:
    assert not EmailBackend(transport="smtp", username="", password="", use_tls=False).fail_silently


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_credentials_in_send_mail_raise_an_error_that_names_them(db, settings) -> None:
    if hasattr(settings, "MAILERS"):
        del settings.MAILERS
    settings.EMAIL_BACKEND = "django_epica_mail.backends.EmailBackend"
    with pytest.raises(ImproperlyConfigured, match="'username', the auth_user of send_mail"):
        send_mail("S", "M", None, ["a@example.com"], auth_user="u", auth_password="secret")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("style", ["EMAIL_BACKEND", "TRANSPORTS", "MAILERS"])
def test_the_sites_own_account_in_a_call_is_no_other_account(db, settings, style) -> None:
    account = {"username": "shop", "password": "secret"}
    server = {**account, "host": "smtp.example.com", "port": 587, "use_tls": True}
    smtp = {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": server}
    queue = {"BACKEND": "django_epica_mail.backends.EmailBackend"}
    if style == "MAILERS":
        if django.VERSION < (6, 1):
            pytest.skip("MAILERS came with Django 6.1")
        settings.MAILERS = {"default": {**queue, "OPTIONS": {"transport": "smtp"}}, "smtp": smtp}
    else:
        if hasattr(settings, "MAILERS"):
            del settings.MAILERS
        settings.EMAIL_BACKEND = queue["BACKEND"]
        if style == "TRANSPORTS":
            settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": {"smtp": smtp}}
        else:
            settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD = account.values()
            settings.EMAIL_HOST, settings.EMAIL_PORT = "smtp.example.com", 587
            settings.EMAIL_USE_TLS = True
    account = {"auth_user": "shop", "auth_password": "secret"}
    assert send_mail("S", "M", None, ["a@example.com"], **account) == 1
    assert get_connection(**{**server, "port": "587"}).send_messages([message()]) == 1
    for name in ("username", "password", "host", "port"):
        with pytest.raises(ImproperlyConfigured, match=f"'{name}'"):
            get_connection(**{**server, name: "1"})
    assert EmailLog.objects.count() == 2


def test_everything_that_is_evaluated_lazily_is_queued(smtp, deliver) -> None:
    def later(value):
        return SimpleLazyObject(lambda: value)

    mail = EmailMessage(
        later("Subject"),
        later("Body"),
        later("shop@example.com"),
        [later("a@example.com")],
        cc=[later("Bo <b@example.com>")],
        reply_to=[later("r@example.com")],
        headers={"X-Order": later("7")},
        attachments=[(later("a.txt"), later("text"), later("text/plain"))],
    )
    assert EmailBackend(transport="smtp").send_messages([mail]) == 1
    deliver()
    (sent,) = smtp.accepted
    assert sorted(sent.recipients) == ["a@example.com", "b@example.com"]
    for line in (b"Subject: Subject", b"From: shop@example.com", b"X-Order: 7", b'name="a.txt"'):
        assert line in sent.content


def test_recipients_that_a_class_yields_are_queued(smtp, deliver) -> None:
    class Copied(EmailMessage):
        def recipients(self):
            yield from [*super().recipients(), "archive@example.com"]

    assert EmailBackend(transport="smtp").send_messages([Copied("S", "B", None, ["a@x.com"])]) == 1
    deliver()
    assert list(smtp.accepted[0].recipients) == ["a@x.com", "archive@example.com"]
