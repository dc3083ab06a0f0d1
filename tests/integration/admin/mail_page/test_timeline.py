"""The history of an e-mail in the admin, and what it is waiting for."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.admin.mail_page.timeline import timeline, waiting_for
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.retry import Failure, Kind, Scope
from tests.integration.admin.pages import html_of, url


def positions(html: str, texts: tuple[str, ...]) -> list[int]:
    """Return where these texts occur in the HTML; all of them must."""
    return [html.index(text) for text in texts]


def test_each_attempt_is_shown_with_worker_and_reply(
    viewer, smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Come back later", times=1))
    mail = queue_mail()
    deliver()
    travel(minutes=6)
    deliver()
    html = html_of(viewer, "emaillog_change", mail.pk)
    mail.refresh_from_db()
    reply = "451 4.3.0 Come back later"
    texts = ("Queued", "Attempt 1: refused for now", reply, "Attempt 2: accepted")
    found = positions(html, texts)
    assert found == sorted(found)
    assert f"worker {mail.worker}" in html
    assert "via the transport “smtp”" in html


def test_a_failed_mail_ends_with_its_status_and_kind(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    mail = queue_mail()
    deliver()
    mail.refresh_from_db()
    queued, attempt, end = timeline(mail, with_links=True)
    assert queued.tone == "queued"
    assert (attempt.tone, attempt.reply) == ("retrying", "550 5.1.1 No such user")
    assert (end.title, end.tone, end.facts) == ("Failed", "failed", ["refused for good"])


def test_only_the_newest_attempts_are_shown(queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.mail_page.timeline._ATTEMPTS", 2)
    mail = queue_mail()
    for number in (1, 2, 3):
        mail.delivery_attempts.create(
            number=number,
            transport="smtp",
            worker="host:1",
            created_at=mail.created_at + timedelta(minutes=number),
            failure_kind=Kind.TRANSIENT,
        )
    titles = [str(event.title) for event in timeline(mail, with_links=True)]
    assert titles == ["Queued", "Attempt 2: refused for now", "Attempt 3: refused for now"]


def test_events_of_a_provider_are_part_of_the_history(viewer, smtp, queue_mail, deliver) -> None:
    mail = queue_mail()
    deliver()
    mail.refresh_from_db()
    later = mail.finished_at + timedelta(seconds=5)
    EmailEvent.objects.create(
        email=mail,
        key="1",
        kind="bounced",
        at=later,
        created_at=later,
        source="amazon_ses",
        address="to@example.com",
        reply="550 mailbox unavailable",
    )
    html = html_of(viewer, "emaillog_change", mail.pk).partition('class="epica-timeline"')[2]
    texts = ("Queued", "Attempt 1: accepted", "Bounced", "amazon_ses", "550 mailbox unavailable")
    found = positions(html, texts)
    assert found == sorted(found)


@pytest.mark.parametrize(("kind", "tone"), [("opened", "sent"), ("complained", "failed")])
def test_an_event_has_the_colour_of_good_or_bad_news(queue_mail, kind, tone) -> None:
    mail = queue_mail()
    now = timezone.now()
    EmailEvent.objects.create(
        email=mail, key="1", kind=kind, at=now, created_at=now, is_machine=True
    )
    event = timeline(mail, with_links=True)[-1]
    assert event.tone == tone
    assert event.facts == ["by a machine"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda mail: None, "waits for a worker"),
        (lambda mail: outbox.pause(queue="emails"), "The queue “emails” is paused."),
        (lambda mail: outbox.pause(transport="smtp"), "“smtp” is held back (paused)"),
        (
            lambda mail: gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="No route"), "default"),
            "“smtp” is held back (out of order: No route)",
        ),
        (
            lambda mail: EmailLog.objects.update(transport="gone"),
            "There is no transport “gone” in the settings.",
        ),
        (
            lambda mail: EmailLog.objects.update(due_at=timezone.now() + timedelta(days=1)),
            "It is due at",
        ),
        (
            lambda mail: EmailLog.objects.update(status=Status.UNKNOWN, pending=None),
            "a person decides",
        ),
        (
            lambda mail: EmailLog.objects.update(status=Status.SENDING, worker="host:1"),
            "A worker is sending it: host:1.",
        ),
    ],
)
def test_an_unfinished_mail_shows_what_it_waits_for(viewer, queue_mail, prepare, words) -> None:
    mail = queue_mail()
    prepare(mail)
    assert words in html_of(viewer, "emaillog_change", mail.pk)


def test_mail_to_a_slowed_domain_says_so(viewer, queue_mail) -> None:
    log = queue_mail("to@slow.example")
    other = queue_mail("to@fast.example")
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")
    slowed_domains.complain("smtp", "slow.example", failure, time.monotonic() - 9, "default")
    words = str(waiting_for(log)[0])
    assert words.startswith("Mail to “slow.example” is slowed down to 48")
    assert words.endswith("a minute: 4.7.28 too fast")
    assert waiting_for(other) == ["It is due and waits for a worker."]


def test_a_sent_mail_waits_for_nothing(viewer, smtp, queue_mail, deliver) -> None:
    mail = queue_mail()
    deliver()
    assert "epica-notice epica-sent" not in html_of(viewer, "emaillog_change", mail.pk)
    mail.refresh_from_db()
    assert waiting_for(mail) == []


def test_a_decision_by_evidence_is_told_with_its_evidence(queue_mail, epica_mail) -> None:
    epica_mail(EVIDENCE_WAIT=600)
    log = queue_mail()
    EmailLog.objects.update(status="unknown", pending=None, failure_kind="unknown")
    log.refresh_from_db()
    assert "waits for evidence" in str(waiting_for(log)[0])
    log.events.create(
        key="k",
        kind="resolved",
        at=log.created_at,
        created_at=log.created_at,
        source="epica_mail",
        reason="refused",
        reply="no such message",
    )
    [event] = [it for it in timeline(log, with_links=False) if it.tone == "unknown"]
    assert (event.facts, event.reply) == (["epica_mail", "refused"], "no such message")


def test_deeds_of_people_are_part_of_the_history(superuser, viewer, queue_mail) -> None:
    mail, other = queue_mail(), queue_mail()
    form = {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"}
    superuser.post(url("emaillog_changelist"), {**form, "note": " the order\0  was <b>changed "})
    (deed,) = (it for it in timeline(mail, with_links=False) if it.tone == "person")
    assert (deed.title, deed.facts) == ("root: Cancel", ["the order was <b>changed"])
    assert "root: Cancel" in html_of(viewer, "emaillog_change", mail.pk)
    assert not [it for it in timeline(other, with_links=False) if it.tone == "person"]


def test_deeds_are_searched_among_the_newest(superuser, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.mail_page.timeline._DEEDS_SEARCHED", 2)
    mails = [queue_mail() for _ in range(3)]
    for mail in mails:
        form = {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"}
        superuser.post(url("emaillog_changelist"), form)
    seen = [any(it.tone == "person" for it in timeline(m, with_links=False)) for m in mails]
    assert seen == [False, True, True]


def test_the_ids_of_the_provider_are_shown(viewer, queue_mail) -> None:
    mail = queue_mail()
    mail.delivery_attempts.create(
        number=1, transport="ses", created_at=timezone.now(), provider_id="0100-ses"
    )
    assert "provider&#x27;s id 0100-ses" in html_of(viewer, "emaillog_change", mail.pk)
