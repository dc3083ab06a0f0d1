"""Reads the site's Celery configuration: task routes, rate limit and broker URL."""

from __future__ import annotations

from typing import Any

from celery.app import app_or_default

TASK = "django_epica_mail.tasks.deliver_emails"
"""The task that a ring starts."""

SINGLE_TASK = "django_epica_mail.tasks.send_email_task"
BULK_TASK = "django_epica_mail.tasks.send_bulk_emails_task"
"""The tasks whose entries in ``CELERY_TASK_ROUTES`` choose the queue of single and bulk mail."""


def site_route(*, bulk: bool) -> dict[str, Any]:
    """Return the ``queue`` and ``priority`` that ``CELERY_TASK_ROUTES`` gives mail, for its rows.

    Routes are resolved as Celery resolves them. A key without a value is ``None`` or missing.
    """
    app = app_or_default()
    task = BULK_TASK if bulk else SINGLE_TASK
    route: Any = app.amqp.router.lookup_route(task) if app.conf.task_routes else None
    if isinstance(route, str):
        return {"queue": route}
    found = dict(route or {})
    queue = found.get("queue")
    return {"queue": getattr(queue, "name", queue), "priority": found.get("priority")}


def site_rate() -> str | None:
    """Return the site's ``rate_limit`` for ``send_email_task``, such as ``10/m``, or ``None``."""
    task = app_or_default().tasks.get(SINGLE_TASK)
    limit = getattr(task, "rate_limit", None)
    if limit is None:
        return None
    return limit if isinstance(limit, str) and "/" in limit else f"{int(limit)}/s"


def broker_url() -> str:
    """Return the URL of the site's broker, password included."""
    return str(app_or_default().connection_for_write().as_uri(include_password=True))
