"""Bulk calls: stored whole, expanded in chunks, interrupted and resumed."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.db import OperationalError
from django.test import TestCase
from django.utils import translation
from django.utils.translation import gettext_lazy

from django_epica_mail import maintenance, outbox
from django_epica_mail.exceptions import InvalidMessage, MissingKey, UnreadableEnvelope
from django_epica_mail.models import EmailBatch, EmailBatchPart, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk, enqueue
from django_epica_mail.results import BatchResult, refusals
from django_epica_mail.tasks import (
    send_bulk_emails_task,
    send_email_async,
    send_templated_email_async,
)

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


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
    assert [(it["error"], it["rule"]) for it in report["refused"]] == [
        ("TypeError", "compose._check_list"),
        ("TypeError", "bulk._named"),
    ]
    batch = EmailBatch.objects.get()
    assert "recipient_list must be a list of addresses" in bulk.reason(batch, 1)
    assert "must be a dict of named values" in bulk.reason(batch, 2)


def test_the_reason_for_a_refusal_can_be_stored_by_any_database(db) -> None:
    send_bulk_emails_task(["no\0mail \ud800"])
    reason = bulk.reason(EmailBatch.objects.get(), 0)
    assert reason.startswith("TypeError: An entry must be a dict")
    assert "\0" not in reason


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


@pytest.fixture
def short_parts(monkeypatch) -> None:
    """Make every part end after seven of the ``entries``, and a chunk after three."""
    monkeypatch.setattr(bulk, "_PART_LENGTH", 600)
    monkeypatch.setattr(enqueue, "CHUNK", 3)


@pytest.mark.usefixtures("short_parts")
def test_a_long_call_is_stored_and_expanded_in_parts(smtp, monkeypatch, deliver) -> None:
    batch = bulk.submit(entries(20))
    assert [it.start for it in batch.parts.order_by("start")] == [0, 7, 14]
    assert max(len(it.payload) for it in batch.parts.all()) < 1000
    insert, left = enqueue.insert_drafts, []

    def insert_with_less_left(drafts: Any) -> Any:
        left.append(batch.parts.count())
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", insert_with_less_left)
    report = send_bulk_emails_task(str(batch.pk))
    assert (report["accepted"], report["refused"]) == (20, [])
    assert left == [3, 3, 3, 2, 2, 2, 1, 1]  # three, three and one of each part
    assert not batch.parts.exists()
    batch.refresh_from_db()
    assert batch.payload == ""
    deliver("bulk_emails")
    assert sorted(m.recipients[0] for m in smtp.accepted) == sorted(
        entry["recipient_list"][0] for entry in entries(20)
    )


@pytest.mark.usefixtures("short_parts")
def test_the_parts_of_a_call_share_the_files_that_are_read_once(smtp, deliver, tmp_path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("terms and conditions")
    batch = bulk.submit([{**entry, "attachments": [str(path)]} for entry in entries(20)])
    path.unlink()
    assert "terms and" in EmailBatch.objects.get().payload
    assert not batch.parts.filter(payload__contains="terms and").exists()
    assert bulk.expand(batch.pk).refused == []
    assert deliver("bulk_emails") == 20
    assert all(b"terms.txt" in m.content for m in smtp.accepted)


@pytest.mark.usefixtures("short_parts")
def test_an_expansion_in_parts_resumes_within_a_part(smtp, monkeypatch) -> None:
    batch = bulk.submit(entries(20))
    insert, calls = enqueue.insert_drafts, []

    def fail_now_and_then(drafts: Any) -> Any:
        calls.append(len(drafts))
        if len(calls) % 2 == 0:
            raise OperationalError("the server closed the connection")
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", fail_now_and_then)
    for _ in range(7):
        with pytest.raises(OperationalError):
            bulk.expand(batch.pk)
    assert bulk.expand(batch.pk).accepted == 20
    assert EmailLog.objects.values("subject").distinct().count() == 20
    assert EmailLog.objects.count() == 20


@pytest.mark.usefixtures("short_parts")
def test_two_workers_on_a_batch_in_parts_make_each_mail_once(smtp, monkeypatch) -> None:
    batch = bulk.submit(entries(20))
    find_part, raced = bulk._find_part, []

    def find_part_late(*args: Any) -> Any:
        if not raced:
            raced.append(True)
            bulk.expand(batch.pk)  # another worker, after this one has read the position
        return find_part(*args)

    monkeypatch.setattr(bulk, "_find_part", find_part_late)
    assert bulk.expand(batch.pk).accepted == 20
    assert EmailLog.objects.count() == 20


@pytest.mark.usefixtures("short_parts")
def test_a_value_that_cannot_be_stored_leaves_no_parts(db) -> None:
    with pytest.raises(TypeError, match=r"a value of the type builtins\.object"):
        send_bulk_emails_task.delay([*entries(20), {"subject": object()}])
    assert not EmailBatch.objects.exists()
    assert not EmailBatchPart.objects.exists()


@pytest.mark.usefixtures("short_parts")
def test_parts_are_sealed_for_their_place(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD], ENCRYPTION_REQUIRED=True)
    batch, other = bulk.submit(entries(20)), bulk.submit(entries(20))
    epica_mail(ENCRYPTION_KEYS=[NEW, OLD], ENCRYPTION_REQUIRED=True)
    assert reencrypt() == {"renewed": 8, "current": 0, "unreadable": 0}
    later = batch.parts.get(start=7)
    for row in (later, other.parts.get(start=0)):
        batch.parts.filter(start=0).update(payload=row.payload)
        with pytest.raises(MissingKey):
            bulk.expand(batch.pk)
    assert not EmailLog.objects.exists()
    assert bulk.expand(other.pk).accepted == 20


@pytest.mark.usefixtures("short_parts")
def test_a_part_that_is_gone_ends_no_call_early(smtp) -> None:
    batch = bulk.submit(entries(20))
    batch.parts.filter(start=7).delete()
    with pytest.raises(UnreadableEnvelope, match="from number 7 on are missing"):
        bulk.expand(batch.pk)
    batch.refresh_from_db()
    assert (batch.accepted, batch.finished_at) == (7, None)


@pytest.mark.usefixtures("short_parts")
def test_erasing_a_person_names_the_call_that_waits_in_parts(smtp) -> None:
    batch = bulk.submit(entries(20))
    done = erase(Person("15@example.com"))
    assert done["left"] + done["unreadable"] == [str(batch.pk)]
    assert done["remains"] == []


def test_a_call_whose_total_is_too_high_ends_with_its_entries(smtp) -> None:
    batch = bulk.submit(entries(3))
    EmailBatch.objects.update(total=1000)
    done = bulk.expand(batch.pk)
    assert (done.is_finished, done.accepted) == (True, 3)


def test_an_empty_call_is_finished_at_once(smtp) -> None:
    assert send_bulk_emails_task([])["accepted"] == 0
    assert EmailBatch.objects.get().is_finished


SECRET = "x y ann@secret.example"
BAD = {"subject": "S", "message": "M", "recipient_list": ["a@example.com"], "cc": SECRET}


@pytest.mark.filterwarnings("ignore:get.. waits for a mail:RuntimeWarning")
def test_what_refused_entries_hold_is_in_no_result_and_no_log(smtp, caplog) -> None:
    caplog.set_level("DEBUG")
    report = send_bulk_emails_task.apply(args=[[BAD]]).get()
    result = BatchResult(report["batch"]).get(disable_sync_subtasks=False)
    assert report["refused"] == [{"index": 0, "error": "TypeError", "rule": "compose._check_list"}]
    assert SECRET not in f"{report} {result} {caplog.text}"


def test_the_reasons_of_refused_entries_are_sealed_as_content_is(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD])
    batch = bulk.expand(bulk.submit([BAD, {**BAD, "cc": "other words"}]).pk)
    assert SECRET not in str(batch.refused)
    assert SECRET in bulk.reason(batch, 0)
    batch.refused[1]["reason"] = batch.refused[0]["reason"]
    with pytest.raises(MissingKey):
        bulk.reason(batch, 1)
    epica_mail(ENCRYPTION_KEYS=[NEW, OLD])
    assert reencrypt() == {"renewed": 2, "current": 0, "unreadable": 0}
    assert reencrypt() == {"renewed": 0, "current": 2, "unreadable": 0}
    epica_mail(ENCRYPTION_KEYS=[NEW])
    assert SECRET in bulk.reason(EmailBatch.objects.get(), 0)


@pytest.mark.parametrize(
    ("keys", "entry"),
    [
        ({"KEEP_CONTENT": "until_sent"}, {}),
        ({"ROUTES": [{"match": {"category": "login"}, "keep_content": "never"}]}, {}),
        ({}, {"keep_content": "never"}),
    ],
)
def test_reasons_are_not_kept_where_content_is_not(smtp, epica_mail, keys, entry) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD], **keys)
    batch = bulk.expand(bulk.submit([{**BAD, **entry}]).pk)
    assert bulk.reason(batch, 0) == ""
    assert [it["index"] for it in batch.refused] == [0]


def test_reasons_are_forgotten_when_content_is(smtp, epica_mail, travel) -> None:
    epica_mail(KEEP_CONTENT_DAYS=2)
    batch = bulk.expand(bulk.submit([BAD]).pk)
    for days, is_kept in ((1, True), (2, False)):
        travel(days=days)
        maintenance.cleanup()
        batch.refresh_from_db()
        assert bool(bulk.reason(batch, 0)) is is_kept
    assert refusals(batch)[0]["error"] == "TypeError"


def test_erasing_a_person_reaches_the_sealed_reasons(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD], ENCRYPTION_REQUIRED=True)
    batch = bulk.expand(bulk.submit([BAD, {**BAD, "cc": "other words"}]).pk)
    kept = batch.refused[1]
    erase(Person("ann@secret.example"))
    batch.refresh_from_db()
    assert "ann@secret.example" not in bulk.reason(batch, 0)
    assert "cc must be a list" in bulk.reason(batch, 0)
    assert batch.refused[1] == kept


def test_a_key_used_twice_counts_as_one_mail(smtp) -> None:
    mails = entries(4)
    mails[1]["idempotency_key"] = mails[2]["idempotency_key"] = "order-7"
    report = send_bulk_emails_task(mails)
    assert (report["accepted"], len(report["ids"]), report["refused"]) == (3, 3, [])
    again = send_bulk_emails_task(mails[:2])
    assert (again["accepted"], len(again["ids"])) == (1, 1)
    message = EmailMessage("Mail", "Text", None, ["to@example.com"])
    batch = outbox.enqueue_many([message], idempotency_key="order-7")
    assert (batch.total, batch.accepted, batch.position) == (1, 0, 1)


@pytest.mark.parametrize("form", [Path, str])
def test_files_are_read_in_the_caller_and_once(smtp, deliver, tmp_path, form) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("a" * 10_000)
    mails = [{**entry, "attachments": [form(path)]} for entry in entries(20)]
    mails[0]["attachments"].append(("b.bin", b"\0\1", "application/x-b"))
    result = send_bulk_emails_task.delay(mails)
    path.unlink()  # as on the worker's host, where it never was
    assert len(EmailBatch.objects.get(pk=result.id).payload) < 20_000
    assert send_bulk_emails_task(result.id)["refused"] == []
    assert deliver("bulk_emails") == 20
    first = next(it.content for it in smtp.accepted if it.recipients == ("0@example.com",))
    parsed = message_from_bytes(first, policy=default)
    attached = {part.get_filename(): part.get_content() for part in parsed.iter_attachments()}
    assert attached.pop("terms.txt").rstrip() == "a" * 10_000
    assert attached == {"b.bin": b"\0\1"}
    assert all(b"terms.txt" in it.content for it in smtp.accepted)


def test_a_file_that_cannot_be_read_refuses_the_call_as_for_a_single_mail(
    db, tmp_path, epica_mail
) -> None:
    (entry,) = entries(1)
    with pytest.raises(FileNotFoundError):
        send_bulk_emails_task.delay([{**entry, "attachments": [tmp_path / "none.pdf"]}])
    (tmp_path / "big").write_bytes(b"0" * 2000)
    epica_mail(MAX_MESSAGE_BYTES=1000)
    with pytest.raises(InvalidMessage, match="2000 bytes"):
        send_bulk_emails_task.delay([{**entry, "attachments": [tmp_path / "big"]}])
    assert not EmailBatch.objects.exists()


def test_a_call_through_the_broker_reads_no_file_of_the_worker(smtp, tmp_path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("a secret of the host")
    (entry,) = entries(1)
    batch = bulk.expand(bulk.submit([{**entry, "attachments": [str(path)]}], is_foreign=True).pk)
    assert (batch.accepted, batch.refused[0]["rule"]) == (0, "bulk._named")
    assert "a worker reads none" in bulk.reason(batch, 0)
    assert not EmailLog.objects.exists()


def test_attachments_that_are_no_list_are_reported_as_such(smtp) -> None:
    (entry,) = entries(1)
    report = send_bulk_emails_task([{**entry, "attachments": "terms.pdf"}])
    assert report["refused"][0]["rule"] == "compose.check_attachments"
    with pytest.raises(TypeError, match="attachments must be a list; it is str"):
        send_email_async(**entry, attachments="terms.pdf")


def test_entries_are_read_in_the_language_of_the_caller(smtp, settings, tmp_path) -> None:
    (tmp_path / "hello.txt").write_text("{% load i18n %}{% translate 'Home' %}")
    engine = "django.template.backends.django.DjangoTemplates"
    settings.TEMPLATES = [{"BACKEND": engine, "DIRS": [tmp_path]}]
    to = {"from_email": None, "recipient_list": ["a@example.com"]}
    entry = {**to, "template_name": "hello.txt", "context": {}, "subject": gettext_lazy("Home")}
    with translation.override("tr"):
        for language in (None, "en", "tr"):
            send_templated_email_async(**entry, language=language)
        single = shown()
        batch = bulk.submit([{**entry, "language": it} for it in (None, "en", "tr")])
    assert [len(set(it)) for it in single] == [1, 1, 1], "subject and text in one language"
    assert single[0] == single[2] != single[1]
    EmailLog.objects.all().delete()
    bulk.expand(batch.pk)
    assert shown() == single


def shown() -> list[tuple[str, str]]:
    """Return subject and text of each mail."""
    return [(it.subject, it.message().body) for it in EmailLog.objects.order_by("pk")]
