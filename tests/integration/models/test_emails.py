"""E-mails: constraints of the database, what a row knows of itself, and how a status changes."""

from __future__ import annotations

import uuid
from itertools import islice

import pytest
from django.db import IntegrityError, connection, transaction

from django_epica_mail import lifecycle, rules
from django_epica_mail.models import DeliveryAttempt, EmailLog


def test_the_database_refuses_an_unknown_status(queue_mail) -> None:
    log = queue_mail()
    with pytest.raises(IntegrityError, match="epica_mail_known_status"), transaction.atomic():
        EmailLog.objects.update(status="lost")
    log.refresh_from_db()
    assert log.status == "queued"


@pytest.mark.parametrize("status", lifecycle.Status.values)
def test_the_database_accepts_every_status(queue_mail, status) -> None:
    queue_mail()
    assert EmailLog.objects.update(status=status) == 1


def test_the_attempts_of_a_mail_have_distinct_numbers(queue_mail) -> None:
    log = queue_mail()
    attempt = {"email": log, "number": 1, "created_at": log.created_at}
    DeliveryAttempt.objects.create(**attempt)
    with pytest.raises(IntegrityError), transaction.atomic():
        DeliveryAttempt.objects.create(**attempt)


@pytest.mark.parametrize(
    ("status", "kind", "too_old", "forgets"),
    [
        ("sent", "", False, True),
        ("cancelled", "", False, True),
        ("failed", "permanent", False, True),
        ("failed", "transient", False, False),
        ("failed", "message", False, False),
        ("failed", "transient", True, True),
        ("retrying", "transient", True, False),
        ("unknown", "unknown", False, False),
    ],
)
def test_content_is_deleted_once_it_is_no_longer_needed(status, kind, too_old, forgets) -> None:
    for keep in ("until_sent", "never"):
        log = EmailLog(keep_content=keep)
        assert log.forgets_content(status, kind, too_old=too_old) is forgets
    log = EmailLog(keep_content="always")
    assert not log.forgets_content(status, kind, too_old=too_old)


def test_failover_moves_the_earlier_transports_to_the_end() -> None:
    log = EmailLog(transport="ses", fallbacks=["smtp", "backup"])
    assert log.failover("smtp") == {"transport": "smtp", "fallbacks": ["backup", "ses"]}
    assert log.failover("backup") == {"transport": "backup", "fallbacks": ["ses", "smtp"]}


def test_the_name_of_a_row_contains_no_address(queue_mail) -> None:
    log = queue_mail("secret@example.com")
    assert str(log) == str(log.pk)
    assert str(log.recipients.get()) == f"{log.pk} #0"


def test_the_choices_match_the_values_of_the_settings() -> None:
    assert tuple(EmailLog.IfUnknown.values) == rules.ON_UNKNOWN
    assert tuple(EmailLog.Keeping.values) == rules.KEEP_CONTENT


@pytest.mark.parametrize("move", lifecycle.MOVES, ids=lambda move: move.name)
def test_a_move_is_made_only_from_its_source_statuses(queue_mail, move) -> None:
    logs = {status: queue_mail(priority=4) for status in lifecycle.Status}
    for status, log in logs.items():
        EmailLog.objects.filter(pk=log.pk).update(status=status)
    moved = EmailLog.objects.move(move, [log.pk for log in logs.values()])
    assert moved == len(move.sources)
    for status, log in logs.items():
        log.refresh_from_db()
        assert log.status == (move.target if status in move.sources else status)
    movers = [log for status, log in logs.items() if status in move.sources]
    claimable = move.target in lifecycle.CLAIMABLE
    assert {log.pending for log in movers} == {4 if claimable else None}


def test_a_move_with_another_claims_token_is_not_made(queue_mail) -> None:
    log = queue_mail()
    token = uuid.uuid4()
    EmailLog.objects.update(status="sending", lease_token=token)
    assert EmailLog.objects.move(lifecycle.SUCCEED, [log.pk], token=uuid.uuid4()) == 0
    assert EmailLog.objects.move(lifecycle.SUCCEED, [log.pk], token=token) == 1


def test_moved_ids_are_returned_in_the_given_order(queue_mail) -> None:
    first, second, sent = (queue_mail().pk for _ in range(3))
    EmailLog.objects.filter(pk=sent).update(status="sent", pending=None)
    rows = EmailLog.objects.all()
    moved = rows.move_returning_ids(lifecycle.CANCEL, [second, sent, first], reply="by hand")
    assert moved == [second, first]
    assert set(rows.values_list("status", "reply")) == {("cancelled", "by hand"), ("sent", "")}
    assert rows.move_returning_ids(lifecycle.CANCEL, [second, first]) == []


def test_mail_without_content_cannot_be_requeued(queue_mail) -> None:
    kept, deleted = (queue_mail().pk for _ in range(2))
    rows = EmailLog.objects.all()
    rows.update(status="failed", pending=None)
    rows.forget_content([deleted])
    assert rows.move_returning_ids(lifecycle.REQUEUE, [kept, deleted]) == [kept]


@pytest.mark.parametrize("movable", [set(), {0, 1, 2, 3, 4}, {1, 4}, {3}])
def test_a_row_that_cannot_change_neither_stops_nor_repeats(queue_mail, movable) -> None:
    ids = [queue_mail().pk for _ in range(5)]
    met = []

    def change(mails: list[EmailLog]) -> int:
        met.extend(mail.pk for mail in mails)
        wanted = [mail.pk for mail in mails if ids.index(mail.pk) in movable]
        return EmailLog.objects.filter(pk__in=wanted).update(queue="other")

    rows = EmailLog.objects.filter(queue="emails").order_by("pk")
    assert rows.change_in_chunks(2, change) == len(movable)
    assert sorted(met) == sorted(ids)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("not connection.features.has_select_for_update_skip_locked")
def test_locked_rows_of_others_are_skipped(smtp, queue_mail) -> None:
    mine, others = queue_mail().pk, queue_mail().pk
    second = connection.copy()
    try:
        with transaction.atomic():
            rows = EmailLog.objects.filter(pk=others)
            assert rows.lock_ids(10) == [others]
            second.ensure_connection()
            with second.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("SELECT id FROM epica_mail_emaillog FOR UPDATE SKIP LOCKED")
                found = [uuid.UUID(str(pk)) for (pk,) in cursor.fetchall()]
                cursor.execute("ROLLBACK")
        assert found == [mine]
    finally:
        second.close()


def test_the_recipients_of_a_sent_mail_show_accepted(smtp, queue_mail, deliver) -> None:
    log = queue_mail()
    (recipient,) = log.recipients.all()
    assert recipient.get_outcome_display() == ""
    deliver()
    (recipient,) = EmailLog.objects.get().recipients.all()
    assert recipient.outcome == ""  # the mail's status says it
    assert recipient.get_outcome_display() == "accepted"
    recipient.outcome = "refused"
    assert recipient.get_outcome_display() == "refused"


def test_names_end_where_one_of_sqlites_is_no_text(queue_mail) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the others store no bytes in a column of text")
    queue_mail()
    damaged = queue_mail()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE epica_mail_emaillog SET queue = x'ff', transport = x'ff' WHERE id = %s",
            [damaged.pk.hex],
        )
    assert list(islice(EmailLog.objects.all().names("queue"), 9)) == ["emails"]
    assert list(islice(EmailLog.objects.all().names("transport"), 9)) == ["smtp"]
