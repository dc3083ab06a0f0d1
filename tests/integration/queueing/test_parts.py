"""Long bulk calls: their entries stored in parts, and expanded part by part."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.db import OperationalError

from django_epica_mail.exceptions import MissingKey, UnreadableEnvelope
from django_epica_mail.models import EmailBatch, EmailBatchPart, EmailLog
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk, enqueue, parts
from django_epica_mail.tasks import send_bulk_emails_task
from tests.integration.queueing.test_bulk import entries

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


@pytest.fixture(autouse=True)
def short_parts(monkeypatch) -> None:
    """Make every part end after seven of the ``entries``, and a chunk after three."""
    monkeypatch.setattr(parts, "PART_LENGTH", 600)
    monkeypatch.setattr(enqueue, "CHUNK", 3)


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


def test_two_workers_on_a_batch_in_parts_make_each_mail_once(smtp, monkeypatch) -> None:
    batch = bulk.submit(entries(20))
    find, raced = parts.find, []

    def find_late(*args: Any) -> Any:
        if not raced:
            raced.append(True)
            bulk.expand(batch.pk)  # another worker, after this one has read the position
        return find(*args)

    monkeypatch.setattr(parts, "find", find_late)
    assert bulk.expand(batch.pk).accepted == 20
    assert EmailLog.objects.count() == 20


def test_a_value_that_cannot_be_stored_leaves_no_parts(db) -> None:
    with pytest.raises(TypeError, match=r"a value of the type builtins\.object"):
        send_bulk_emails_task.delay([*entries(20), {"subject": object()}])
    assert not EmailBatch.objects.exists()
    assert not EmailBatchPart.objects.exists()


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


def test_a_part_is_no_call_of_its_own(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[OLD], ENCRYPTION_REQUIRED=True)
    batch = bulk.submit(entries(20))
    part = batch.parts.get(start=7)
    EmailBatch.objects.create(pk=part.pk, payload=part.payload, total=7)
    with pytest.raises(MissingKey):
        bulk.expand(part.pk)
    assert not EmailLog.objects.exists()


def test_a_part_that_is_gone_ends_no_call_early(smtp) -> None:
    batch = bulk.submit(entries(20))
    batch.parts.filter(start=7).delete()
    with pytest.raises(UnreadableEnvelope, match="from number 7 on are missing"):
        bulk.expand(batch.pk)
    batch.refresh_from_db()
    assert (batch.accepted, batch.finished_at) == (7, None)


def test_erasing_a_person_names_the_call_that_waits_in_parts(smtp) -> None:
    batch = bulk.submit(entries(20))
    done = erase(Person("15@example.com"))
    assert done["left"] + done["unreadable"] == [str(batch.pk)]
    assert done["remains"] == []
