"""What the site's Celery settings say of our tasks: routes, rate limit and broker."""

from __future__ import annotations

from typing import Any

from celery.app import app_or_default

TASK = "django_epica_mail.tasks.deliver_emails"
"""The task that a ring wakes."""

SINGLE_TASK = "django_epica_mail.tasks.send_email_task"
BULK_TASK = "django_epica_mail.tasks.send_bulk_emails_task"
"""The tasks by which a site names, in ``CELERY_TASK_ROUTES``, where its mail waits."""


def site_route(*, bulk: bool) -> dict[str, Any]:
    """Return what the site's ``CELERY_TASK_ROUTES`` say of mail: ``queue`` and ``priority``.

    Both become the row's. Resolved as Celery does; without a matching entry, an empty dict.
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
    """Return the annotation ``rate_limit`` of ``send_email_task``, as in ``10/m``, if any."""
    task = app_or_default().tasks.get(SINGLE_TASK)
    limit = getattr(task, "rate_limit", None)
    if limit is None:
        return None
    return limit if isinstance(limit, str) and "/" in limit else f"{int(limit)}/s"


def broker_url() -> str:
    """Return the URL of the site's broker, with its password."""
    return str(app_or_default().connection_for_write().as_uri(include_password=True))
