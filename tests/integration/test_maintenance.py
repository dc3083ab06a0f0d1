"""Periodic work: dispatch, rescue, giving up, retrying and cleaning up."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import clock, maintenance, outbox, tasks
from django_epica_mail.delivery import claim
from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailAttachment,
    EmailBatch,
    EmailLog,
    EmailQuerySet,
    EmailRecipient,
)
from django_epica_mail.models.bounds import LATEST
from django_epica_mail.monitoring import backlog, health
from django_epica_mail.queueing import bulk


def statuses() -> Counter[str]:
    return Counter(EmailLog.objects.values_list("status", flat=True))


@pytest.mark.parametrize(
    ("policy", "status"), [("resend", "retrying"), ("hold", "unknown"), ("fail", "failed")]
)
def test_only_mail_that_a_dead_worker_held_is_unknown(
    smtp, queue_mail, travel, epica_mail, policy, status
) -> None:
    epica_mail(BATCH_SIZE=3)
    for _ in range(5):
        queue_mail(on_unknown=policy)
    batch = claim.claim("emails")
    assert maintenance.rescue() == 0, "its lease has not ended"
    travel(minutes=5)
    assert maintenance.rescue() == 3
    assert statuses() == {status: 3, "queued": 2}
    lost = [mail.row.pk for mail in batch.mails]
    assert set(EmailLog.objects.filter(status=status).values_list("pk", flat=True)) == set(lost)
    assert set(EmailLog.objects.filter(pk__in=lost).values_list("tries", flat=True)) == {1}
    assert EmailLog.objects.exclude(lease_until=None).count() == 0
    assert maintenance.rescue() == 0


@pytest.mark.parametrize(
    ("policy", "status"), [("resend", "unknown"), ("hold", "unknown"), ("fail", "failed")]
)
def test_mail_that_ended_its_worker_twice_is_set_apart(
    smtp, queue_mail, deliver, travel, policy, status
) -> None:
    harmful = queue_mail(on_unknown=policy, retry={"max_retries": 9})
    for _ in range(2):
        EmailLog.objects.filter(status__in=["unknown", "failed"]).update(
            status="retrying", pending=9, due_at=timezone.now() - timedelta(hours=1)
        )
        others = [queue_mail() for _ in range(3)]
        claim.claim("emails")
        travel(minutes=5)
        maintenance.rescue()
        harmful.refresh_from_db()
    assert (harmful.status, harmful.failure_kind) == (status, "poison")
    assert [it.failure_kind for it in harmful.delivery_attempts.order_by("number")] == [
        "worker_lost",
        "poison",
    ]
    for other in others:
        other.refresh_from_db()
        assert other.attempts == 0, "the second time it was claimed alone"
    assert backlog.status().set_apart == (status == "unknown")
    deliver()
    assert maintenance.retry_failed() == 0
    harmful.refresh_from_db()
    assert harmful.status == status, "nothing tries it again by itself"
    outbox.requeue([harmful.pk])
    deliver()
    harmful.refresh_from_db()
    assert (harmful.status, harmful.failure_kind) == ("sent", "")


def test_the_sweep_rings_once_for_each_queue_with_due_mail(smtp, queue_mail, rings, travel) -> None:
    for _ in range(3):
        queue_mail()
    queue_mail(queue="bulk_emails")
    queue_mail(queue="later")
    EmailLog.objects.filter(queue="later").update(status="sent", pending=None)
    rings.clear()
    assert maintenance.dispatch() == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 2}
    assert rings == ["bulk_emails", "emails"]
    assert DeliveryGate.objects.get(name="emails").last_sweep_at is not None


def test_the_sweep_does_not_ring_for_mail_that_cannot_be_sent(
    smtp, queue_mail, deliver, rings, travel
) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    rings.clear()
    assert maintenance.dispatch()["rung"] == 0
    travel(seconds=31)
    assert maintenance.dispatch()["rung"] == 1


def test_a_passing_failure_gets_one_more_attempt(
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


def test_a_failure_at_a_full_second_gets_one_too(queue_mail) -> None:
    queue_mail()
    EmailLog.objects.update(status="failed", pending=None, failure_kind="transient")
    with connection.cursor() as cursor:
        # The format of SQLite's clock, which writes the queue's times.
        at = f"{timezone.now() - timedelta(minutes=1):%Y-%m-%d %H:%M:%S}.000"
        cursor.execute("UPDATE epica_mail_emaillog SET finished_at = %s", [at])
    assert maintenance.retry_failed() == 1


@pytest.mark.parametrize(("policy", "count"), [("resend", 1), ("hold", 0), ("fail", 0)])
def test_only_the_policy_to_resend_retries_what_an_earlier_attempt_may_have_delivered(
    smtp, queue_mail, deliver, epica_mail, policy: str, count: int
) -> None:
    """The reply was lost; a person had the mail sent again, and it was refused for now."""
    epica_mail(MAX_RETRIES=0)
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail(on_unknown=policy)
    known = queue_mail(on_unknown=policy)
    deliver()
    assert outbox.requeue([log.pk]) == 1
    smtp.inject(refuse("rcpt", 451, times=2))
    deliver()
    log.refresh_from_db()
    EmailLog.objects.filter(pk=known.pk).update(status="failed", failure_kind="transient")
    assert (log.status, log.failure_kind) == ("failed", "transient")
    assert maintenance.retry_failed() == 1 + count
    log.refresh_from_db()
    assert log.status == ("queued" if count else "failed")


@pytest.mark.parametrize("kind", ["permanent", "unknown", "worker_lost", "message", "overdue"])
def test_permanent_and_unknown_failures_are_not_retried(queue_mail, kind) -> None:
    queue_mail()
    EmailLog.objects.update(status="failed", pending=None, failure_kind=kind)
    assert maintenance.retry_failed() == 0


def test_cleanup_deletes_old_finished_mail_and_its_attachments(
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


def test_a_batch_is_deleted_with_the_last_of_its_mails(smtp, deliver, travel) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": ["to@example.com"]}
    done = tasks.send_bulk_emails_task([entry])
    held = tasks.send_bulk_emails_task([{**entry, "send_at": timezone.now() + timedelta(days=90)}])
    deliver("bulk_emails")
    travel(days=31)
    assert maintenance.cleanup() == 1
    assert [str(pk) for pk in EmailBatch.objects.values_list("pk", flat=True)] == [held["batch"]]
    assert done["accepted"] == 1


def with_attachment(**options: object) -> EmailLog:
    message = EmailMessage("S", "Body", None, ["to@example.com"])
    message.attach("a.bin", b"content", "application/zip")
    return outbox.enqueue(message, transport="smtp", **options)


def has_content(log: EmailLog) -> bool:
    log.refresh_from_db()
    kept = bool(log.envelope)
    assert log.attachments.exists() == kept
    return kept


@pytest.fixture
def keys(epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])


def test_content_is_kept_as_long_as_keep_content_says(smtp, deliver, keys) -> None:
    logs = [with_attachment(keep_content=keep) for keep in ("always", "until_sent", "never")]
    assert [has_content(log) for log in logs] == [True, True, True]
    assert deliver() == 3
    assert [has_content(log) for log in logs] == [True, False, False]
    assert EmailAttachment.objects.count() == 1


def test_content_is_deleted_with_every_final_status(smtp, deliver, keys, travel) -> None:
    keeps = ("always", "until_sent", "never")
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=3))
    refused = [with_attachment(keep_content=keep) for keep in keeps]
    deliver()
    cancelled = [with_attachment(keep_content=keep) for keep in keeps]
    outbox.cancel([log.pk for log in cancelled])
    expired = [with_attachment(keep_content=keep, expires_after=60) for keep in keeps]
    travel(minutes=2)
    deliver()
    assert statuses() == {"failed": 3, "cancelled": 3, "expired": 3}
    for logs in (refused, cancelled, expired):
        assert [has_content(log) for log in logs] == [True, False, False]


@pytest.mark.parametrize("keep", ["until_sent", "never"])
def test_retryable_mail_keeps_its_content_until_given_up(
    smtp, deliver, keys, epica_mail, travel, keep
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("content", 451, "4.3.0 Later", times=3))
    log = with_attachment(keep_content=keep)
    deliver()
    assert statuses() == {"failed": 1}
    assert has_content(log)
    assert maintenance.retry_failed() == 1
    deliver()
    assert statuses() == {"failed": 1}
    assert has_content(log)
    travel(hours=73)
    assert maintenance.retry_failed() == 0
    assert maintenance.cleanup() == 0
    assert not has_content(log)


def test_cleanup_deletes_content_of_given_up_mail_unless_always(
    smtp, deliver, epica_mail, travel
) -> None:
    epica_mail(MAX_RETRIES=0)
    smtp.inject(refuse("content", 451, "4.3.0 Later", times=2))
    logs = [with_attachment(keep_content=keep) for keep in ("always", "until_sent")]
    deliver()
    travel(hours=73)
    assert maintenance.cleanup() == 0
    assert [has_content(log) for log in logs] == [True, False]


def test_a_last_attempt_after_give_up_at_deletes_the_content(
    smtp, deliver, epica_mail, travel
) -> None:
    log = with_attachment(keep_content="until_sent")
    travel(hours=73)
    smtp.inject(refuse("content", 451, "4.3.0 Later"))
    deliver()
    assert statuses() == {"failed": 1}
    assert not has_content(log)


def test_failed_mail_without_content_is_not_retried(smtp, deliver, epica_mail, travel) -> None:
    epica_mail(MAX_RETRIES=0, KEEP_CONTENT_DAYS=1)
    smtp.inject(refuse("content", 451, "4.3.0 Later"))
    log = with_attachment()
    deliver()
    travel(hours=25)
    maintenance.cleanup()
    assert not has_content(log)
    assert maintenance.retry_failed() == 0
    assert outbox.requeue([log.pk]) == 0


def test_cleanup_deletes_content_sooner_than_rows(
    smtp, deliver, travel, epica_mail, monkeypatch
) -> None:
    monkeypatch.setattr(maintenance, "_CHUNK", 2)
    epica_mail(KEEP_CONTENT_DAYS=7)
    old = [with_attachment() for _ in range(5)]
    deliver()
    travel(days=8)
    young = with_attachment()
    deliver()
    assert maintenance.cleanup() == 0
    assert [has_content(log) for log in (*old, young)] == [False] * 5 + [True]


def test_statements_of_the_cleanup_do_not_grow(smtp, deliver, travel, epica_mail, monkeypatch):
    """SQLite refuses a statement of a thousand conditions, and each has to be planned."""
    monkeypatch.setattr(maintenance, "_CHUNK", 1)
    epica_mail(KEEP_CONTENT_DAYS=7)
    logs = [with_attachment() for _ in range(4)]
    deliver()
    for seconds, log in enumerate(logs):
        EmailLog.objects.filter(pk=log.pk).update(finished_at=clock.now(-60 * seconds))
    travel(days=8)
    with CaptureQueriesContext(connection) as queries:
        maintenance.cleanup()
    assert not any(has_content(log) for log in logs)
    assert max(len(re.findall("finished_at. >= ", it["sql"])) for it in queries) == 1


def test_the_cleanup_waits_for_no_row_that_another_transaction_holds(
    smtp, deliver, travel, epica_mail, monkeypatch
) -> None:
    epica_mail(KEEP_CONTENT_DAYS=7)
    log = with_attachment()
    deliver()
    travel(days=8)
    asked = Counter[str]()

    def lock_none(rows: EmailQuerySet, size: int) -> list[uuid.UUID]:
        asked["times"] += 1
        assert asked["times"] < 50, "it asks again and again"
        return []

    monkeypatch.setattr(EmailQuerySet, "lock_ids", lock_none)
    maintenance.cleanup()
    assert has_content(log)


FAR = datetime(9998, 12, 31, tzinfo=dt_timezone.utc)


def _hold(*logs: EmailLog, **values: object) -> uuid.UUID:
    """Let a worker that died an hour ago hold some mail."""
    token, past = uuid.uuid4(), timezone.now() - timedelta(hours=1)
    values = {"status": "sending", "pending": None, "lease_until": past, **values}
    ids = [it.pk for it in logs]
    EmailLog.objects.filter(pk__in=ids).update(lease_token=token, **values)
    return token


@pytest.mark.django_db(transaction=True)
def test_one_mail_that_cannot_be_rescued_keeps_none_of_its_claim(
    smtp, queue_mail, monkeypatch
) -> None:
    hurt, other = queue_mail(), queue_mail()
    _hold(hurt, other)
    settle = maintenance.settle

    def refuse(outcomes, *, using):
        if hurt.pk in {it.mail.pk for it in outcomes}:
            raise DataError("smallint out of range")
        return settle(outcomes, using=using)

    monkeypatch.setattr(maintenance, "settle", refuse)
    with pytest.raises(DataError):
        maintenance.rescue()
    other.refresh_from_db()
    hurt.refresh_from_db()
    assert other.status != "sending"
    assert hurt.status == "sending"


@pytest.mark.parametrize("attempts", [2**15 - 2, 2**15 - 1])
def test_a_mail_with_as_many_attempts_as_fit_is_rescued(smtp, queue_mail, attempts) -> None:
    hurt, other = queue_mail(), queue_mail()
    EmailLog.objects.filter(pk=hurt.pk).update(attempts=attempts, tries=attempts)
    _hold(hurt, other)
    assert maintenance.rescue() == 2


def test_leases_of_finished_mail_keep_no_dead_claim_waiting(smtp, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "_CLAIMS_PER_SWEEP", 3)
    for _ in range(5):
        _hold(queue_mail(), status="cancelled", finished_at=timezone.now())
    other = queue_mail()
    _hold(other)
    EmailLog.objects.filter(pk=other.pk).update(lease_token=uuid.UUID(int=2**128 - 1))
    assert maintenance.rescue() == 1


def test_bulk_calls_that_nobody_can_read_keep_no_other_waiting(
    smtp, rings, travel, monkeypatch
) -> None:
    monkeypatch.setattr(maintenance, "_BATCHES_PER_SWEEP", 2)
    for _ in range(5):
        EmailBatch.objects.create(total=1, payload="unreadable")
    entry = {"subject": "S", "message": "M", "recipient_list": ["a@example.com"]}
    fine = bulk.submit([entry])
    travel(minutes=5)
    rung = {pk for _ in range(60) for pk, _queue in maintenance._unfinished_batches("default")}
    assert fine.pk in rung


def test_a_failed_mail_of_the_far_future_keeps_no_other_from_its_retry(smtp, queue_mail) -> None:
    hurt, other = queue_mail(), queue_mail()
    past = timezone.now() - timedelta(minutes=5)
    values = {"status": "failed", "pending": None, "failure_kind": "transient"}
    EmailLog.objects.update(finished_at=past, **values)
    EmailLog.objects.filter(pk=hurt.pk).update(finished_at=LATEST, give_up_at=LATEST)
    assert maintenance.retry_failed() == 2
    other.refresh_from_db()
    assert other.status == "queued"


@pytest.mark.parametrize("at", ["lease", "attempt", "sweep"])
def test_a_time_of_the_future_is_no_sign_of_life(smtp, queue_mail, deliver, travel, at) -> None:
    hurt, _waiting = queue_mail(), queue_mail(queue="unattended")
    deliver()
    maintenance.dispatch()
    if at == "lease":
        EmailLog.objects.filter(pk=hurt.pk).update(status="sending", lease_until=FAR)
    elif at == "attempt":
        DeliveryAttempt.objects.update(created_at=FAR)
    else:
        DeliveryGate.objects.filter(name="emails").update(last_sweep_at=FAR)
    travel(hours=3)
    failing = {it.name for it in health.examine().checks if not it.is_well}
    assert {"worker", "beat"} <= failing
    if at == "sweep":
        assert backlog.last_sweep("default") < timezone.now()


def damage(column: str, value: str, log: EmailLog) -> None:
    """Write a value into a column of ids; skip the test where the database has a type for them."""
    if connection.features.has_native_uuid_field:
        pytest.skip("the database refuses it")
    with connection.cursor() as cursor:
        statement = f"UPDATE epica_mail_emaillog SET {column} = %s WHERE id = %s"
        cursor.execute(statement, [value, log.pk.hex])


def test_a_claim_that_is_no_uuid_leaves_the_others_to_be_rescued(queue_mail) -> None:
    hurt, other = queue_mail(), queue_mail()
    ended = timezone.now() - timedelta(minutes=1)
    for log in (hurt, other):
        EmailLog.objects.filter(pk=log.pk).update(
            status="sending", pending=None, lease_token=uuid.uuid4(), lease_until=ended
        )
    damage("lease_token", "no-uuid", hurt)
    with pytest.raises(ValueError, match="hexadecimal"):
        maintenance.rescue()
    assert statuses() == {"sending": 1, "retrying": 1}


def test_the_clean_up_ends_though_an_id_is_written_otherwise(queue_mail, monkeypatch) -> None:
    hurt = queue_mail()
    long_ago = timezone.now() - timedelta(days=400)
    EmailRecipient.objects.all().delete()
    EmailLog.objects.update(status="sent", pending=None, finished_at=long_ago)
    damage("id", f"0x{hurt.pk.hex[2:]}", hurt)
    looked = []
    lock_ids = EmailQuerySet.lock_ids

    def lock_ids_twice(rows: EmailQuerySet, size: int) -> list[uuid.UUID]:
        looked.append(size)
        assert len(looked) < 50, "it does not end"
        return lock_ids(rows, size)

    monkeypatch.setattr(EmailQuerySet, "lock_ids", lock_ids_twice)
    assert maintenance.cleanup() == 0
