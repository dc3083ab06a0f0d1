"""The suppression list: the addresses it matches, and what becomes of their mail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import conf, outbox, results, suppression
from django_epica_mail.delivery import worker
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient, Suppression
from django_epica_mail.suppression import Reason

pytestmark = pytest.mark.django_db


def outcomes(log: EmailLog) -> list[str]:
    return list(log.recipients.values_list("outcome", flat=True))


def test_a_suppressed_address_is_not_sent_to(smtp, queue_mail, deliver) -> None:
    suppression.add("gone@example.com", reason=Reason.BOUNCE)
    log = queue_mail("gone@example.com", store_result=True)
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind, log.tries) == ("suppressed", "suppressed", 0)
    assert log.reply == "On the suppression list: bounce."
    assert log.finished_at is not None
    assert outcomes(log) == ["suppressed"]
    assert smtp.accepted == []
    assert not DeliveryAttempt.objects.exists()
    assert results.EmailResult(str(log.pk)).status == "FAILURE"


def test_other_recipients_of_a_mail_are_sent_to(smtp, deliver) -> None:
    suppression.add("gone@example.com")
    to, cc, bcc = ["a@example.com", "gone@example.com"], ["b@example.com"], ["GONE@example.com"]
    log = outbox.enqueue(EmailMessage("S", "B", None, to, bcc=bcc, cc=cc))
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    assert outcomes(log) == ["", "suppressed", "", "suppressed"]
    (mail,) = smtp.accepted
    assert mail.recipients == ("a@example.com", "b@example.com")


def test_suppressed_recipients_stay_so_while_others_are_retried(
    smtp, queue_mail, deliver, travel
) -> None:
    suppression.add("gone@example.com")
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    log = queue_mail("later@example.com", "gone@example.com", "now@example.com")
    deliver()
    assert outcomes(log) == ["", "suppressed", "accepted"]
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    assert [mail.recipients for mail in smtp.accepted] == [
        ("now@example.com",),
        ("later@example.com",),
    ]


def test_a_mail_is_sent_if_the_rest_is_suppressed_before_a_retry(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    log = queue_mail("later@example.com", "now@example.com")
    deliver()
    suppression.add("later@example.com")
    travel(minutes=6)
    deliver()
    log.refresh_from_db()
    assert log.status == "sent"
    assert outcomes(log) == ["suppressed", "accepted"]


@pytest.mark.parametrize(
    ("scope", "category", "is_held_back"),
    [
        ("", "", True),
        ("", "news", True),
        ("news", "news", True),
        ("news", "", False),
        ("news", "order", False),
    ],
)
def test_an_entry_applies_to_all_mail_or_to_one_category(scope, category, is_held_back) -> None:
    suppression.add("a@example.com", scope=scope, reason=Reason.UNSUBSCRIBE)
    assert suppression.is_suppressed("a@example.com", category) is is_held_back


@pytest.mark.parametrize("reason", Reason.values)
def test_transactional_mail_is_exempt_from_unsubscribes_only(
    smtp, queue_mail, deliver, epica_mail, reason
) -> None:
    epica_mail(TRANSACTIONAL=["password-reset"])
    suppression.add("a@example.com", reason=reason)
    log = queue_mail("a@example.com", category="password-reset")
    deliver()
    log.refresh_from_db()
    assert log.status == ("sent" if reason == Reason.UNSUBSCRIBE else "suppressed")


def test_an_expired_entry_makes_way_for_a_new_one(travel) -> None:
    until = timezone.now() + timedelta(days=1)
    assert suppression.add("a@example.com", reason=Reason.BOUNCE, expires_at=until)
    sooner = until - timedelta(hours=1)
    assert not suppression.add("a@example.com", reason=Reason.BOUNCE, expires_at=sooner)
    travel(days=2)
    assert not suppression.is_suppressed("a@example.com")
    assert suppression.add("a@example.com", reason=Reason.BOUNCE, note="again")
    assert suppression.is_suppressed("a@example.com")
    assert Suppression.objects.get().note == "again"


def test_a_link_suppresses_again_after_its_entry_expired(travel) -> None:
    until = timezone.now() + timedelta(days=1)
    suppression.add("a@example.com", reason=Reason.UNSUBSCRIBE, expires_at=until)
    travel(days=2)
    found_by = suppression.digest("a@example.com")
    assert suppression.add_digest(found_by, reason=Reason.UNSUBSCRIBE, recipient="a@example.com")
    assert suppression.is_suppressed("a@example.com")


def test_an_entry_that_ends_makes_way_for_one_that_lasts(travel) -> None:
    """Otherwise mail would go out again at its end, to somebody who had said no for good."""
    until = timezone.now() + timedelta(days=1)
    found_by = suppression.digest("a@example.com")
    for reason in (Reason.UNSUBSCRIBE, Reason.COMPLAINT):
        suppression.add("a@example.com", reason=reason, expires_at=until)
    assert suppression.add("a@example.com", reason=Reason.COMPLAINT)
    assert suppression.add_digest(found_by, reason=Reason.UNSUBSCRIBE, recipient="a@example.com")
    assert not suppression.add_digest(found_by, reason=Reason.UNSUBSCRIBE)
    travel(days=2)
    assert set(Suppression.objects.values_list("reason", "expires_at")) == {
        (Reason.UNSUBSCRIBE, None),
        (Reason.COMPLAINT, None),
    }
    assert suppression.is_suppressed("a@example.com")


def test_an_expired_entry_replaces_nothing(travel) -> None:
    past = timezone.now() - timedelta(days=1)
    assert suppression.add("a@example.com", expires_at=past, note="first")
    assert not suppression.add("a@example.com", expires_at=past, note="second")
    assert Suppression.objects.get().note == "first"


def test_an_entry_is_in_force_until_it_expires(travel) -> None:
    at = timezone.now() + timedelta(hours=1)
    suppression.add("a@example.com", expires_at=at)
    assert suppression.is_suppressed("a@example.com")
    travel(hours=2)
    assert not suppression.is_suppressed("a@example.com")


@pytest.mark.parametrize(
    "written",
    ["Ayşe <A.b@EXAMPLE.com>", " a.b@example.com ", "a.B@example.com"],
)
def test_an_address_is_found_however_it_is_written(written) -> None:
    suppression.add("a.b@example.com")
    assert suppression.is_suppressed(written)
    assert not suppression.add(written)


def test_a_domain_is_the_same_in_unicode_and_in_ascii() -> None:
    suppression.add("a@örnek.example")
    assert suppression.is_suppressed("a@xn--rnek-4qa.example")


def test_an_erased_address_stays_suppressed(smtp, queue_mail, deliver) -> None:
    suppression.add("erased@example.com")
    Suppression.objects.update(address="")
    log = queue_mail("erased@example.com")
    deliver()
    log.refresh_from_db()
    assert log.status == "suppressed"


def test_digests_are_found_by_old_keys_too_while_they_are_set(epica_mail) -> None:
    epica_mail(SUPPRESSION_KEYS=["old"])
    suppression.add("a@example.com")
    Suppression.objects.update(address="")
    epica_mail(SUPPRESSION_KEYS=["new", "old"])
    assert suppression.is_suppressed("a@example.com")
    epica_mail(SUPPRESSION_KEYS=["new"])
    assert not suppression.is_suppressed("a@example.com")


def test_by_default_digests_survive_a_change_of_secret_key(settings) -> None:
    suppression.add("a@example.com")
    Suppression.objects.update(address="")
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert suppression.is_suppressed("a@example.com")


def test_an_address_that_is_listed_is_found_without_its_key(settings) -> None:
    suppression.add("a@example.com")
    settings.SECRET_KEY = "another"
    assert suppression.is_suppressed("a@example.com")


def test_entries_are_removed_by_scope_and_reason_or_all_at_once() -> None:
    for scope in ("", "news"):
        for reason in (Reason.UNSUBSCRIBE, Reason.BOUNCE):
            assert suppression.add("a@example.com", scope=scope, reason=reason)
    assert suppression.remove("a@example.com", scope="news", reason=Reason.BOUNCE) == 1
    assert suppression.remove("A@example.com", scope="news") == 1
    assert suppression.remove("a@example.com") == 2
    assert not suppression.is_suppressed("a@example.com", "news")


@pytest.mark.parametrize("address", ["", "nobody", "@example.com", "a b@example.com"])
def test_an_invalid_address_is_refused(address) -> None:
    with pytest.raises(ValueError, match="is not an e-mail address"):
        suppression.add(address)


def test_a_requeued_mail_is_sent_to_all_its_recipients(smtp, queue_mail, deliver) -> None:
    suppression.add("a@example.com")
    smtp.inject(refuse("rcpt", 550, "5.1.1 No", times=1))
    log = queue_mail("a@example.com", "b@example.com")
    deliver()
    log.refresh_from_db()
    assert log.status == "failed"
    suppression.remove("a@example.com")
    assert outbox.requeue([log.pk]) == 1
    deliver()
    (mail,) = smtp.accepted
    assert mail.recipients == ("a@example.com", "b@example.com")


def test_an_empty_list_costs_no_query_and_any_other_two_a_batch(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(BATCH_SIZE=20)

    def queries() -> int:
        for number in range(20):
            queue_mail(f"{number}@example.com")
        with CaptureQueriesContext(connection) as seen:
            assert deliver() == 20
        return len(seen)

    with_empty_list = queries()
    suppression.add("other@example.com")
    assert queries() == with_empty_list + 2


def test_a_suppressed_mail_delivered_on_its_own_is_held_back(smtp, queue_mail) -> None:
    suppression.add("a@example.com")
    log = queue_mail("a@example.com")
    assert worker.deliver_one(log.pk) == 1
    assert EmailLog.objects.get().status == "suppressed"
    assert EmailRecipient.objects.get().reply == "manual"


@pytest.mark.parametrize("key", ["TRANSACTIONAL", "SUPPRESSION_KEYS"])
def test_a_setting_that_is_no_list_of_strings_is_refused(key: Any) -> None:
    for value in ("news", [1], None):
        with pytest.raises(ImproperlyConfigured, match=f"{key}.*list of strings"):
            conf.parse({key: value})


def test_the_entry_of_a_similar_address_stays() -> None:
    for address in ("rene@example.com", "rené@example.com"):
        suppression.add(address)
    assert suppression.remove("rene@example.com") == 1
    assert Suppression.objects.get().address == "rené@example.com"


@pytest.mark.parametrize("address", ["", "\N{SOFT HYPHEN}", "\N{ZERO WIDTH SPACE}"])
def test_an_erased_entry_is_that_of_no_other_address(address: str) -> None:
    suppression.add("erased@example.com")
    Suppression.objects.update(address="")
    assert not suppression.is_suppressed(address)
    assert suppression.is_suppressed("erased@example.com")


def test_who_left_one_of_two_categories_gets_none_that_the_database_takes_for_it() -> None:
    suppression.add("a@example.com", scope="News", reason=Reason.UNSUBSCRIBE)
    is_new = suppression.add("a@example.com", scope="news", reason=Reason.UNSUBSCRIBE)
    assert is_new == (connection.vendor != "mysql")
    assert suppression.is_suppressed("a@example.com", "News")
    assert suppression.is_suppressed("a@example.com", "news")
    assert not suppression.is_suppressed("a@example.com", "offers")
