"""Sending due mail: recipients attempted, outcomes recorded, and failures contained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import django
import pytest
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend
from django.db import OperationalError, connection
from django.utils import timezone

from devservers.smtp_faults import Reply, delay, drop, refuse
from django_epica_mail import conf, lifecycle, signals
from django_epica_mail.delivery import claim as claims
from django_epica_mail.delivery import worker
from django_epica_mail.delivery.prepare import MessageLoader
from django_epica_mail.delivery.sender import Sender
from django_epica_mail.models import DeliveryAttempt, DeliveryGate, EmailLog, EmailRecipient

Outcome = EmailRecipient.Outcome


@pytest.fixture
def use_backend(smtp, settings):
    """Make a site's own SMTP backend the transport."""

    def use(backend: type[SMTPBackend]) -> None:
        path = f"{backend.__module__}.{backend.__qualname__}"
        options = {"host": "127.0.0.1", "port": smtp.port}
        spec = {"smtp": {"BACKEND": path, "OPTIONS": options}}
        if django.VERSION >= (6, 1):
            settings.MAILERS = {**settings.MAILERS, **spec}
        else:
            settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": spec}

    return use


def statuses() -> list[str]:
    return list(EmailLog.objects.order_by("id").values_list("status", flat=True))


def outcomes(log: EmailLog) -> list[str]:
    return list(log.recipients.values_list("outcome", flat=True))


def test_a_due_mail_is_sent_once_and_its_attempt_recorded(smtp, queue_mail, deliver) -> None:
    log = queue_mail("Ayşe <Ayse@Example.com>")
    assert deliver() == 1
    assert deliver() == 0
    (message,) = smtp.accepted
    assert message.message_id == log.message_id
    assert message.recipients == ("Ayse@Example.com",)
    log.refresh_from_db()
    assert (log.status, log.pending, log.lease_until) == ("sent", None, None)
    assert log.finished_at is not None
    attempt = log.delivery_attempts.get()
    assert (attempt.number, attempt.code, attempt.failure_kind) == (1, 250, "")
    assert attempt.reply
    assert attempt.seconds > 0


def test_a_busy_task_rings_once(smtp, queue_mail, rings, epica_mail) -> None:
    epica_mail(BATCH_SIZE=2, RUN_SECONDS=0.2)
    smtp.inject(delay(0.05))
    for _ in range(30):
        queue_mail()
    rings.clear()
    assert 0 < worker.deliver("emails") < 30
    assert rings == ["emails"]  # both for help, and for what the task leaves


@pytest.mark.parametrize(
    ("arriving", "waits"),
    [
        # The first batch holds one mail; each of the others what arrives during a wait.
        ([1, 1, 1], [10, 15, 22.5, 33.75]),
        ([9, 8, 8], [10, 15, 15, 15]),
        # After the first full batch it waits as long; after a second one it does not.
        ([1, 13, 9], [10, 15, 22.5, 22.5]),
        ([1] * 6, [10, 15, 22.5, 33.75, 50, 50, 50]),
    ],
)
def test_a_task_learns_how_long_to_wait_for_a_full_batch(
    smtp, queue_mail, deliver, monkeypatch, arriving: list[int], waits: list[float]
) -> None:
    queue_mail()
    coming, waited = iter(arriving), []

    def sleep(seconds: float) -> None:
        waited.append(round(seconds * 1000, 2))
        for _ in range(next(coming, 0)):
            queue_mail()

    monkeypatch.setattr(worker.time, "sleep", sleep)
    assert deliver() == 1 + sum(arriving)
    assert waited == waits


def test_mail_that_is_not_due_is_left_alone(smtp, queue_mail, deliver, travel) -> None:
    log = queue_mail()
    EmailLog.objects.update(due_at=log.created_at.replace(year=log.created_at.year + 1))
    assert deliver() == 0
    travel(days=366)
    assert deliver() == 1


def test_a_permanent_refusal_fails_only_its_mail_with_the_reply(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", recipient=lambda a: a.startswith("no")))
    bad = queue_mail("no@example.com")
    queue_mail("yes@example.com")
    assert deliver() == 2
    assert statuses() == ["failed", "sent"]
    bad.refresh_from_db()
    assert (bad.failure_kind, bad.failure_code) == ("permanent", 550)
    assert "No such user" in bad.reply


def test_a_transient_refusal_is_retried_until_the_retries_are_used_up(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("content", 451, "4.3.0 Later"))
    log = queue_mail()
    for tries in (1, 2, 3, 4):
        assert deliver() == 1
        assert deliver() == 0
        log.refresh_from_db()
        assert log.tries == tries
        assert log.status == ("retrying" if tries < 4 else "failed")
        travel(minutes=5, seconds=31)  # and the jitter, up to a tenth
    assert deliver() == 0
    assert log.failure_kind == "transient"
    assert log.delivery_attempts.count() == 4


def test_each_retry_waits_for_its_own_delay_and_some_jitter(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("content", 451, "4.3.0 Later"))
    log = queue_mail(retry=[60, 600, 1800])
    for seconds in (60, 600, 1800):
        assert deliver() == 1
        travel(seconds=seconds - 2)
        assert deliver() == 0
        travel(seconds=seconds * 0.1 + 4)
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.attempts) == ("failed", 4)


def test_the_message_id_is_the_same_on_every_attempt(smtp, queue_mail, deliver, travel) -> None:
    smtp.inject(drop("content", accepted=True, times=1))
    log = queue_mail()
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("retrying", "unknown")
    travel(minutes=6)
    deliver()
    assert [message.message_id for message in smtp.accepted] == [log.message_id] * 2
    assert list(log.delivery_attempts.values_list("failure_kind", flat=True)) == ["unknown", ""]


@pytest.mark.parametrize(("policy", "status"), [("hold", "unknown"), ("fail", "failed")])
def test_hold_and_fail_never_resend_after_a_lost_reply(
    smtp, queue_mail, deliver, travel, policy, status
) -> None:
    smtp.inject(drop("content", accepted=True, times=1))
    queue_mail(on_unknown=policy)
    deliver()
    assert statuses() == [status]
    travel(days=2)
    assert deliver() == 0
    assert len(smtp.accepted) == 1


def test_only_the_refused_one_of_two_recipients_is_marked(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No", recipient=lambda a: a.startswith("no")))
    log = queue_mail("no@example.com", "yes@example.com")
    deliver()
    assert statuses() == ["sent"]
    assert outcomes(log) == [Outcome.REFUSED, ""]
    assert log.recipients.get(position=0).code == 550


def test_an_accepted_recipient_gets_no_second_copy(smtp, queue_mail, deliver, travel) -> None:
    smtp.inject(refuse("rcpt", 451, "4.7.1 Grey", recipient=lambda a: a[0] == "g", times=1))
    log = queue_mail("a@example.com", "g@example.com", "c@example.com")
    deliver()
    assert statuses() == ["retrying"]
    assert outcomes(log) == [Outcome.ACCEPTED, "", Outcome.ACCEPTED]
    travel(minutes=6)
    deliver()
    assert statuses() == ["sent"]
    first, second = smtp.accepted
    assert first.recipients == ("a@example.com", "c@example.com")
    assert second.recipients == ("g@example.com",)
    assert b"To: a@example.com, g@example.com, c@example.com" in second.content


def test_a_message_that_cannot_be_built_fails_alone(smtp, queue_mail, deliver) -> None:
    broken = queue_mail()
    queue_mail()
    EmailLog.objects.filter(pk=broken.pk).update(envelope='{"v": 1}')
    assert deliver() == 2
    assert statuses() == ["failed", "sent"]
    broken.refresh_from_db()
    assert broken.failure_kind == "message"


def test_an_expired_mail_is_not_sent(smtp, queue_mail, deliver, travel) -> None:
    queue_mail(expires_at=timezone.now() + timedelta(minutes=1))
    travel(minutes=2)
    assert deliver() == 1
    assert statuses() == ["expired"]
    assert smtp.accepted == []
    assert DeliveryAttempt.objects.count() == 0


def test_an_outage_trips_the_breaker_and_uses_no_retry(smtp, queue_mail, deliver, travel) -> None:
    for _ in range(5):
        queue_mail()
    smtp.refuse_connections()
    assert deliver() == 1
    assert sorted(statuses()) == ["queued"] * 4 + ["retrying"]
    assert set(EmailLog.objects.values_list("tries", flat=True)) == {0}
    assert DeliveryGate.objects.get(scope="transport", name="smtp").outages == 1
    assert deliver() == 0
    travel(seconds=31)
    assert deliver() == 1, "one mail is the probe"
    assert deliver() == 0
    travel(seconds=31)
    smtp.listen_again()
    assert deliver() == 5
    assert DeliveryGate.objects.get(scope="transport", name="smtp").outages == 0
    assert len(smtp.accepted) == 5


def test_mail_not_begun_in_time_is_released(
    smtp, queue_mail, deliver, epica_mail, monkeypatch
) -> None:
    for _ in range(3):
        queue_mail()
    monkeypatch.setattr(conf, "BEGIN_SECONDS", 0)
    epica_mail(RUN_SECONDS=1e-9)
    deliver()
    assert statuses() == ["queued"] * 3
    assert set(EmailLog.objects.values_list("tries", flat=True)) == {0}


def test_a_mail_is_begun_only_while_the_lease_outlasts_it(smtp, queue_mail) -> None:
    queue_mail()
    batch = claims.claim("emails")
    age = conf.get().lease_seconds - conf.get().send_timeout + 0.01
    worker._Run(replace(batch, claimed_at=time.monotonic() - age)).run()
    assert (statuses(), smtp.accepted) == (["queued"], [])
    assert conf.get().lease_seconds > conf.BEGIN_SECONDS + conf.get().send_timeout


def test_a_worker_holds_no_more_than_it_claims_at_a_time(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    """What it holds is what a kill leaves in doubt."""
    epica_mail(BATCH_SIZE=4)
    for _ in range(10):
        queue_mail()
    held: list[int] = []

    def count(**_: object) -> None:
        held.append(EmailLog.objects.filter(status="sending").count())

    signals.before_send.connect(count)
    try:
        assert deliver() == 10
    finally:
        signals.before_send.disconnect(count)
    assert (len(held), max(held)) == (10, 4)


def test_a_421_on_a_used_connection_leads_to_a_new_connection(smtp, queue_mail, deliver) -> None:
    smtp.inject(
        lambda stage, session: (
            Reply(421, "4.3.2 Enough") if stage == "mail" and session.accepted >= 2 else None
        )
    )
    for _ in range(6):
        queue_mail()
    assert deliver() == 6
    assert statuses() == ["sent"] * 6


def test_a_raising_signal_receiver_stops_nothing(smtp, queue_mail, deliver) -> None:
    def explode(**_: object) -> None:
        raise RuntimeError("receiver")

    signals.email_moved.connect(explode)
    try:
        queue_mail()
        queue_mail()
        assert deliver() == 2
    finally:
        signals.email_moved.disconnect(explode)
    assert statuses() == ["sent", "sent"]


def test_email_moved_is_sent_for_each_committed_move(smtp, queue_mail, deliver) -> None:
    heard: list[tuple[object, lifecycle.Move]] = []

    def listen(*, email_id: object, move: lifecycle.Move, **_: object) -> None:
        heard.append((email_id, move))

    signals.email_moved.connect(listen)
    try:
        log = queue_mail()
        deliver()
    finally:
        signals.email_moved.disconnect(listen)
    assert heard == [(log.pk, lifecycle.SUCCEED)]


def test_queries_grow_with_claims_not_with_mails(
    smtp, queue_mail, deliver, django_assert_num_queries
) -> None:
    for _ in range(15):
        queue_mail()
    settle = 2  # a transaction with two writes
    if connection.vendor == "postgresql":
        # Claim, one statement that settles ten and claims five, settle; then two looks, the second
        # one from the beginning of the queue.
        expected, idle = 1 + 1 + settle + 2, 1
    else:
        # Two claims: level, rows and update, on SQLite after a write. The second comes with the
        # settle of the first, in one transaction (a savepoint here). Then the queue has no level.
        claim = 3 + (connection.vendor == "sqlite")
        expected, idle = 2 * claim + settle + 2 + settle + 1, 1
    # Each search reads the gates and the slowed domains, because tests keep neither for a second.
    searches = 3 * 2
    with django_assert_num_queries(expected + searches):
        assert deliver() == 15
    with django_assert_num_queries(idle + 2):
        assert deliver() == 0


def test_a_full_batch_rings_once_for_more_workers(
    smtp, queue_mail, deliver, epica_mail, rings
) -> None:
    epica_mail(BATCH_SIZE=2)
    for _ in range(6):
        queue_mail()
    rings.clear()
    assert deliver() == 6
    assert rings == ["emails"]


@pytest.mark.parametrize("stage", ["rcpt", "content"])
def test_a_reply_is_stored_without_characters_the_database_refuses(
    smtp, queue_mail, deliver, stage
) -> None:
    smtp.inject(refuse(stage, 550, "5.1.1 \0 No \x80", recipient=lambda a: a.startswith("no")))
    log = queue_mail("no@example.com", "yes@example.com") if stage == "rcpt" else queue_mail("no@x")
    assert deliver() == 1
    assert statuses() == (["sent"] if stage == "rcpt" else ["failed"])
    reply = log.recipients.get(position=0).reply if stage == "rcpt" else log.reply
    log.refresh_from_db()
    assert "No" in (reply or log.reply)


def test_an_invalid_reply_line_is_stored_without_a_code(smtp, queue_mail, deliver) -> None:
    smtp.inject(lambda stage, session: Reply(-12, "what") if stage == "rcpt" else None)
    log = queue_mail()
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.failure_kind, log.failure_code) == ("retrying", "transient", None)


def test_an_outages_reply_is_stored_in_a_form_any_database_accepts(
    smtp, queue_mail, deliver
) -> None:
    smtp.inject(refuse("connect", 421, "4.3.2 \0 closed"))
    queue_mail()
    assert deliver() == 1
    assert "closed" in DeliveryGate.objects.get(name="smtp").reason


class ArchivingBackend(SMTPBackend):
    """A site's own SMTP backend that sends a copy of everything to an archive."""

    def _send(self, email_message):
        everyone = [*email_message.recipients(), "archive@example.com"]
        email_message.recipients = lambda: everyone
        return super()._send(email_message)


def test_refusal_of_a_recipient_added_by_the_backend_is_ignored(
    smtp, queue_mail, deliver, use_backend
) -> None:
    use_backend(ArchivingBackend)
    smtp.inject(refuse("rcpt", 550, "5.1.1", recipient=lambda a: a.startswith("archive")))
    log = queue_mail()
    assert deliver() == 1
    assert statuses() == ["sent"]
    assert outcomes(log) == [""]


class ReportingBackend(SMTPBackend):
    """A site's own SMTP backend that fails after the server has accepted the mail."""

    def send_messages(self, email_messages):
        super().send_messages(email_messages)
        raise RuntimeError("the statistics server is down")


def test_an_accepted_mail_is_sent_whatever_fails_afterwards(
    smtp, queue_mail, deliver, use_backend
) -> None:
    use_backend(ReportingBackend)
    queue_mail()
    assert deliver() == 1
    assert statuses() == ["sent"]
    assert len(smtp.accepted) == 1


class PlainBackend(SMTPBackend):
    """A site's own SMTP backend that knows only the arguments of older versions of Django."""

    def __init__(self, host=None, port=None, fail_silently=False):
        super().__init__(host=host, port=port, fail_silently=fail_silently)


@pytest.mark.skipif("django.VERSION >= (6, 1)", reason="Django 6.1 itself passes an alias")
def test_a_backend_gets_only_the_arguments_its_django_passes(
    smtp, queue_mail, deliver, use_backend
) -> None:
    use_backend(PlainBackend)
    queue_mail()
    assert deliver() == 1
    assert statuses() == ["sent"]


def test_a_server_that_requires_authentication_is_an_outage(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("mail", 530, "5.7.0 Authentication required"))
    queue_mail()
    assert deliver() == 1
    assert statuses() == ["retrying"]
    assert DeliveryGate.objects.get(name="smtp").outages == 1


def test_a_batch_that_cannot_be_loaded_is_released(smtp, queue_mail, deliver, monkeypatch) -> None:
    queue_mail()

    def fail(*args: object) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(MessageLoader, "__init__", fail)
    with pytest.raises(OperationalError):
        deliver()
    assert statuses() == ["queued"]


def test_an_unreadable_mail_marks_the_recipients_it_never_reached(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.7.1 Grey", recipient=lambda a: a[0] == "g", times=1))
    log = queue_mail("a@example.com", "g@example.com")
    deliver()
    EmailLog.objects.update(envelope="{}")
    travel(minutes=6)
    deliver()
    assert statuses() == ["sent"]
    assert outcomes(log) == [Outcome.ACCEPTED, Outcome.REFUSED]


@pytest.fixture
def stopping() -> Iterator[None]:
    """Stop the worker of this process, as SIGTERM does, until the test ends."""
    yield
    worker.begin_work()


def test_a_stopping_worker_claims_nothing_and_rings_for_others(
    smtp, queue_mail, deliver, rings, stopping
) -> None:
    queue_mail()
    rings.clear()
    worker.stop_work()
    assert deliver() == 0
    assert smtp.accepted == []
    assert rings == ["emails"]


def test_a_stopping_worker_releases_what_it_has_not_begun(
    smtp, queue_mail, deliver, monkeypatch, stopping
) -> None:
    for _ in range(3):
        queue_mail()
    real = worker.prepare

    def stop_after_the_first(*args: Any) -> Any:
        worker.stop_work()
        return real(*args)

    monkeypatch.setattr(worker, "prepare", stop_after_the_first)
    assert deliver() == 1
    assert sorted(statuses()) == ["queued", "queued", "sent"]


def test_a_stopping_worker_releases_before_it_waits_for_the_server(
    smtp, queue_mail, deliver, monkeypatch, stopping
) -> None:
    """The server may take its time with the mails in flight; other workers take the rest."""
    for _ in range(4):
        queue_mail()
    order: list[str] = []
    begun, released = Sender.begin, worker._Run._release
    waited = Sender.finished

    def begin_slowly(self: Any, key: Any, message: Any) -> None:
        self._is_slow = True  # in threads, as for any slow server
        begun(self, key, message)
        worker.stop_work()

    def release(self: Any) -> None:
        order.append("release")
        released(self)

    def wait(self: Any, timeout: float | None = None) -> Any:
        if timeout is None:
            order.append("wait")
        return waited(self, timeout)

    monkeypatch.setattr(Sender, "begin", begin_slowly)
    monkeypatch.setattr(Sender, "finished", wait)
    monkeypatch.setattr(worker._Run, "_release", release)
    smtp.inject(delay(0.3, "content"))
    assert deliver() == 1
    assert order[:2] == ["release", "wait"]
    assert sorted(statuses()) == ["queued", "queued", "queued", "sent"]
