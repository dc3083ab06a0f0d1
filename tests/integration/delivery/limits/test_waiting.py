"""What waits in a queue: whether the sweep rings for it, and when a turn of a slowed domain is."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from django_epica_mail import maintenance, outbox
from django_epica_mail.broker import doorbell
from django_epica_mail.delivery.limits import slowed_domains, waiting
from django_epica_mail.models import SlowedDomain
from django_epica_mail.retry import Failure, Kind, Scope


@pytest.fixture
def slow(smtp, queue_mail) -> None:
    """Slow a domain down, and queue a mail to it."""
    queue_mail("to@slow.example")
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too fast")
    slowed_domains.complain("smtp", "slow.example", failure, time.monotonic() - 5, "default")


def test_the_sweep_rings_for_a_slowed_domain_when_its_turn_has_come(slow, rings, travel) -> None:
    SlowedDomain.objects.update(next_at=SlowedDomain.objects.get().next_at + timedelta(seconds=20))
    slowed_domains.forget()
    rings.clear()
    assert not waiting.has_claimable("emails", "default")
    assert maintenance.dispatch()["rung"] == 0
    travel(seconds=21)
    assert waiting.has_claimable("emails", "default")
    assert maintenance.dispatch()["rung"] == 1
    assert rings == ["emails"]


def test_other_mail_is_rung_for_at_once(slow, queue_mail) -> None:
    queue_mail("to@fast.example")
    assert waiting.has_claimable("emails", "default")


@pytest.fixture
def later(monkeypatch) -> list[float | None]:
    """Record how long the rings are ahead of their time."""
    seconds: list[float | None] = []

    def publish(app: object, queue: str, *, after: float | None = None, **_: Any) -> bool:
        seconds.append(after)
        return True

    monkeypatch.setattr(doorbell, "_publish", publish)
    return seconds


def test_a_ring_for_the_next_turn_comes_when_it_has_come(slow, later) -> None:
    waiting.ring_for_turn("emails")
    (seconds,) = later
    assert seconds is not None
    assert 0 < seconds < 1


@pytest.mark.parametrize("why", ["other queue", "paused queue", "paused transport", "far away"])
def test_no_ring_for_what_would_find_nothing(slow, later, why, travel) -> None:
    if why == "paused queue":
        outbox.pause(queue="emails")
    elif why == "paused transport":
        outbox.pause(transport="smtp")
    elif why == "far away":
        slowed_domains.forget()
        far = SlowedDomain.objects.get().next_at + timedelta(minutes=30)
        SlowedDomain.objects.update(next_at=far)
    waiting.ring_for_turn("newsletters" if why == "other queue" else "emails")
    assert later == []
