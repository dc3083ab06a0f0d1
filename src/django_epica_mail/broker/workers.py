"""Queries the running workers through the broker, in bounded time."""

from __future__ import annotations

from celery.app import app_or_default

from django_epica_mail.broker import doorbell

TIME_TO_ANSWER = 2.0
"""Seconds that workers have to report the queues they consume."""


def consumed() -> dict[str, list[str]]:
    """Return the queues that each worker consumes; raise the broker's error soon if it is down."""
    app = app_or_default()
    with doorbell.bounded_connection(app) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        inspect = app.control.inspect(timeout=TIME_TO_ANSWER, connection=connection)
        answers = inspect.active_queues() or {}
    return {worker: sorted(queue["name"] for queue in queues) for worker, queues in answers.items()}
