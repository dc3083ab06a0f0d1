"""Bulk calls: stored whole, expanded in chunks, interrupted and resumed."""

from __future__ import annotations

from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.db import DataError, InterfaceError, OperationalError, connection
from django.test import TestCase
from django.utils import translation
from django.utils.translation import gettext_lazy

from django_epica_mail import conf, maintenance, outbox
from django_epica_mail.broker import doorbell
from django_epica_mail.exceptions import InvalidMessage, MissingKey
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk, enqueue, parts
from django_epica_mail.results import BatchResult, refusals
from django_epica_mail.tasks import (
    send_bulk_emails_task,
    send_email_async,
    send_templated_email_async,
)
from django_epica_mail.transports import config as transports

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
    decode, raced = parts.decode, []

    def decode_slowly(form: Any) -> Any:
        if not raced:
            raced.append(True)
            bulk.expand(batch.pk)  # another worker, after this one has read the position
        return decode(form)

    monkeypatch.setattr(parts, "decode", decode_slowly)
    assert bulk.expand(batch.pk).accepted == 30
    assert EmailLog.objects.values("subject").distinct().count() == 30
    assert EmailLog.objects.count() == 30


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


# -- what entries, templates and other workers may do to an expansion


def failing_at(number: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the composing of an entry fail; return the list of how often it was tried."""
    compose, tried = bulk.compose.compose, []

    def composing(given: Any) -> Any:
        if given["recipient_list"] == [f"{number}@example.com"]:
            tried.append(1)
            raise error("deadlock found")
        return compose(given)

    monkeypatch.setattr(bulk.compose, "compose", composing)
    return tried


@pytest.mark.django_db(transaction=True)
def test_a_template_whose_query_fails_refuses_its_own_entry(smtp, monkeypatch) -> None:
    compose = bulk.compose.compose

    def composing(given: Any) -> Any:
        if given["recipient_list"] == ["3@example.com"]:
            with connection.cursor() as cursor:
                cursor.execute("SELECT name FROM no_such_table")
        return compose(given)

    monkeypatch.setattr(bulk.compose, "compose", composing)
    batch = bulk.expand(bulk.submit(entries(6)).pk)
    assert (batch.accepted, [it["index"] for it in batch.refused]) == (5, [3])
    assert batch.is_finished
    assert EmailLog.objects.count() == 5


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, MemoryError])
def test_an_error_that_passes_refuses_no_entry(smtp, monkeypatch, error) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 4)
    batch = bulk.submit(entries(8))
    with monkeypatch.context() as patch:
        failing_at(5, error, patch)
        with pytest.raises(error):
            bulk.expand(batch.pk)
    batch.refresh_from_db()
    assert (batch.position, batch.accepted, batch.refused) == (4, 4, [])
    assert bulk.expand(batch.pk).accepted == 8
    assert EmailLog.objects.count() == 8


def without_default() -> str:
    raise ImproperlyConfigured("This mail names no transport.")


@pytest.mark.django_db(transaction=True)
def test_a_configuration_error_of_the_worker_refuses_no_entry(
    smtp, rings, travel, monkeypatch
) -> None:
    """A worker without DEFAULT_TRANSPORT, which the site's other processes have."""
    result = send_bulk_emails_task.delay(entries(4))
    with monkeypatch.context() as patches:
        patches.setattr(transports, "default_alias", without_default)
        with pytest.raises(ImproperlyConfigured, match="no transport"):
            send_bulk_emails_task(result.id)
    batch = EmailBatch.objects.get()
    assert (batch.position, batch.accepted, batch.refused) == (0, 0, [])
    rings.clear()
    travel(seconds=30)
    assert maintenance.dispatch()["rung"] >= 1
    assert "bulk_emails" in rings
    assert send_bulk_emails_task(result.id)["accepted"] == 4


@pytest.mark.django_db(transaction=True)
def test_a_configuration_error_refuses_entries_once_mail_would_be_given_up(
    smtp, epica_mail, travel
) -> None:
    """All may need what the site never sets up; the call ends without them."""
    epica_mail(GIVE_UP_AFTER=3600)
    result = send_bulk_emails_task.delay([{**it, "keep_content": "never"} for it in entries(2)])
    with pytest.raises(ImproperlyConfigured, match="ENCRYPTION_KEYS"):
        send_bulk_emails_task(result.id)
    travel(seconds=3601)
    report = send_bulk_emails_task(result.id)
    assert report["accepted"] == 0
    assert [it["error"] for it in report["refused"]] == ["ImproperlyConfigured"] * 2


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_has_made_mails_refuses_the_entry_that_needs_more_configuration(
    smtp, monkeypatch
) -> None:
    """Also where it goes through the entries one by one, and that one is all it has."""
    monkeypatch.setattr(enqueue, "CHUNK", 2)
    mails = entries(5)
    mails[2]["keep_content"] = mails[3]["keep_content"] = "never"
    batch = bulk.expand(bulk.submit(mails).pk)
    assert batch.accepted == 3
    assert [it["error"] for it in batch.refused] == ["ImproperlyConfigured"] * 2


@pytest.mark.django_db(transaction=True)
def test_an_entry_that_the_database_refuses_is_found_among_the_others(smtp, monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 5)
    insert, sizes = enqueue.insert_drafts, []

    def inserting(drafts: Any) -> Any:
        sizes.append(len(drafts))
        if any(it.recipients[0].address == "6@example.com" for it in drafts):
            raise DataError("value out of range")
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", inserting)
    batch = bulk.expand(bulk.submit(entries(12)).pk)
    assert batch.accepted == EmailLog.objects.count() == 11
    assert [(it["index"], it["error"]) for it in batch.refused] == [(6, "DataError")]
    assert sizes == [5, 5, 1, 1, 0, 1, 1, 1, 2]  # the chunk, its entries one by one, and the rest


@pytest.mark.django_db(transaction=True)
def test_what_an_erasure_takes_from_the_reasons_does_not_come_back(smtp, monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 1)
    mails = entries(3)
    mails[0]["recipient_list"] = "victim@example.com"
    batch = bulk.submit(mails)
    compose = bulk.compose.compose

    def composing(given: Any) -> Any:
        if given["recipient_list"] == ["2@example.com"]:  # the progress has been read already
            erase(Person("victim@example.com"))
            assert "victim" not in str(EmailBatch.objects.get().refused)
        return compose(given)

    monkeypatch.setattr(bulk.compose, "compose", composing)
    assert len(bulk.expand(batch.pk).refused) == 1
    assert "victim" not in str(EmailBatch.objects.get().refused)


def test_slow_templates_make_chunks_short(smtp, monkeypatch) -> None:
    monkeypatch.setattr(bulk, "_CHUNK_SECONDS", 0.0)
    insert, sizes = enqueue.insert_drafts, []

    def inserting(drafts: Any) -> Any:
        sizes.append(len(drafts))
        return insert(drafts)

    monkeypatch.setattr(enqueue, "insert_drafts", inserting)
    assert bulk.expand(bulk.submit(entries(3)).pk).accepted == 3
    assert sizes == [1, 1, 1]


def test_a_long_call_gives_way_to_other_work(smtp, monkeypatch, rings, epica_mail) -> None:
    epica_mail(RUN_SECONDS=0.001)
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    result = send_bulk_emails_task.apply_async(args=[entries(25)], queue="news")
    rings.clear()
    for done in (10, 20):
        assert send_bulk_emails_task(result.id)["accepted"] == done
    assert rings == ["news"] * 2
    assert send_bulk_emails_task(result.id)["accepted"] == 25
    assert rings == ["news"] * 2
    assert result.status == "SUCCESS"
    rings.clear()
    assert send_bulk_emails_task(entries(25))["accepted"] == 25  # its caller waits for the report


def test_a_ring_leaves_a_call_to_the_worker_that_is_at_it(smtp, monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 10)
    result = send_bulk_emails_task.delay(entries(30))
    compose, ahead = bulk.compose.compose, []

    def composing(given: Any) -> Any:
        if not ahead:
            ahead.append(True)
            EmailBatch.objects.update(position=10)  # as another worker does in the meantime
        return compose(given)

    monkeypatch.setattr(bulk.compose, "compose", composing)
    assert send_bulk_emails_task(result.id)["accepted"] == 0
    assert not EmailLog.objects.exists()
    assert result.status == "PROGRESS"


def test_the_sweep_rings_for_no_call_that_advances(smtp, monkeypatch, travel) -> None:
    monkeypatch.setattr(enqueue, "CHUNK", 1)
    result, rung = send_bulk_emails_task.delay(entries(4)), []
    monkeypatch.setattr(doorbell, "ring_for_batch", lambda *args, **kwargs: rung.append(1) or True)
    for done in (1, 2, 3):
        travel(seconds=15)
        bulk.expand(result.id, until=0.0)
        assert EmailBatch.objects.get().position == done
        rung.clear()  # of the worker that gives way
        maintenance.dispatch()
        assert rung == []
    travel(seconds=25)
    maintenance.dispatch()
    travel(seconds=5)
    maintenance.dispatch()
    assert rung == [1]  # one ring in twenty seconds is enough


def test_an_entry_that_never_ends_takes_one_worker_and_is_refused(
    smtp, monkeypatch, travel, rings
) -> None:
    """Its worker is interrupted in the end; until then, the sweep sends no other to it."""
    result = send_bulk_emails_task.delay(entries(3))
    compose, rung = bulk.compose.compose, []

    def composing(given: Any) -> Any:
        if given["subject"] == "Mail 1":
            for _ in range(int(conf.get().task_seconds // 25)):
                travel(seconds=25)
                maintenance.dispatch()
            rung.extend(rings)
            raise SoftTimeLimitExceeded
        return compose(given)

    monkeypatch.setattr(bulk.compose, "compose", composing)
    rings.clear()
    report = send_bulk_emails_task(result.id)
    assert "bulk_emails" not in rung
    assert report["accepted"] == 2
    assert [(it["index"], it["error"]) for it in report["refused"]] == [
        (1, "SoftTimeLimitExceeded")
    ]


def test_a_call_whose_worker_was_killed_goes_on(smtp, monkeypatch, travel, rings) -> None:
    result = send_bulk_emails_task.delay(entries(3))

    def kill(given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(bulk.compose, "compose", kill)
        with pytest.raises(KeyboardInterrupt):
            send_bulk_emails_task(result.id)
    rings.clear()
    travel(seconds=conf.get().task_seconds + 25)
    maintenance.dispatch()
    assert rings.count("bulk_emails") == 1
    assert send_bulk_emails_task(result.id)["accepted"] == 3


def test_an_interruption_while_entries_are_recorded_refuses_none(smtp, monkeypatch, travel, rings):
    result = send_bulk_emails_task.delay(entries(1))

    def interrupt(drafts: Any) -> Any:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patches:
        patches.setattr(bulk.enqueue, "insert_drafts", interrupt)
        with pytest.raises(SoftTimeLimitExceeded):
            send_bulk_emails_task(result.id)
    assert EmailBatch.objects.get().refused == []
    rings.clear()
    travel(seconds=25)
    maintenance.dispatch()
    assert rings == ["bulk_emails"], "at once, because that worker has ended"


@pytest.mark.parametrize("by", ["entry", "rule"])
def test_mail_of_a_call_that_waited_too_long_expires(smtp, epica_mail, travel, deliver, by) -> None:
    epica_mail(ROUTES=[{"expires_after": 3600}] if by == "rule" else [])
    own = {"expires_after": 3600} if by == "entry" else {}
    result = send_bulk_emails_task.delay([{**entries(1)[0], **own}])
    travel(hours=3)
    send_bulk_emails_task(result.id)
    log = EmailLog.objects.get()
    assert log.expires_at == EmailBatch.objects.get().created_at + timedelta(hours=1)
    deliver("bulk_emails")
    log.refresh_from_db()
    assert (log.status, smtp.accepted) == ("expired", [])


def test_calls_that_cannot_be_read_keep_no_other_waiting(smtp, rings, travel, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "_BATCHES_PER_SWEEP", 2)
    for _ in range(5):
        EmailBatch.objects.create(total=1, payload="damaged")
    send_bulk_emails_task.apply_async(args=[entries(1)], queue="news")
    travel(seconds=25)
    rings.clear()
    for _ in range(3):
        maintenance.dispatch()
        travel(seconds=5)
    assert rings.count("news") == 1


def test_the_list_of_refused_entries_is_bounded(smtp, monkeypatch) -> None:
    monkeypatch.setattr(bulk, "_MOST_REASONS", 3)
    monkeypatch.setattr(bulk, "_MOST_REFUSED", 8)
    monkeypatch.setattr(enqueue, "CHUNK", 2)
    batch = bulk.expand(bulk.submit([*[BAD] * 12, *entries(2)]).pk)
    assert (batch.accepted, batch.position) == (2, 14)
    assert [bool(it["reason"]) for it in batch.refused] == [True] * 3 + [False] * 5


def test_a_value_that_is_nested_deep_is_refused_in_the_call(db) -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    with pytest.raises(ValueError, match="more than 100 deep"):
        bulk.submit([{**entries(1)[0], "metadata": {"k": deep}}])
    assert not EmailBatch.objects.exists()
