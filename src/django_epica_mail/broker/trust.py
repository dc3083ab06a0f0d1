"""Decides what a message may say: no entries of a bulk call, and no time limit of a delivery."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

from celery import Task, current_app
from celery.signals import task_prerun
from celery.worker.request import Request

from django_epica_mail import conf
from django_epica_mail.broker.celery_config import BULK_TASK

_CHAIN = "epica_mail_chain"
"""The attribute of a request that keeps its chain as it came."""


_RECORD_SECONDS = 30
"""Seconds that a bulk call has, after it was interrupted, to record what it has done."""


class DeliveryRequest(Request):
    """The message of a delivery, as a worker takes it, with no time limit but ours.

    Whoever can write to the broker could otherwise have a worker killed twice while it sends a
    mail, which then fails. The site's own limits are meant for its own tasks.
    """

    @property
    def time_limits(self) -> tuple[int, int]:
        """The seconds after which the task is killed, and after which it is interrupted."""
        seconds = conf.get().task_seconds
        return seconds, seconds

    @time_limits.setter
    def time_limits(self, told: object) -> None:
        """Ignore what the message says."""


class BulkRequest(DeliveryRequest):
    """The message of a bulk call, likewise: an entry that never ends is interrupted, and refused.

    A worker that is killed instead records nothing, and the next one would begin it again.
    """

    @property
    def time_limits(self) -> tuple[int, int]:
        """The seconds after which the task is killed, and after which it is interrupted."""
        seconds = conf.get().task_seconds
        return seconds + _RECORD_SECONDS, seconds

    @time_limits.setter
    def time_limits(self, told: object) -> None:
        """Ignore what the message says."""


def check(task: Any) -> bool:
    """Return whether the entries of a bulk call came through the broker.

    Raises ``PermissionError`` if they did, unless the site trusts its broker and has set
    ``EPICA_MAIL["BULK_ENTRIES_FROM_BROKER"]``.
    """
    is_foreign = _came_through_broker(task)
    if is_foreign and not conf.get().bulk_entries_from_broker:
        raise PermissionError(
            "The entries of a bulk call came through the broker, where anybody with access to it "
            "could write them. Call send_bulk_emails_task.delay() in a process that has the site's "
            "database, or, if you trust everybody who can write to the broker, set "
            "EPICA_MAIL['BULK_ENTRIES_FROM_BROKER'] = True."
        )
    return is_foreign


def _came_through_broker(task: Any) -> bool:
    """Return whether the message that this worker is executing is the call, or holds it.

    It may hold it as a callback, in a chain, a group or a chord, or for one of Celery's own tasks
    that call another, by name or as a signature.
    """
    if any(name.startswith("celery.backends.") for name, _ in _frames()):
        return True  # a callback of a message, for which no task need be executing
    executing: Any = current_app.current_worker_task
    if executing is None:
        return False
    # A message can claim to be eager, so it must be true as well.
    if executing.request.is_eager and any(code is Task.apply.__code__ for _, code in _frames()):
        return False
    is_call = executing.name == task.name and not task.request.called_directly
    return is_call or any(it == BULK_TASK for it in _named(executing))


def _frames() -> Iterator[tuple[str, CodeType]]:
    """Yield the module and the code of each function that led here."""
    frame = sys._getframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "")), frame.f_code
        frame = frame.f_back  # type: ignore[assignment]


def _named(task: Task[Any, Any]) -> Iterator[object]:
    """Yield the names of the tasks that the message of a task calls or passes on."""
    request: Any = task.request
    for part in (
        *(request.args, request.kwargs, request.callbacks, request.errbacks),
        *(request.chain, request.chord, getattr(request, _CHAIN, None)),
    ):
        yield from _tasks_in(part)


def _tasks_in(form: object) -> Iterator[object]:
    if isinstance(form, str):
        yield form
    elif isinstance(form, dict):
        for value in form.values():
            yield from _tasks_in(value)
    elif isinstance(form, (list, tuple)):
        for value in form:
            yield from _tasks_in(value)


def _keep_chain(task: Any, **_: object) -> None:
    """Keep the chain of a message: Celery before 5.6 takes the next call out before it calls it."""
    if task.request.chain:
        setattr(task.request, _CHAIN, list(task.request.chain))


task_prerun.connect(_keep_chain, dispatch_uid="django_epica_mail.trust")
