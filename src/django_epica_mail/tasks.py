"""Celery's door: the tasks, each a few lines.

They acknowledge early, keep no result, and are harmless when run twice or not at all: the rows
are the queue. None uses Celery's own retry, ETA or countdown, for times live in the rows too.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django.db import connections

from django_epica_mail import delivery, maintenance, transport

_OPTIONS: dict[str, Any] = {"acks_late": False, "ignore_result": True, "max_retries": 0}


@shared_task(name="django_epica_mail.tasks.deliver_emails", **_OPTIONS)
def deliver_emails(queue: str, rung_at: float | None = None) -> int:
    """Send what is due in ``queue``, and return how many mails were settled.

    ``rung_at`` is when the bell was rung, in seconds since the epoch.
    """
    _drop_dead_connections()
    return delivery.deliver(queue, rung_at=rung_at)


@shared_task(name="django_epica_mail.tasks.dispatch_due_emails", **_OPTIONS)
def dispatch_due_emails() -> dict[str, int]:
    """Sweep: rescue what dead workers left, and ring for every queue with something due."""
    _drop_dead_connections()
    return maintenance.dispatch()


@shared_task(name="django_epica_mail.tasks.retry_failed_emails", **_OPTIONS)
def retry_failed_emails() -> int:
    """Queue again what failed for a passing reason; return how many mails."""
    _drop_dead_connections()
    return maintenance.retry_failed()


@shared_task(name="django_epica_mail.tasks.cleanup_old_email_logs", **_OPTIONS)
def cleanup_old_email_logs(days: int | None = None) -> int:
    """Delete finished mail older than ``days`` (``KEEP_DAYS`` if not given); return how many."""
    _drop_dead_connections()
    return maintenance.cleanup(days)


def _drop_dead_connections() -> None:
    """Close database connections that broke or grew too old since the last task.

    As Django does around a request, but for those in a transaction: a test calls tasks in one.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _close_connections(**_: object) -> None:
    transport.close_connections()


worker_process_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.process")
worker_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.worker")
