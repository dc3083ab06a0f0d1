"""System checks of how the site's Celery is configured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from celery import _state
from celery.app import app_or_default
from celery.app.defaults import DEFAULTS
from celery.app.routes import MapRoute, prepare
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage

from django_epica_mail import schedule
from django_epica_mail.broker import celery_config, doorbell
from django_epica_mail.broker.celery_config import BULK_TASK, SINGLE_TASK

_MAP_ROUTE: Any = MapRoute
_DEFAULT_SCHEDULER: Any = DEFAULTS["beat_scheduler"]
_PERIODIC_TASKS = frozenset(entry["task"] for entry in schedule.SCHEDULE.values())
_UNRELATED_TASK = "unrelated.tasks.task"


def check_app() -> Iterator[CheckMessage]:
    """Warn if threads of this process do not find the site's Celery app.

    Looks in a new thread, like a web server's: an app may be current only in the main thread. Some
    sites make it with their URLs, which Django's own checks import too.
    """
    if not celery_config.has_app():
        with contextlib.suppress(Exception):
            import_module(getattr(settings, "ROOT_URLCONF"))  # noqa: B009 - a site may have none
    with ThreadPoolExecutor(1) as threads:
        app = threads.submit(app_or_default).result()
    if doorbell.delivers_here(app):
        return
    if app.main == "default" or not app.conf.broker_write_url:
        yield checks.Warning(
            "Threads of this process do not find the site's Celery app: their rings go nowhere, "
            "and mail waits for the sweep.",
            hint="Import the app in proj/__init__.py, as Celery's Django guide shows: "
            "from .celery import app as celery_app.",
            id="epica_mail.W007",
        )


def check_single_app() -> Iterator[CheckMessage]:
    """Warn of several Celery apps of which the site has not said which one is its default.

    The app made last is current then, in the thread that made it.
    """
    used, chosen = app_or_default(), getattr(_state, "default_app", None)
    active: Any = getattr(_state, "_get_active_apps", tuple)  # Celery's only list of them
    apps = [it for it in active() if it.set_as_current and it.main != "default"]
    if len(apps) > 1 and used is not chosen:
        names = ", ".join(sorted(repr(str(it.main)) for it in apps))
        yield checks.Warning(
            f"This process has {len(apps)} Celery apps ({names}), and mail uses the one made last, "
            f"{str(used.main)!r}: its broker, its queues and its routes.",
            hint="Make the others with Celery(..., set_as_current=False), or call set_default() "
            "and set_current() of the app whose workers send mail, once all are made.",
            id="epica_mail.W061",
        )


def check_queues(named: Iterable[str]) -> Iterator[CheckMessage]:
    """Warn of queues that Celery neither knows nor creates; ``named`` are those of the settings."""
    app = app_or_default()
    if app.conf.task_create_missing_queues:
        return
    periodic = {celery_config.queue_of(entry["task"]) for entry in schedule.SCHEDULE.values()}
    missing = sorted({*named, *periodic} - set(app.amqp.queues))
    if missing:
        yield checks.Warning(
            f"CELERY_TASK_CREATE_MISSING_QUEUES is off, and CELERY_TASK_QUEUES lacks "
            f"{', '.join(map(repr, missing))}: nobody is rung for the mail in them.",
            hint="Add them to CELERY_TASK_QUEUES, as kombu.Queue(name), or route mail elsewhere.",
            id="epica_mail.W060",
        )


def check_task_routes() -> Iterator[CheckMessage]:
    """Warn of routes made for every task, which decide where mail waits."""
    for task in (SINGLE_TASK, BULK_TASK):
        queue = _queue_of_catch_all(task)
        if queue is not None:
            yield checks.Warning(
                f"A catch-all entry of CELERY_TASK_ROUTES sends {task} to {queue!r} too, so mail "
                "waits there, behind all other tasks.",
                hint=f"Before it, add an entry for this task: {{{task!r}: {{'queue': ...}}}}.",
                id="epica_mail.W003",
            )


def check_beat() -> Iterator[CheckMessage]:
    """Warn of our periodic tasks in the settings beside django-celery-beat, which rewrites its
    tables from them at each start.
    """
    conf = app_or_default().conf
    names = [
        name
        for name, entry in (conf.beat_schedule or {}).items()
        if isinstance(entry, Mapping) and entry.get("task") in _PERIODIC_TASKS
    ]
    scheduler = str(conf.beat_scheduler)
    is_chosen = scheduler == "django" or scheduler.startswith("django_celery_beat.")
    may_be_chosen = is_chosen or scheduler == _DEFAULT_SCHEDULER  # by beat's option -S
    if names and may_be_chosen and apps.is_installed("django_celery_beat"):
        when = "At each start" if is_chosen else "Started with -S django"
        yield checks.Warning(
            f"CELERY_BEAT_SCHEDULE has tasks of mail ({', '.join(sorted(names))}), and "
            f"django_celery_beat is installed. {when}, beat overwrites its tables with them: what "
            "was edited in the admin is lost.",
            hint="Take them out of CELERY_BEAT_SCHEDULE: migrate puts them into the tables."
            if is_chosen
            else "Take them out of CELERY_BEAT_SCHEDULE: migrate puts them into the tables. If "
            "beat does not run from the tables, silence this warning.",
            id="epica_mail.W081",
        )


def _queue_of_catch_all(task: str) -> str | None:
    """Return the queue that a pattern for tasks in general gives to ``task``, or ``None``.

    As in Celery, the first entry that matches counts. Router functions are not called.
    """
    maps: Any = prepare(app_or_default().conf.task_routes)
    for routes in (it for it in maps if isinstance(it, _MAP_ROUTE)):
        if task in routes.map:
            return None
        for pattern, route in routes.patterns.items():
            if pattern.match(task):
                queue = route if isinstance(route, str) else dict(route).get("queue")
                return getattr(queue, "name", queue) if pattern.match(_UNRELATED_TASK) else None
    return None
