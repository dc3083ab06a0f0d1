"""The return address of mail that is sent, and the option that makes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.models import EmailEvent, EmailRecipient, Suppression
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.tracking.bounces import incoming, verp
from django_epica_mail.tracking.bounces.incoming import Received
from django_epica_mail.transports import config, connection
from tests.returned import returned

PATTERN = "bounces+{id}@shop.example.com"
SECOND = "b@example.com".__eq__


def set_transport(settings: Any, backend: str, options: dict[str, Any]) -> None:
    spec = {"BACKEND": f"django.core.mail.backends.{backend}.EmailBackend", "OPTIONS": options}
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, "smtp": spec}
    else:
        settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": {"smtp": spec}}


@pytest.fixture
def envelope_from(settings: Any, smtp: Any) -> Callable[[Any], None]:
    """Give the transport a pattern of return addresses."""

    def use(pattern: Any) -> None:
        options = {"host": "127.0.0.1", "port": smtp.port, "envelope_from": pattern}
        set_transport(settings, "smtp", options)

    return use


def test_each_mail_has_a_return_address_of_its_own(
    smtp, envelope_from, queue_mail, deliver
) -> None:
    envelope_from(PATTERN)
    logs = [queue_mail(f"{n}@example.com") for n in range(3)]
    assert deliver() == 3
    senders = {mail.recipients[0]: mail.sender for mail in smtp.accepted}
    for number, log in enumerate(logs):
        sender = senders[f"{number}@example.com"]
        assert sender == verp.address(PATTERN, log.pk)
        assert list(verp.find([sender])) == [(log.pk, False)]
    assert {mail.header("From") for mail in smtp.accepted} == {"shop@example.com"}


def test_a_retry_and_a_second_transaction_keep_the_return_address(
    smtp, envelope_from, queue_mail, deliver
) -> None:
    envelope_from(PATTERN)
    smtp.inject(refuse("rcpt", 452, "4.5.3", recipient=SECOND, times=1))
    log = queue_mail("a@example.com", "b@example.com")
    deliver()
    shared = verp.address(PATTERN, log.pk, is_shared=True)
    assert [mail.sender for mail in smtp.accepted] == [shared] * 2


@pytest.mark.parametrize("is_waiting", [False, True])
def test_whoever_shared_the_return_address_and_was_erased_cannot_suppress_the_last_one(
    smtp, envelope_from, queue_mail, deliver, is_waiting: bool
) -> None:
    envelope_from(PATTERN)
    if is_waiting:
        smtp.inject(refuse("rcpt", 452, "4.5.3", recipient=SECOND))
    log = queue_mail("mallory@example.com", "b@example.com")
    deliver()
    shared = smtp.accepted[0].sender
    log.refresh_from_db()
    assert log.status == ("retrying" if is_waiting else "sent")
    erase(Person("mallory@example.com"))
    assert EmailRecipient.objects.get(email=log).address == "b@example.com"
    report = returned("postfix", to=shared, recipient="b@example.com")
    assert incoming.receive(report) is Received.RECORDED
    assert EmailEvent.objects.get().reason == "unauthenticated"
    assert not Suppression.objects.exists()


def test_without_the_option_the_sender_stays(smtp, queue_mail, deliver) -> None:
    queue_mail()
    deliver()
    assert smtp.accepted[0].sender == "shop@example.com"


def test_a_mail_that_is_redirected_does_not_bounce_for_its_recipient(
    smtp, envelope_from, queue_mail, deliver, epica_mail
) -> None:
    envelope_from(PATTERN)
    epica_mail(REDIRECT_ALL_TO=["team@example.com"])
    queue_mail()
    deliver()
    assert smtp.accepted[0].sender == "shop@example.com"


def test_a_message_that_builds_itself_has_one_too(smtp, envelope_from, deliver) -> None:
    class Own(EmailMessage):
        def message(self, **options: Any) -> Any:
            return super().message(**options)

    envelope_from(PATTERN)
    globals()["Own"] = Own
    Own.__qualname__ = "Own"
    log = outbox.enqueue(Own("S", "B", None, ["a@example.com"]), transport="smtp")
    deliver()
    assert smtp.accepted[0].sender == verp.address(PATTERN, log.pk)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("bounces@example.com", "once before the @"),
        ("bounces+{id}", "once before the @"),
        ("{id}+{id}@example.com", "once before the @"),
        ("bounces@{id}.example.com", "once before the @"),
        ("bounces+{id}{x}@example.com", "once before the @"),
        ("geri dönen+{id}@example.com", "once before the @"),
        (("bounces+{id}@example.com",), "once before the @"),
        ("b" * 23 + "{id}@example.com", "65 characters"),
    ],
)
def test_a_pattern_that_makes_no_addresses_is_reported(envelope_from, pattern, words) -> None:
    envelope_from(pattern)
    with pytest.raises(ImproperlyConfigured, match=re.escape(words)):
        connection.build("smtp")
    (found,) = (it for it in checks.run_checks() if it.id == "epica_mail.E040")
    assert words in found.msg


def test_the_longest_local_part_that_is_allowed_is_used(smtp, envelope_from, queue_mail, deliver):
    envelope_from("b" * 22 + "{id}@example.com")
    queue_mail()
    deliver()
    assert len(smtp.accepted[0].sender.partition("@")[0]) == 64


def test_only_smtp_has_return_addresses(smtp, settings) -> None:
    set_transport(settings, "filebased", {"envelope_from": PATTERN})
    with pytest.raises(ImproperlyConfigured, match="Only SMTP has the option envelope_from"):
        connection.build("smtp")


def test_under_a_test_runner_there_is_no_return_address(envelope_from, epica_mail) -> None:
    envelope_from(PATTERN)
    epica_mail(REAL_TRANSPORTS_IN_TESTS=False)
    assert config.envelope_from("smtp") is None
