"""The periodic tasks, for plain beat and in the tables of django-celery-beat."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app
from celery.beat import ScheduleEntry
from django.apps import apps
from django.db import connection
from django.utils import timezone

from django_epica_mail import schedule
from django_epica_mail.schedule import SCHEDULE

SITE = apps.get_app_config("epica_mail")


def entry(name: str) -> ScheduleEntry:
    """Return an entry as beat makes it from the settings."""
    return ScheduleEntry(name=name, app=current_app, **SCHEDULE[name])


def minutes_of_a_day(name: str) -> list[datetime]:
    """Return the minutes of one day in which beat runs an entry."""
    when = entry(name).schedule
    start = datetime(2026, 3, 10, tzinfo=timezone.get_default_timezone())
    minutes = (start + timedelta(minutes=number) for number in range(24 * 60))
    return [it for it in minutes if it.minute in when.minute and it.hour in when.hour]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("dispatch-due-emails", {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 0}),
        ("retry-failed-emails", 0),
        ("cleanup-old-email-logs", 0),
        ("read-bounces", {}),
    ],
)
def test_every_entry_runs_a_task_of_the_package(db, name: str, result: object) -> None:
    assert current_app.tasks[entry(name).task].apply().get() == result
    assert len(SCHEDULE) == 4


def test_the_sweep_runs_every_5_seconds_and_may_wait_for_a_worker() -> None:
    sweep = entry("dispatch-due-emails")
    assert sweep.schedule.run_every == timedelta(seconds=5)
    assert sweep.options["expires"] > 10 * sweep.schedule.run_every.total_seconds()


def test_each_entry_runs_at_its_time() -> None:
    assert {it.minute for it in minutes_of_a_day("retry-failed-emails")} == {0, 30}
    assert len(minutes_of_a_day("retry-failed-emails")) == 48
    assert len(minutes_of_a_day("read-bounces")) == 288
    (night,) = minutes_of_a_day("cleanup-old-email-logs")
    assert (night.hour, night.minute) == (3, 0)


def test_without_django_celery_beat_nothing_is_queried(db, django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        schedule.offer(SITE, "default")


@pytest.fixture
def beat(transactional_db: None, settings: Any) -> Iterator[SimpleNamespace]:
    """Install django-celery-beat with its tables, and return its models."""
    pytest.importorskip("django_celery_beat", reason="it does not support this Django")
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_celery_beat"]
    models = list(apps.get_app_config("django_celery_beat").get_models())
    with connection.schema_editor() as editor:
        for model in models:
            editor.create_model(model)
    yield SimpleNamespace(**{model.__name__: model for model in models})
    with connection.schema_editor() as editor:
        for model in reversed(models):
            editor.delete_model(model)


def test_the_entries_are_added_to_the_tables_of_beat(beat) -> None:
    schedule.offer(SITE, "default")
    rows = {row.name: row for row in beat.PeriodicTask.objects.all()}
    assert {name: row.task for name, row in rows.items()} == {
        name: it["task"] for name, it in SCHEDULE.items()
    }
    sweep = rows["dispatch-due-emails"]
    assert (sweep.interval.every, sweep.interval.period) == (5, "seconds")
    assert (sweep.expire_seconds, sweep.enabled) == (600, True)
    clean_up = rows["cleanup-old-email-logs"]
    assert (clean_up.crontab.hour, clean_up.crontab.minute) == ("3", "0")
    assert clean_up.expire_seconds is None


def test_edited_entries_stay_and_deleted_ones_return(beat) -> None:
    schedule.offer(SITE, "default")
    every_second = beat.IntervalSchedule.objects.create(every=1, period="seconds")
    sweep = beat.PeriodicTask.objects.get(name="dispatch-due-emails")
    sweep.interval, sweep.enabled = every_second, False
    sweep.save()
    beat.PeriodicTask.objects.get(name="retry-failed-emails").delete()
    schedule.offer(SITE, "default")
    sweep.refresh_from_db()
    assert (sweep.interval, sweep.enabled) == (every_second, False)
    assert beat.PeriodicTask.objects.filter(name="retry-failed-emails").count() == 1
    assert beat.PeriodicTask.objects.count() == len(SCHEDULE)


def test_only_the_database_that_beat_reads_gets_the_entries(beat) -> None:
    schedule.offer(SITE, "other")
    assert not beat.PeriodicTask.objects.exists()


def test_an_interval_of_the_site_is_used_again(beat) -> None:
    own = beat.IntervalSchedule.objects.create(every=5, period="seconds")
    schedule.offer(SITE, "default")
    assert beat.PeriodicTask.objects.get(name="dispatch-due-emails").interval == own
    assert beat.IntervalSchedule.objects.count() == 1


def test_tables_that_do_not_exist_yet_are_left_alone(beat) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(beat.PeriodicTask)
    try:
        schedule.offer(SITE, "default")
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(beat.PeriodicTask)
    assert not beat.IntervalSchedule.objects.exists()


def test_what_beat_is_to_run_is_read_from_both_places(beat, monkeypatch) -> None:
    schedule.offer(SITE, "default")
    tasks = [it["task"] for it in SCHEDULE.values()]
    assert sorted(schedule.planned()) == [(name, None) for name in sorted(tasks)]
    beat.PeriodicTask.objects.filter(task=tasks[0]).update(queue="shop")
    beat.PeriodicTask.objects.filter(task=tasks[1]).update(enabled=False)
    monkeypatch.setitem(current_app.conf, "beat_schedule", {"own": {"task": tasks[1]}})
    assert dict(schedule.planned()) == {**dict.fromkeys(tasks), tasks[0]: "shop"}
