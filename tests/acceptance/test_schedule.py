"""Test beat with the schedule from settings and with django-celery-beat's rows."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import transaction

from django_epica_mail import outbox
from django_epica_mail.broker import doorbell
from django_epica_mail.schedule import SCHEDULE

# django-celery-beat does not support Django 6.1; there, only plain beat is tested.
KINDS = ["plain", "database"] if find_spec("django_celery_beat") else ["plain"]


def edit_the_sweep() -> list[Any]:
    """Edit the sweep's interval as in the admin and migrate again; return the tasks' names."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    every_second, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    sweep = PeriodicTask.objects.get(name="dispatch-due-emails")
    assert (sweep.interval.every, sweep.expire_seconds) == (5, 600)
    sweep.interval = every_second
    sweep.save()
    clean_up = PeriodicTask.objects.get(name="cleanup-old-email-logs")
    assert (clean_up.crontab.hour, clean_up.crontab.minute) == ("3", "0")
    assert str(clean_up.crontab.timezone) == "Europe/Istanbul"
    call_command("migrate", verbosity=0)
    assert PeriodicTask.objects.get(name="dispatch-due-emails").interval == every_second
    return sorted(PeriodicTask.objects.filter(name__in=SCHEDULE).values_list("name", flat=True))


def queue_and_lose_the_ring() -> None:
    with transaction.atomic():
        outbox.enqueue(EmailMessage("S", "M", None, ["to@example.com"]))
        doorbell._bell.silent_until = float("inf")


@pytest.mark.parametrize("kind", KINDS)
def test_beat_sweeps_by_settings_or_by_edited_rows(open_site, kind: str) -> None:
    site = open_site()
    options: dict[str, Any] = {}
    if kind == "database":
        site.env["SHOP_BEAT"] = "database"
        site.env["PYTHONWARNINGS"] = ""
        assert site.call(edit_the_sweep) == sorted(SCHEDULE)
        options = {"extra_args": ("-S", "django")}
    site.call(queue_and_lose_the_ring)
    assert site.waiting_rings() == 0
    site.start_worker()
    site.start_beat(**options)
    site.wait_for(sent=1)
