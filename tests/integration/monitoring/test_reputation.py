"""Bounce and complaint rates: what is counted, how it is judged, and the pause that follows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.utils import timezone

from django_epica_mail import clock, conf, maintenance, outbox, signals
from django_epica_mail.delivery import claim, gates, worker
from django_epica_mail.delivery.limits import waiting
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryGate, EmailEvent, EmailLog, ReputationDay
from django_epica_mail.monitoring import backlog, health, reputation, totals

NUMBERS = itertools.count()


def event(log: EmailLog, kind: str, reason: str = "", source: str = "mailbox") -> EmailEvent:
    number = next(NUMBERS)
    now = clock.lowest_id_at(timezone.now() + clock.offset)  # ids do not travel
    return EmailEvent.objects.create(
        pk=UUID(int=now.int + number),
        email=log,
        key=f"key-{number}",
        kind=kind,
        reason=reason,
        source=source,
        at=log.created_at,
        created_at=log.created_at,
    )


def day(category: str = "news", *, ago: int = 0, domain: str = "a.example", **counts: int) -> None:
    today = (timezone.now() + clock.offset).date()
    ReputationDay.objects.create(
        day=today - timedelta(days=ago), category=category, domain=domain, **counts
    )


@pytest.fixture
def counted(travel: Any) -> Callable[[], list[tuple[str, str, int, int, int]]]:
    """Count everything up to now; return category, domain, mails, bounces and complaints."""

    def count() -> list[tuple[str, str, int, int, int]]:
        travel(minutes=2)  # beyond the lag
        totals.count()
        found = reputation.rates("default")
        return [(it.category, it.domain, it.mails, it.bounced, it.complained) for it in found]

    return count


@pytest.fixture
def bulk(smtp) -> Callable[..., list[EmailLog]]:
    """Queue bulk mail of a category."""

    def queue(number: int = 1, category: str = "news", **options: Any) -> list[EmailLog]:
        messages = [
            EmailMessage("Subject", "Body", "Shop <news@a.example>", [f"to{n}@example.com"])
            for n in range(number)
        ]
        batch = outbox.enqueue_many(messages, category=category, transport="smtp", **options)
        return list(EmailLog.objects.filter(batch=batch).order_by("pk"))

    return queue


# -- what is counted


def test_mail_is_counted_by_category_and_senders_domain(bulk, queue_mail, deliver, counted) -> None:
    bulk(3)
    queue_mail()
    deliver("bulk_emails")
    deliver()
    assert sorted(counted()) == [("", "example.com", 1, 0, 0), ("news", "a.example", 3, 0, 0)]
    assert sorted(counted()) == [("", "example.com", 1, 0, 0), ("news", "a.example", 3, 0, 0)]


def test_each_mail_bounces_and_is_complained_about_once(bulk, deliver, counted) -> None:
    first, second, third = bulk(3)
    deliver("bulk_emails")
    for _ in range(2):
        event(first, "bounced", "permanent")
    event(first, "bounced", "permanent", source="Mailgun")
    event(second, "complained")
    event(third, "bounced", "transient")
    event(third, "complained", "unauthenticated")
    event(third, "delivered")
    assert counted() == [("news", "a.example", 3, 1, 1)]
    event(first, "bounced", "permanent")
    event(third, "complained")
    assert counted() == [("news", "a.example", 3, 1, 2)]


def test_a_report_about_mail_that_was_not_counted_changes_nothing(bulk, deliver, counted) -> None:
    [log] = bulk()
    deliver("bulk_emails")
    assert counted() == [("news", "a.example", 1, 0, 0)]
    ReputationDay.objects.all().delete()
    event(log, "complained")
    assert counted() == []


def test_days_are_kept_as_long_as_totals(db) -> None:
    day(ago=93, mails=1)
    day(ago=91, mails=2)
    totals.forget_hours("default")
    assert [it.mails for it in ReputationDay.objects.all()] == [2]


def test_only_the_days_of_the_setting_count(db, epica_mail) -> None:
    for ago in range(10):
        day(ago=ago, mails=1)
    assert reputation.rates("default")[0].mails == 7
    epica_mail(REPUTATION_DAYS=2)
    assert reputation.rates("default")[0].mails == 2


# -- how it is judged


@pytest.mark.parametrize(
    ("mails", "bounced", "complained", "level"),
    [
        (10_000, 0, 9, "well"),
        (10_000, 0, 10, "warning"),
        (10_000, 0, 29, "warning"),
        (10_000, 0, 30, "critical"),
        (10_000, 499, 0, "well"),
        (10_000, 500, 0, "warning"),
        (10_000, 1000, 0, "critical"),
        (99, 99, 99, "well"),
        (100, 0, 2, "well"),
        (100, 0, 3, "critical"),
        (100, 2, 0, "well"),
    ],
)
def test_the_published_limits_are_the_defaults(mails, bounced, complained, level) -> None:
    assert reputation.level(mails, bounced, complained, conf.Settings()) == level


def test_one_computation_is_shown_everywhere(smtp, site, admin_client, epica_mail, capsys) -> None:
    day("news", mails=1000, complained=4, bounced=7)
    day("orders", mails=5000, domain="b.example")
    report = health.examine()
    [check] = [it for it in report.checks if it.name == "reputation"]
    assert (check.is_well, check.value, check.limit) == (False, 0.004, 0.003)
    assert "news" in check.text
    assert "0.40" in check.text
    page = admin_client.get("/admin/epica_mail/emailtotal/").content.decode()
    assert "a.example" in page
    assert "0.40 %" in page
    call_command("epica_mail", "status")
    shown = capsys.readouterr().out
    assert "reputation, critical: news from a.example: 0.40% complaints" in shown
    assert "b.example" not in shown
    call_command("epica_mail", "status", "--json")
    listed = json.loads(capsys.readouterr().out)["reputation"]
    assert [(it["category"], it["level"]) for it in listed] == [
        ("news", "critical"),
        ("orders", "well"),
    ]
    assert backlog.status().reputation == reputation.rates("default")


def test_a_warning_is_no_failure(db) -> None:
    day(mails=1000, complained=3, ago=1)
    day(mails=1000)
    [check] = [it for it in health.examine().checks if it.name == "reputation"]
    assert (check.is_well, check.value) == (True, 0.0015)


# -- the pause


@pytest.fixture
def told() -> Any:
    """Collect what the signal tells."""
    found: list[tuple[str, str]] = []

    def receive(*, category: str, reason: str, **_: object) -> None:
        found.append((category, reason))

    signals.category_paused.connect(receive)
    yield found
    signals.category_paused.disconnect(receive)


def test_bulk_mail_of_a_bad_category_pauses_until_a_person_resumes_it(
    bulk, queue_mail, smtp, epica_mail, travel, told, caplog
) -> None:
    epica_mail(PAUSE_ON_REPUTATION=True)
    day(mails=1000, complained=4)
    bulk(2)
    bulk(1, category="offers")
    queue_mail(queue="bulk_emails", category="news")  # a single mail of the category
    maintenance.dispatch()
    assert [category for category, _ in told] == ["news"]
    assert "paused until a person resumes it" in caplog.text
    assert gates.Gates("default").paused() == ["category news"]
    worker.deliver("bulk_emails")
    assert sorted(it.category for it in EmailLog.objects.filter(status="sent")) == [
        "news",
        "offers",
    ]
    assert EmailLog.objects.filter(status="queued", batch__isnull=False).count() == 2
    maintenance.dispatch()
    assert len(told) == 1, "it is said once"
    call_command("epica_mail", "resume", "--category", "news")
    maintenance.dispatch()
    assert len(told) == 1, "what was sent before does not pause it again"
    worker.deliver("bulk_emails")
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}
    travel(days=1)
    day(mails=1000, complained=5)
    maintenance.dispatch()
    assert len(told) == 2
    assert "0.50% complaints" in told[1][1]


@pytest.mark.parametrize(
    ("category", "keys"),
    [
        ("news", {}),
        ("", {"PAUSE_ON_REPUTATION": True}),
        ("news", {"PAUSE_ON_REPUTATION": True, "TRANSACTIONAL": ["news"]}),
        ("news", {"PAUSE_ON_REPUTATION": True, "COMPLAINT_RATES": [0.1, 0.2]}),
    ],
)
def test_other_mail_does_not_pause(db, epica_mail, category, keys) -> None:
    epica_mail(**keys)
    day(category, mails=1000, complained=4)
    assert reputation.guard("default") == []
    assert not DeliveryGate.objects.exists()


# -- what a pause holds back


def test_a_paused_category_is_nobodys_work(bulk, rings) -> None:
    [log] = bulk()
    outbox.pause(category="news")
    rings.clear()
    assert maintenance.dispatch()["rung"] == 0
    assert claim.claim("bulk_emails") is None
    assert claim.claim_one(log.pk) is None
    assert not waiting.has_claimable("bulk_emails", "default")
    assert all(check.is_well for check in health.examine().checks)


def test_mail_behind_a_paused_category_is_claimed(bulk, deliver) -> None:
    bulk(30)
    [other] = bulk(1, category="offers")
    outbox.pause(category="news")
    assert deliver("bulk_emails") == 1
    other.refresh_from_db()
    assert other.status == Status.SENT


def test_a_worker_at_work_heeds_the_pause(bulk, smtp, epica_mail, monkeypatch) -> None:
    epica_mail(BATCH_SIZE=5)
    bulk(20)

    def pause_after(mail: object) -> None:
        if len(smtp.accepted) == 5:
            outbox.pause(category="news")

    monkeypatch.setattr(
        "django_epica_mail.delivery.worker.judge",
        lambda attempt, result, judge=worker.judge: (pause_after(attempt), judge(attempt, result))[
            1
        ],
    )
    worker.deliver("bulk_emails")
    assert 5 <= EmailLog.objects.filter(status="sent").count() <= 10
    assert EmailLog.objects.filter(status="queued").count() >= 10


def test_a_budget_is_not_kept_for_paused_mail(bulk, queue_mail, deliver, epica_mail) -> None:
    epica_mail(RATES={"smtp": "1/h"}, RATES_STORAGE="memory://")
    bulk(1)
    [other] = bulk(1, category="offers")
    outbox.pause(category="news")
    assert deliver("bulk_emails") == 1
    other.refresh_from_db()
    assert other.status == Status.SENT


@pytest.mark.parametrize("named", [{}, {"queue": "a", "category": "b"}])
def test_one_gate_is_named(db, named) -> None:
    with pytest.raises(ValueError, match="only one of them"):
        outbox.pause(**named)


def test_the_admin_resumes_a_category(site, admin_client, bulk) -> None:
    outbox.pause(category="news")
    gate = {"do": "resume category news"}
    assert admin_client.post("/admin/epica_mail/deliverygate/operate/", gate).status_code == 302
    assert not gates.is_held(category="news")
