"""The caretakers: dispatch, rescue, giving up, trying again, cleaning up."""

from __future__ import annotations

from collections import Counter

import pytest
from django.core.mail import EmailMessage

from devservers.smtp_faults import refuse
from django_epica_mail import claiming, lifecycle, maintenance, outbox
from django_epica_mail.models import DeliveryGate, EmailAttachment, EmailLog


def statuses() -> Counter[str]:
    return Counter(EmailLog.objects.values_list("status", flat=True))


@pytest.mark.parametrize(
    ("policy", "status"), [("resend", "retrying"), ("hold", "unknown"), ("fail", "failed")]
)
def test_of_a_dead_workers_claim_only_what_may_have_been_begun_is_unknown(
    smtp, queue_mail, travel, policy, status
) -> None:
    for _ in range(lifecycle.PERMITS + 10):
        queue_mail(on_unknown=policy)
    batch = claiming.claim("emails")
    assert maintenance.rescue() == 0, "its lease is not over"
    travel(minutes=5)
    assert maintenance.rescue() == lifecycle.PERMITS + 10
    assert statuses() == {status: lifecycle.PERMITS, "queued": 10}
    lost = [mail.pk for mail in batch.mails[: lifecycle.PERMITS]]
    assert set(EmailLog.objects.filter(status=status).values_list("pk", flat=True)) == set(lost)
    assert set(EmailLog.objects.filter(pk__in=lost).values_list("tries", flat=True)) == {1}
    assert EmailLog.objects.exclude(lease_until=None).count() == 0
    assert maintenance.rescue() == 0


def test_the_sweep_rings_once_for_each_queue_with_something_due(
    smtp, queue_mail, rings, travel
) -> None:
    for _ in range(3):
        queue_mail()
    queue_mail(queue="bulk_emails")
    queue_mail(queue="later")
    EmailLog.objects.filter(queue="later").update(status="sent", pending=None)
    rings.clear()
    assert maintenance.dispatch() == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 2}
    assert rings == ["bulk_emails", "emails"]
    assert DeliveryGate.objects.get(name="emails").last_sweep_at is not None


def test_the_sweep_does_not_ring_for_what_cannot_be_sent_now(
    smtp, queue_mail, deliver, rings, travel
) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    rings.clear()
    assert maintenance.dispatch()["rung"] == 0
    travel(seconds=31)
    assert maintenance.dispatch()["rung"] == 1


def test_mail_that_waited_too_long_for_a_broken_transport_is_given_up(
    smtp, queue_mail, deliver, travel
) -> None:
    queue_mail()
    queue_mail()
    smtp.refuse_connections()
    deliver()
    assert maintenance.give_up_overdue() == 0
    travel(hours=73)
    assert maintenance.give_up_overdue() == 2
    assert statuses() == {"failed": 2}
    assert set(EmailLog.objects.values_list("failure_kind", flat=True)) == {"overdue"}


def test_what_failed_for_a_passing_reason_gets_one_more_try(
    smtp, queue_mail, deliver, epica_mail, travel
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("content", 451, "4.3.0 Later", times=2))
    queue_mail()
    deliver()
    assert statuses() == {"failed": 1}
    assert maintenance.retry_failed() == 1
    deliver()
    assert statuses() == {"failed": 1}
    maintenance.retry_failed()
    deliver()
    assert statuses() == {"sent": 1}


@pytest.mark.parametrize("kind", ["permanent", "unknown", "worker_lost", "message", "overdue"])
def test_what_failed_for_good_or_may_have_arrived_is_not_tried_again(queue_mail, kind) -> None:
    queue_mail()
    EmailLog.objects.update(status="failed", pending=None, failure_kind=kind)
    assert maintenance.retry_failed() == 0


def test_clean_up_deletes_old_finished_mail_and_its_attachments(
    smtp, deliver, travel, queue_mail
) -> None:
    def with_attachment() -> EmailMessage:
        message = EmailMessage("S", "B", None, ["to@example.com"])
        message.attach("a.bin", b"content", "application/zip")
        return message

    outbox.enqueue_many([with_attachment(), with_attachment()], queue="emails")
    outbox.enqueue(with_attachment())
    assert EmailAttachment.objects.count() == 2
    deliver()
    assert statuses() == {"sent": 3}
    survivor = EmailLog.objects.filter(batch__isnull=False).first()
    EmailLog.objects.filter(pk=survivor.pk).update(status="unknown", finished_at=None)
    assert maintenance.cleanup() == 0
    travel(days=31)
    assert maintenance.cleanup() == 2
    assert list(EmailLog.objects.values_list("pk", flat=True)) == [survivor.pk]
    assert EmailAttachment.objects.get().emails.get() == survivor
