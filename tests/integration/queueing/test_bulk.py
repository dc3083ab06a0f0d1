"""Bulk calls: stored whole, expanded in chunks, interrupted and resumed."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError
from django.test import TestCase

from django_epica_mail import maintenance
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import bulk, enqueue
from django_epica_mail.tasks import send_bulk_emails_task


def entries(count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": f"Mail {number}",
            "message": "Text",
            "from_email": None,
            "recipient_list": [f"{number}@example.com"],
        }
        for number in range(count)
    ]


def test_delay_writes_one_row_in_the_callers_transaction(
    smtp, rings, django_assert_num_queries
) -> None:
    with TestCase.captureOnCommitCallbacks() as hooks, django_assert_num_queries(1):
        result = send_bulk_emails_task.delay(entries(1000))
    assert len(hooks) == 1
    batch = EmailBatch.objects.get(pk=result.id)
    assert (batch.total, batch.accepted, batch.position) == (1000, 0, 0)
    assert not EmailLog.objects.exists()
    assert result.status == "PROGRESS"
    assert result.info == {"done": 0, "total": 1000}
    hooks[0]()
    assert rings == ["bulk_emails"]


@pytest.mark.filterwarnings("ignore:get.. waits for a mail:RuntimeWarning")
def test_each_entry_becomes_its_own_mail(smtp, deliver) -> None:
    result = send_bulk_emails_task.apply_async(kwargs={"emails": entries(3)})
    report = send_bulk_emails_task(result.id)
    assert (report["accepted"], report["refused"]) == (3, [])
    assert result.get(disable_sync_subtasks=False) == report
    assert {str(pk) for pk in EmailLog.objects.values_list("pk", flat=True)} == set(report["ids"])
    assert EmailBatch.objects.get().payload == ""
    assert deliver("bulk_emails") == 3
    assert {m.recipients[0] for m in smtp.accepted} == {f"{n}@example.com" for n in range(3)}


def test_a_bad_entry_is_reported_and_the_others_are_queued(smtp) -> None:
    mails = entries(4)
    mails[1]["recipient_list"] = "1@example.com"
    mails[2] = "no mail"
    report = send_bulk_emails_task(mails)
    assert report["accepted"] == 2
    assert [refused["index"] for refused in report["refused"]] == [1, 2]
    assert "recipient_list must be a list of addresses" in report["refused"][0]["reason"]
    assert "must be a dict of named values" in report["refused"][1]["reason"]


def test_the_reason_for_a_refusal_can_be_stored_by_any_database(db) -> None:
    (refused,) = send_bulk_emails_task(["no\0mail \ud800"])["refused"]
    assert refused["reason"].startswith("TypeError: An entry must be a dict")
    (refused,) = EmailBatch.objects.get().refused
    assert "\0" not in refused["reason"]


@pytest.mark.parametrize("emails", ["text", 7, None, {"subject": "x"}])
def test_a_call_without_a_list_is_refused_at_once(emails: Any, db) -> None:
    with pytest.raises(TypeError, match="emails must be a list of dicts"):
        send_bulk_emails_task.delay(emails)
    assert not EmailBatch.objects.exists()


def test_a_value_that_cannot_be_stored_is_refused_at_once(db) -> None:
    with pytest.raises(TypeError, match=r"a value of the type builtins\.object"):
        send_bulk_emails_task.delay([{"subject": object()}])


def test_entries_may_have_attachments_options_and_templates(smtp, deliver, settings) -> None:
    engine = "django.template.backends.django.DjangoTemplates"
    settings.TEMPLATES = [{"BACKEND": engine, "APP_DIRS": True}]
    (entry,) = entries(1)
    entry |= {"attachments": [("a.bin", b"\0\xff", "application/x-a")], "priority": 7}
    entry |= {"idempotency_key": "order-7"}
    templated = {
        "subject": None,
        "template_name": "emails/notification",
        "context": {"title": "News", "body": "There are news."},
        "recipient_list": ["b@example.com"],
    }
    assert send_bulk_emails_task([entry, templated, entry])["refused"] == []
    assert EmailLog.objects.get(idempotency_key="order-7").priority == 7
    deliver("bulk_emails")
    subjects = sorted(m.header("Subject") for m in smtp.accepted)
    assert subjects[0] == "Mail 0"
    assert len(subjects) == 2


def test_an_interrupted_expansion_resumes_and_duplicates_nothing(
    smtp, monkeypatch, rings, travel
) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    batch = bulk.submit(entries(35))
    insert, calls = enqueue.insert_drafts, []

    def fail_at_the_third(drafts: Any) -> Any:
        calls.append(len(drafts))
        if len(calls) == 3:
            raise OperationalError("the server closed the connection")
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", fail_at_the_third)
    with pytest.raises(OperationalError):
        bulk.expand(batch.pk)
    batch.refresh_from_db()
    assert (batch.position, batch.accepted) == (20, 20)
    travel(seconds=30)
    maintenance.dispatch()
    assert "bulk_emails" in rings
    assert bulk.expand(batch.pk).accepted == 35
    assert EmailLog.objects.count() == 35
    assert bulk.expand(batch.pk).accepted == 35
    assert EmailLog.objects.count() == 35


def test_two_workers_on_a_batch_make_each_mail_once(smtp, monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    batch = bulk.submit(entries(30))
    decode, raced = bulk.decode, []

    def decode_slowly(form: Any) -> Any:
        if not raced:
            raced.append(True)
            bulk.expand(batch.pk)  # another worker, after this one has read the position
        return decode(form)

    monkeypatch.setattr(bulk, "decode", decode_slowly)
    assert bulk.expand(batch.pk).accepted == 30
    assert EmailLog.objects.values("subject").distinct().count() == 30
    assert EmailLog.objects.count() == 30


def test_an_empty_call_is_finished_at_once(smtp) -> None:
    assert send_bulk_emails_task([])["accepted"] == 0
    assert EmailBatch.objects.get().is_finished
