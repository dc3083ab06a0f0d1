"""Reads the site's Celery configuration: task routes, rate limit and broker URL."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import _state
from celery.app import app_or_default
from celery.app.routes import MapRoute
from celery.exceptions import SoftTimeLimitExceeded
from django.core.exceptions import ImproperlyConfigured

from django_epica_mail.routing import BULK_QUEUE, QUEUE

if TYPE_CHECKING:
    from celery import Celery

TASK = "django_epica_mail.tasks.deliver_emails"
"""The task that a ring starts."""

SWEEP_TASK = "django_epica_mail.tasks.dispatch_due_emails"
"""The task that makes good whatever went wrong with rings and workers."""

SINGLE_TASK = "django_epica_mail.tasks.send_email_task"
BULK_TASK = "django_epica_mail.tasks.send_bulk_emails_task"
"""The tasks whose entries in ``CELERY_TASK_ROUTES`` choose the queue of single and bulk mail."""

_MAP_ROUTE: Any = MapRoute
INTERRUPTION = SoftTimeLimitExceeded
"""What is raised in a task that takes longer than its worker allows."""

_FINEST = 86_400
"""A rate is a whole number of mails in up to so many units of time."""


def has_app() -> bool:
    """Return whether this process has made a Celery app, without asking for the current one.

    Celery would then make a default one, which would stay that of all threads, although the site
    makes its own later.
    """
    made: Any = getattr(_state, "_get_active_apps", tuple)  # Celery's only list of them
    return bool(made())


def site_route(*, bulk: bool) -> dict[str, Any]:
    """Return the ``queue`` and ``priority`` that ``CELERY_TASK_ROUTES`` gives mail, for its rows.

    Routes are resolved as Celery resolves them. A key without a value is ``None`` or missing.
    """
    return _route(BULK_TASK if bulk else SINGLE_TASK)


def site_queue(*, bulk: bool) -> str:
    """Return the queue of mail that neither its call nor a rule of ``ROUTES`` sends elsewhere."""
    return site_route(bulk=bulk).get("queue") or (BULK_QUEUE if bulk else QUEUE)


def default_queue() -> str:
    """Return the queue of tasks that no route sends elsewhere: ``CELERY_TASK_DEFAULT_QUEUE``."""
    return str(app_or_default().conf.task_default_queue)


def queue_of(task: str) -> str:
    """Return the queue where Celery puts a task that is called without naming one."""
    return _route(task).get("queue") or default_queue()


def _route(task: str) -> dict[str, Any]:
    app = app_or_default()
    route: Any = None
    if app.conf.task_routes:
        # As for a call without arguments: a router function may read them, and the task.
        route = app.amqp.router.lookup_route(task, (), {}, {}, task_for_routers(app, task))
    if isinstance(route, str):
        return {"queue": route}
    found = dict(route or {})
    queue = found.get("queue")
    return {"queue": getattr(queue, "name", queue), "priority": found.get("priority")}


def task_for_routers(app: Celery, name: str) -> Any:
    """Return the task that router functions are asked with; ``None`` while nothing would read it.

    Celery makes the tasks of an app once they are asked for. That takes a process's first mail
    milliseconds, and handlers of ``on_after_finalize`` that a site connects later never run.
    """
    known: Any = app
    asks_functions = any(not isinstance(it, _MAP_ROUTE) for it in known.amqp.router.routes)
    return app.tasks.get(name) if known.finalized or asks_functions else None


def task_queues() -> set[str]:
    """Return the names in ``CELERY_TASK_QUEUES``; empty if the site lists none."""
    queues: Any = app_or_default().conf.task_queues or ()
    return {str(getattr(queue, "name", queue)) for queue in queues}


def site_rate() -> str | None:
    """Return the site's ``rate_limit`` for ``send_email_task``, such as ``10/m``, or ``None``.

    As in Celery, a number is per second, may be a fraction, and 0 limits nothing. Half a mail a
    second is written ``1/2s``. Raises ``ImproperlyConfigured`` for what is not a rate.
    """
    task = app_or_default().tasks.get(SINGLE_TASK)
    return _rate(str(getattr(task, "rate_limit", None) or 0))


@lru_cache(maxsize=4)
def _rate(written: str) -> str | None:
    amount, _, unit = written.partition("/")
    try:
        exact = Fraction(amount.strip())
    except (ValueError, ZeroDivisionError):
        raise ImproperlyConfigured(
            f"The rate_limit of {SINGLE_TASK} is no rate: {amount[:20]!r}."
        ) from None
    if exact <= 0:
        return None
    rate = exact.limit_denominator(_FINEST) or Fraction(1, _FINEST)
    window = "" if rate.denominator == 1 else rate.denominator
    return f"{rate.numerator}/{window}{unit.strip() or 's'}"


def broker_urls(app: Celery) -> list[str | None]:
    """Return the URLs of the site's brokers, password included; ``None`` is the configured one.

    Several URLs of Sentinel are those of one broker.
    """
    connection = app.connection_for_write()
    if "sentinel" in str(connection.transport_cls).lower() or len(connection.alt) < 2:
        return [None]
    return list(connection.alt)
