"""Queries the running workers through the broker, in bounded time."""

from __future__ import annotations

from celery.app import app_or_default

from django_epica_mail.broker import celery_config, publisher
from django_epica_mail.replies import reply_text

TIME_TO_ANSWER = 2.0
"""Seconds that workers have to report the queues they consume."""


_REFUSALS = frozenset({"NoPermissionError", "AccessRefused"})
"""What drivers raise if the broker does not let its user do something: redis-py and py-amqp."""


class NotPermitted(Exception):  # noqa: N818
    """The broker is well, and does not let this process's user ask the workers."""


def consumed() -> dict[str, list[str]]:
    """Return the queues that each worker consumes; raise the broker's error soon if it is down.

    Raises ``NotPermitted`` if the broker answers, but refuses the question.
    """
    app = app_or_default()
    with publisher.bounded_connection(app) as connection:
        tries = len(celery_config.broker_urls(app))
        connection.ensure_connection(max_retries=tries, interval_start=0, interval_step=0)
        inspect = app.control.inspect(timeout=TIME_TO_ANSWER, connection=connection)
        try:
            answers = inspect.active_queues() or {}
        except Exception as error:
            refusal = next((it for it in (error, error.__cause__) if _is_refusal(it)), None)
            if refusal is None:
                raise
            raise NotPermitted(reply_text(str(refusal))) from error
    return {worker: sorted(queue["name"] for queue in queues) for worker, queues in answers.items()}


def _is_refusal(error: BaseException | None) -> bool:
    return type(error).__name__ in _REFUSALS
