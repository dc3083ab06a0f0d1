"""The periodic tasks, for a plain ``beat_schedule`` and for django-celery-beat's database.

With plain beat, add to the site's settings::

    from django_epica_mail.schedule import SCHEDULE
    CELERY_BEAT_SCHEDULE = {**SCHEDULE}

With django-celery-beat, ``migrate`` adds missing entries to its tables. It leaves existing entries
unchanged, so times edited in the admin are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from celery.app import app_or_default
from celery.schedules import crontab, schedule
from django.apps import AppConfig, apps

SWEEP_SECONDS = 5.0

SCHEDULE: dict[str, dict[str, Any]] = {
    "dispatch-due-emails": {
        "task": "django_epica_mail.tasks.dispatch_due_emails",
        "schedule": SWEEP_SECONDS,
        # Keeps sweeps from piling up while no worker runs. It must not be shorter: a worker whose
        # clock is ahead of beat's would find every sweep expired.
        "options": {"expires": 600},
    },
    "retry-failed-emails": {
        "task": "django_epica_mail.tasks.retry_failed_emails",
        "schedule": crontab(minute="*/30"),
    },
    "cleanup-old-email-logs": {
        "task": "django_epica_mail.tasks.cleanup_old_email_logs",
        "schedule": crontab(minute="0", hour="3"),
    },
    "read-bounces": {
        # Does nothing until EPICA_MAIL["BOUNCE_MAILBOX"] is set.
        "task": "django_epica_mail.tasks.read_bounces",
        "schedule": crontab(minute="*/5"),
        "options": {"expires": 600},
    },
}
"""Entries by name: the sweep every 5 s, the retry every 30 min, the clean-up at 03:00, and the
mailbox for bounces every 5 min."""


def offer(sender: AppConfig, using: str, **_: Any) -> None:
    """Add missing entries to django-celery-beat's tables. A receiver of ``post_migrate``.

    An existing entry of the same name is left unchanged, because a person may have edited it. Only
    the database that beat reads gets them.
    """
    if not apps.is_installed("django_celery_beat"):
        return
    from django.db import connections, router
    from django_celery_beat.models import PeriodicTask

    table = PeriodicTask._meta.db_table
    if using != router.db_for_write(PeriodicTask):
        return
    if table not in connections[using].introspection.table_names():
        return  # its migrations have not run yet; this is called again after them
    for name, entry in SCHEDULE.items():
        if not PeriodicTask.objects.using(using).filter(name=name).exists():
            PeriodicTask.objects.using(using).create(
                name=name,
                task=entry["task"],
                expire_seconds=entry.get("options", {}).get("expires"),
                **_when(entry["schedule"], using),
            )


def planned() -> Iterator[tuple[str, str | None]]:
    """Yield each of the periodic tasks that beat is to run, with the queue that its entry names.

    Reads ``CELERY_BEAT_SCHEDULE`` and the tables of django-celery-beat; a site that runs the tasks
    from cron has neither. Raises the database's errors.
    """
    ours = {entry["task"] for entry in SCHEDULE.values()}
    for entry in (app_or_default().conf.beat_schedule or {}).values():
        if isinstance(entry, Mapping) and entry.get("task") in ours:
            queue = (entry.get("options") or {}).get("queue")
            yield str(entry["task"]), getattr(queue, "name", queue)
    if apps.is_installed("django_celery_beat"):
        from django_celery_beat.models import PeriodicTask

        rows = PeriodicTask.objects.filter(enabled=True, task__in=ours)
        for task, queue in rows.values_list("task", "queue"):
            yield task, queue or None


def _when(when: crontab | float, using: str) -> dict[str, Any]:
    """Return the schedule of a periodic task as its field's name and value."""
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule

    if isinstance(when, crontab):
        name, row = "crontab", CrontabSchedule.from_schedule(when)
    else:
        name, row = "interval", IntervalSchedule.from_schedule(schedule(timedelta(seconds=when)))
    if row.pk is None:
        row.save(using=using)
    return {name: row}
