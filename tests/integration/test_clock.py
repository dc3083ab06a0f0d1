"""The database's clock, as rows are compared with it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from django_epica_mail import clock
from django_epica_mail.models import EmailLog


def read(*delays: float) -> list[datetime]:
    """Return the database's time after each delay."""
    columns = {f"after_{number}": clock.now(delay) for number, delay in enumerate(delays)}
    found = EmailLog.objects.annotate(**columns).values_list(*columns).get()
    return list(found)


def test_the_database_returns_its_time_in_utc(queue_mail) -> None:
    queue_mail()
    (now,) = read(0)
    assert now.utcoffset() == timedelta()
    assert abs(now - timezone.now()) < timedelta(minutes=1)


def test_a_delay_is_added_by_the_database(queue_mail) -> None:
    queue_mail()
    before, now, later = read(-0.25, 0, 86_400)
    assert now - before == pytest.approx(timedelta(seconds=0.25), abs=timedelta(milliseconds=2))
    assert later - now == pytest.approx(timedelta(days=1), abs=timedelta(milliseconds=2))


def test_travel_moves_the_time_of_the_database(queue_mail, travel) -> None:
    log = queue_mail(expires_after=60)
    assert not EmailLog.objects.filter(expires_at__lt=clock.now()).exists()
    travel(minutes=2)
    assert EmailLog.objects.get(expires_at__lt=clock.now()) == log
