"""Rate limits: how many recipients are sent to, and how long the others wait."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from django.core.exceptions import ImproperlyConfigured
from django.db.models import F
from django.utils import timezone

from devservers.redis import RedisServer
from django_epica_mail import conf
from django_epica_mail.delivery import claim
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.models import EmailLog


@pytest.fixture
def budgets(epica_mail: Any) -> Iterator[Any]:
    """Set the site's rates, counted from zero in this process's memory."""

    def set_rates(**rate: str) -> None:
        rate_limits._budgets.clear()
        epica_mail(RATES=rate, RATES_STORAGE="memory://")

    yield set_rates
    rate_limits._budgets.clear()


def test_a_transport_gets_no_more_than_its_rate(smtp, queue_mail, deliver, budgets) -> None:
    budgets(smtp="3/h")
    for number in range(5):
        queue_mail(f"{number}@example.com")
    assert rate_limits.allowance("smtp") == 3
    assert deliver() == 3
    assert deliver() == 0
    assert rate_limits.allowance("smtp") == 0
    assert len(smtp.accepted) == 3
    assert set(EmailLog.objects.filter(status="queued").values_list("tries", "attempts")) == {
        (0, 0)
    }


def test_a_rate_counts_recipients(smtp, queue_mail, deliver, budgets) -> None:
    budgets(smtp="5/h")
    queue_mail("a@example.com", "b@example.com", "c@example.com")
    queue_mail("d@example.com", "e@example.com", "f@example.com")
    deliver()
    assert len(smtp.accepted) == 1
    assert rate_limits.allowance("smtp") == 2
    assert EmailLog.objects.filter(status="queued").count() == 1


def test_a_mail_larger_than_the_whole_budget_is_sent_alone(
    smtp, queue_mail, deliver, budgets
) -> None:
    budgets(smtp="2/h")
    queue_mail("a@example.com", "b@example.com", "c@example.com")
    assert deliver() == 1
    assert rate_limits.allowance("smtp") == 0


def test_an_urgent_mail_reserves_the_budget_it_waits_for(
    smtp, queue_mail, deliver, budgets
) -> None:
    budgets(smtp="4/s")
    for _ in range(2):
        queue_mail(priority=5)
    deliver()
    urgent = queue_mail(*(f"{it}@example.com" for it in "abcd"), priority=9)
    for _ in range(10):
        queue_mail(priority=5)
    deliver()
    assert len(smtp.accepted) == 13
    assert str(urgent.pk).encode() in smtp.accepted[2].content


def test_a_budget_that_grows_while_the_worker_looks_is_used(
    smtp, queue_mail, deliver, budgets, monkeypatch
) -> None:
    budgets(smtp="4/s")
    queue_mail()
    claimed = claim.claim
    answers = [None]  # the budget was spent at that moment, and is free a moment later

    def claim_late(queue: str, **options: Any) -> claim.Batch | None:
        return answers.pop() if answers else claimed(queue, **options)

    monkeypatch.setattr(claim, "claim", claim_late)
    assert deliver() == 1


def test_a_worker_does_not_spin_over_mail_that_another_is_claiming(
    smtp, queue_mail, deliver, budgets, monkeypatch
) -> None:
    budgets(smtp="4/s")
    queue_mail()
    looks: list[str] = []
    monkeypatch.setattr(claim, "claim", lambda queue, **_: looks.append(queue))
    assert deliver() == 0
    assert len(looks) == 2


def test_nothing_less_urgent_is_sent_while_it_waits(smtp, queue_mail, deliver, budgets) -> None:
    budgets(smtp="4/h")
    queue_mail(priority=5)
    deliver()
    queue_mail(*(f"{it}@example.com" for it in "abcd"), priority=9)
    queue_mail(priority=5)
    assert deliver() == 0
    assert EmailLog.objects.filter(status="queued").count() == 2


def test_a_domains_rate_delays_no_other_domain(smtp, queue_mail, deliver, budgets) -> None:
    budgets(**{"@slow.example": "2/h"})
    for number in range(6):
        queue_mail(f"{number}@SLOW.example")
    queue_mail("quick@example.com")
    deliver()
    arrived = [message.recipients[0] for message in smtp.accepted]
    assert len(arrived) == 3
    assert "quick@example.com" in arrived


def test_mail_over_a_domains_rate_is_postponed_in_order(smtp, queue_mail, deliver, budgets) -> None:
    budgets(**{"@slow.example": "2/h"})
    for number in range(6):
        queue_mail(f"{number}@slow.example")
    deliver()
    waiting = EmailLog.objects.filter(status="queued").order_by("due_at")
    spans = waiting.annotate(span=F("due_at") - F("created_at")).values_list("span", flat=True)
    minutes = [span.total_seconds() / 60 for span in spans]
    assert [round(minute) for minute in minutes] == [90, 120, 150, 180]


def test_urgent_mail_does_not_wait_behind_a_backlog_of_its_domain(
    smtp, queue_mail, deliver, budgets
) -> None:
    budgets(**{"@slow.example": "2/h"})
    for number in range(20):
        queue_mail(f"{number}@slow.example", priority="low")
    deliver()
    urgent = [queue_mail("urgent@slow.example", priority="urgent") for _ in range(2)]
    low = queue_mail("low@slow.example", priority="low")
    deliver()
    minutes = [_minutes_until_due(log) for log in (*urgent, low)]
    assert minutes == [90, 120, 90 + 18 * 30]


def _minutes_until_due(log: EmailLog) -> int:
    log.refresh_from_db()
    return round((log.due_at - log.created_at).total_seconds() / 60)


def test_celerys_rate_limit_annotation_limits_all_mail(
    smtp, queue_mail, deliver, budgets, monkeypatch
) -> None:
    task = current_app.tasks["django_epica_mail.tasks.send_email_task"]
    monkeypatch.setattr(task, "rate_limit", "2/h")
    budgets()
    for number in range(4):
        queue_mail(f"{number}@example.com")
    assert deliver() == 2


def test_the_worker_waits_out_a_short_delay(smtp, queue_mail, deliver, budgets) -> None:
    budgets(smtp="2/s")
    for number in range(3):
        queue_mail(f"{number}@example.com")
    assert deliver() >= 3
    assert len(smtp.accepted) == 3
    assert smtp.accepted[2].time - smtp.accepted[0].time > 0.9


def test_limited_mail_waits_while_the_store_is_unreachable(
    smtp, queue_mail, deliver, epica_mail, caplog
) -> None:
    rate_limits._budgets.clear()
    epica_mail(RATES={"smtp": "100/s"}, RATES_STORAGE="redis://127.0.0.1:1/0")
    queue_mail()
    assert deliver() == 0
    assert "The store of the rate limits is unreachable (ConnectionError)" in caplog.text
    assert EmailLog.objects.get().status == "queued"
    epica_mail(RATES={"other": "100/s"})
    assert deliver() == 1


def test_mail_limited_by_its_domain_alone_keeps_no_other_waiting_for_the_store(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    rate_limits._budgets.clear()
    epica_mail(RATES={"@slow.example": "100/s"}, RATES_STORAGE="redis://127.0.0.1:1/0")
    slow = [queue_mail(f"{number}@slow.example") for number in range(2)]
    queue_mail("quick@example.com")
    assert deliver() == 1
    assert [*smtp.accepted[0].recipients] == ["quick@example.com"]
    for log in slow:
        log.refresh_from_db()
        assert log.status == "queued"
        assert log.due_at - log.created_at > timedelta(seconds=5)
    assert slow[0].due_at < slow[1].due_at


@pytest.mark.parametrize("command", ["SET {} x", "RPUSH {} x", "LPUSH {} x y z", "SADD {} x"])
def test_what_somebody_writes_under_a_key_of_a_rate_stops_no_mail(
    smtp, queue_mail, deliver, epica_mail, tmp_path, command
) -> None:
    rate_limits._budgets.clear()
    with RedisServer(tmp_path) as redis, redis.client() as client:
        epica_mail(RATES={"smtp": "3/h", "@example.net": "1/h"}, RATES_STORAGE=redis.url())
        queue_mail("a@example.net")
        deliver()
        for key in client.keys("*"):
            client.delete(key)
            client.execute_command(*command.format(key.decode()).split())
        for address in ("b@example.net", "c@example.com", "d@example.com", "e@example.com"):
            queue_mail(address)
        deliver()
        assert 1 + 3 <= len(smtp.accepted) <= 1 + 4, "counted again from 0, once or twice"
    rate_limits._budgets.clear()


@pytest.mark.parametrize(
    "value",
    [[], {"": "1/s"}, {"@": "1/s"}, {"ses": "0/s"}, {"ses": 5}, {"ses": "5"}, {"ses": "5/x"}],
)
def test_an_invalid_rate_is_refused(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="RATES"):
        conf.parse({"RATES": value})


@pytest.mark.parametrize("rate", ["14/s", "1000/h", "20000/d", "5/10s", "3/minute"])
def test_a_valid_rate_is_accepted(rate: str) -> None:
    assert conf.parse({"RATES": {"ses": rate}}).rates == {"ses": rate}


def test_a_rate_of_an_international_domain_counts_every_spelling(
    smtp, queue_mail, deliver, budgets
) -> None:
    budgets(**{"@Bücher.example": "1/h"})
    queue_mail("a@bücher.example")
    queue_mail("b@xn--bcher-kva.example")
    deliver()
    assert len(smtp.accepted) == 1


def test_times_of_the_future_in_the_store_put_mail_off_no_longer_than_the_rate_lasts(
    smtp, queue_mail, deliver, budgets
) -> None:
    budgets(**{"@example.com": "1/h"})
    assert rate_limits.take("smtp", ["a@example.com"]) is None
    current: Any = rate_limits._current()
    for uses in current._window.storage.events.values():
        for use in uses:
            use.atime = use.expiry = 1e13  # as somebody has written it
    limited, other = queue_mail("b@example.com"), queue_mail("c@example.net")
    deliver()
    for row in (limited, other):
        row.refresh_from_db()
    assert (limited.status, other.status) == ("queued", "sent")
    assert limited.due_at < timezone.now() + timedelta(hours=2.1)
