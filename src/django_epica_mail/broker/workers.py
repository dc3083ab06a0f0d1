"""Queries the running workers through the broker, in bounded time."""

from __future__ import annotations

from celery.app import app_or_default

from django_epica_mail.broker import celery_config, publisher

TIME_TO_ANSWER = 2.0
"""Seconds that workers have to report the queues they consume."""


def consumed() -> dict[str, list[str]]:
    """Return the queues that each worker consumes; raise the broker's error soon if it is down."""
    app = app_or_default()
    with publisher.bounded_connection(app) as connection:
        tries = len(celery_config.broker_urls(app))
        connection.ensure_connection(max_retries=tries, interval_start=0, interval_step=0)
        inspect = app.control.inspect(timeout=TIME_TO_ANSWER, connection=connection)
        answers = inspect.active_queues() or {}
    return {worker: sorted(queue["name"] for queue in queues) for worker, queues in answers.items()}
