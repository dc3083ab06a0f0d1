"""Celery's options of a bulk call: honoured, or refused by name, and never ignored."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import chain, current_app, group
from celery.beat import ScheduleEntry, Scheduler
from celery.canvas import Signature
from django.utils import timezone as django_timezone
from kombu import Queue

from django_epica_mail import maintenance, outbox
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing.call_options import translate
from django_epica_mail.tasks import send_bulk_emails_task, send_email_task

pytestmark = pytest.mark.django_db

TOMORROW = django_timezone.now() + timedelta(days=1)


def entry(**options: Any) -> dict[str, Any]:
    return {"subject": "S", "message": "M", "recipient_list": ["to@example.com"], **options}


def mail_of(**call: Any) -> EmailLog:
    """Return the one mail of a bulk call with these options of ``apply_async``."""
    handle = send_bulk_emails_task.apply_async(args=[[entry()]], **call)
    assert send_bulk_emails_task(handle.id)["accepted"] == 1
    return EmailLog.objects.get(batch=handle.id)


@pytest.mark.parametrize("call", [{"countdown": 86_400}, {"eta": TOMORROW}])
def test_a_newsletter_for_tomorrow_waits_until_tomorrow(smtp, deliver, call) -> None:
    tomorrow = call.get("eta", django_timezone.now() + timedelta(days=1))
    mail = mail_of(**call)
    assert abs(mail.due_at - tomorrow) < timedelta(minutes=1)
    assert deliver("bulk_emails") == 0
    assert smtp.accepted == []


@pytest.mark.parametrize("expires", [3600, TOMORROW])
def test_what_expires_is_not_sent_later(smtp, deliver, travel, expires) -> None:
    assert mail_of(expires=expires).expires_at is not None
    travel(days=2)
    deliver("bulk_emails")
    assert smtp.accepted == []
    assert EmailLog.objects.get().status == "expired"


@pytest.mark.parametrize("queue", ["news", Queue("news")], ids=["name", "kombu"])
def test_a_queue_is_the_rings_and_the_mails(smtp, rings, queue, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        mail = mail_of(queue=queue, priority=2)
    assert (mail.queue, mail.priority) == ("news", 2)
    assert rings == ["news", "news"]


def test_a_free_uuid_becomes_the_handles_id(smtp, queue_mail) -> None:
    wanted = str(uuid.uuid4())
    handle = send_bulk_emails_task.apply_async(args=[[entry()]], task_id=wanted)
    assert handle.id == wanted
    assert EmailBatch.objects.get().pk == uuid.UUID(wanted)
    for used in (wanted, str(queue_mail().pk)):
        with pytest.raises(ValueError, match=f"task_id {used} is in use"):
            send_bulk_emails_task.apply_async(args=[[entry()]], task_id=used)
    with pytest.raises(ValueError, match="task_id must be a UUID"):
        send_bulk_emails_task.apply_async(args=[[entry()]], task_id="newsletter-3")
    assert EmailBatch.objects.count() == 1


def test_an_entry_that_says_otherwise_takes_precedence(smtp) -> None:
    entries = [
        entry(queue="own", priority=1),
        entry(expires_after=60),
        entry(queue=None),
        "no mail",
    ]
    handle = send_bulk_emails_task.apply_async(
        args=[entries], queue="news", priority=7, expires=TOMORROW
    )
    report = send_bulk_emails_task(handle.id)
    own, sooner, call = EmailLog.objects.filter(pk__in=report["ids"]).order_by("pk")
    assert (own.queue, own.priority) == ("own", 1)
    assert sooner.expires_at is not None
    assert sooner.expires_at < TOMORROW == call.expires_at
    assert call.queue == "news"
    assert [it["index"] for it in report["refused"]] == [3]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"countdown": "5"}, TypeError, "countdown must be a number of seconds"),
        ({"countdown": 1, "eta": TOMORROW}, TypeError, "eta or countdown, not both"),
        ({"countdown": 1e300}, ValueError, "out of range"),
        ({"eta": 5}, TypeError, "eta must be a datetime"),
        ({"eta": datetime(2030, 1, 1)}, ValueError, "eta must be an aware datetime"),
        ({"expires": datetime(2030, 1, 1)}, ValueError, "expires must be an aware"),
        ({"eta": datetime.max.replace(tzinfo=timezone.utc)}, ValueError, "in the years"),
        ({"priority": 200}, ValueError, "priority"),
        ({"queue": 5}, ValueError, "queue"),
        ({"chord": send_email_task.si("x")}, TypeError, "'chord'"),
        ({"link": send_email_task.si("x")}, TypeError, "'link'.*on_commit"),
        ({"link_error": send_email_task.si("x")}, TypeError, "'link_error'"),
        ({"exchange": "x"}, TypeError, "'exchange': give queue instead"),
        ({"routing_key": "x"}, TypeError, "'routing_key'"),
        ({"time_limit": 5}, TypeError, "'time_limit'.*SEND_TIMEOUT"),
        ({"countdonw": 5}, TypeError, "'countdonw': the options are countdown, eta, expires"),
    ],
)
def test_an_option_without_meaning_is_refused_by_name(smtp, call, error, words) -> None:
    with pytest.raises(error, match=words):
        send_bulk_emails_task.apply_async(args=[[entry()]], **call)
    assert not EmailBatch.objects.exists()


def test_what_would_have_to_follow_a_call_is_refused(smtp) -> None:
    with pytest.raises(TypeError, match="no option 'chain'"):
        chain(send_bulk_emails_task.si([entry()]), send_email_task.si("x")).apply_async()
    assert not EmailBatch.objects.exists()


@pytest.mark.parametrize("way", ["delay_on_commit", "apply_async_on_commit"])
def test_what_celery_calls_after_the_commit_works_as_for_the_sites_own_tasks(
    smtp, way, django_capture_on_commit_callbacks
) -> None:
    arguments = ([[entry()]],) if way.startswith("apply") else ([entry()],)
    with django_capture_on_commit_callbacks(execute=True):
        getattr(send_bulk_emails_task, way)(*arguments)
        assert not EmailBatch.objects.exists()
    assert EmailBatch.objects.get().total == 1


def test_signatures_and_groups_go_on_working(smtp) -> None:
    signature: Signature[Any] = send_bulk_emails_task.s([entry()])
    signature.delay()
    signature.set(queue="news", countdown=60).apply_async()
    results = group(send_bulk_emails_task.s([entry()]) for _ in range(2)).apply_async(
        producer=object(), add_to_parent=False
    )
    ids = {str(pk) for pk in EmailBatch.objects.values_list("pk", flat=True)}
    assert len(ids) == 4
    assert {it.id for it in results.results} < ids
    signature.stamp(campaign="spring")
    signature.apply_async()
    assert EmailBatch.objects.count() == 5


def test_an_entry_of_beat_goes_on_working(smtp) -> None:
    given = ScheduleEntry(
        name="newsletter",
        task=send_bulk_emails_task.name,
        schedule=60,
        args=([entry()],),
        options={"queue": "news", "expires": 3600, "headers": {"periodic_task_name": "news"}},
        app=current_app,
    )
    Scheduler(current_app, lazy=True).apply_async(given, producer=object(), advance=False)
    report = send_bulk_emails_task(str(EmailBatch.objects.get().pk))
    mail = EmailLog.objects.get(pk=report["ids"][0])
    assert mail.queue == "news"
    assert mail.expires_at is not None


def test_a_call_without_options_stores_its_entries_as_they_are() -> None:
    assert translate({"retry": True, "priority": None, "link": []}).of_entries == {}
    given = entry()
    assert translate({}).apply_to(given) is given


def test_a_planned_call_can_be_cancelled(smtp) -> None:
    mail = mail_of(countdown=600)
    assert outbox.cancel([mail.pk]).cancelled == [mail.pk]


@pytest.mark.parametrize(("call", "rung"), [({}, "bulk_emails"), ({"queue": "news"}, "news")])
def test_the_sweep_rings_for_a_call_where_the_call_itself_rang(rings, travel, call, rung) -> None:
    send_bulk_emails_task.apply_async(args=[[{**entry(), "queue": "vip"}]], **call)
    travel(minutes=1)  # the first ring is lost
    rings.clear()
    maintenance.dispatch()
    assert rings == [rung]
