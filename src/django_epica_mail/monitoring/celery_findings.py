"""Finds what keeps Celery from running the work of mail: settings, queues without a worker."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from celery.app import app_or_default
from django.conf import settings

from django_epica_mail import clock, conf, schedule
from django_epica_mail.broker import celery_config, doorbell, workers
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.models import DeliveryAttempt
from django_epica_mail.monitoring import backlog, health
from django_epica_mail.queueing import names

_NO_MAIL = "its mail is not sent"
_OFF = "remote control is off"

_CLOCKS_DIFFER = timedelta(minutes=5)
"""The clocks of the hosts are assumed to agree this closely: a worker's makes an attempt's id."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or something worth knowing."""

    level: str
    """``error``, ``warning`` or ``info``."""
    id: str
    """A stable name for scripts; for a system check, the check's id."""
    text: str
    remedy: str


def of_settings() -> Iterator[Finding]:
    """Find Celery's own settings that are unfit for mail."""
    app = app_or_default()
    if doorbell.delivers_here(app):
        if not settings.DEBUG:
            yield Finding(
                "warning",
                "always-eager",
                "Celery runs tasks at once, so each commit sends its own mail and waits for the "
                "server.",
                "Unset CELERY_TASK_ALWAYS_EAGER, and run a worker.",
            )
        return
    options = app.conf.broker_transport_options or {}
    if "redis" in str(app.conf.broker_write_url) and "socket_timeout" not in options:
        yield Finding(
            "info",
            "socket-timeout",
            "A Redis that hangs blocks the site's own tasks forever; only rings have a timeout.",
            "Set CELERY_BROKER_TRANSPORT_OPTIONS = {'socket_timeout': 5, "
            "'socket_connect_timeout': 5}.",
        )


def of_limits() -> Iterator[Finding]:
    """Find rate limits of the tasks that deliver mail: they delay it, and do not limit it."""
    for name in (celery_config.TASK, celery_config.SWEEP_TASK, celery_config.BULK_TASK):
        limit = getattr(app_or_default().tasks.get(name), "rate_limit", None)
        if limit:
            yield Finding(
                "warning",
                "task-rate-limit",
                f"Each worker starts {name} at most {limit} by CELERY_TASK_ANNOTATIONS: mail waits "
                "for it, but each run sends whatever is due.",
                "Remove that rate_limit. To limit mail, set EPICA_MAIL['RATES'].",
            )


def of_results() -> Iterator[Finding]:
    """Find settings of results that do not suit mail."""
    settings_of_celery = app_or_default().conf
    if not settings_of_celery.result_backend:
        return  # results are read from the rows
    expires, days = settings_of_celery.result_expires, conf.get().keep_days
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if seconds and seconds < timedelta(days=days).total_seconds():
        yield Finding(
            "warning" if seconds < timedelta(days=1).total_seconds() else "info",
            "result-expires",
            f"Results are kept for {seconds:g} s, but mail for {days} days: AsyncResult(id) "
            "reports PENDING for mail whose result has expired.",
            f"Set CELERY_RESULT_EXPIRES = timedelta(days={days}).",
        )
    if not settings_of_celery.result_extended:
        yield Finding(
            "info",
            "result-extended",
            "Results are stored without the task's name: the admin shows only ids.",
            "Set CELERY_RESULT_EXTENDED = True.",
        )
    if not settings_of_celery.task_track_started:
        yield Finding(
            "info",
            "track-started",
            "AsyncResult.status is PENDING for mail that a worker is sending.",
            "Set CELERY_TASK_TRACK_STARTED = True.",
        )


def of_rates() -> Iterator[Finding]:
    """Find a store in which the rates cannot be counted, by counting in it."""
    problem = None if rate_limits.problem() else rate_limits.store_problem()
    if problem is not None:
        where = "RATES_STORAGE" if conf.get().rates_storage else "Celery's Redis"
        yield Finding(
            "error",
            "rates-store",
            f"The rates cannot be counted in {where} ({problem}): limited mail waits.",
            "Start it, or correct its URI. With an ACL, the worker's user needs the command "
            "evalsha, and the keys LIMITS* (behind global_keyprefix, if that is set).",
        )


def of_workers(using: str) -> Iterator[Finding]:
    """Find the queues of mail and of the periodic tasks that no worker consumes.

    Raises the database's errors.
    """
    wanted = dict.fromkeys(queues(using), _NO_MAIL)
    for queue, tasks in periodic_queues().items():
        effect = f"beat's tasks do not run there ({', '.join(sorted(tasks))})"
        wanted[queue] = f"{wanted[queue]}, and {effect}" if queue in wanted else effect
    if doorbell.delivers_here(app_or_default()):
        return
    if not _may_be_asked():
        yield from _judge_by_work(wanted, _OFF, was_asked=False)
        return
    try:
        consumed = {queue for queues in workers.consumed().values() for queue in queues}
    except workers.NotPermitted as refusal:
        yield Finding(
            "warning",
            "workers-not-asked",
            f"The broker runs, but does not let its user of this process ask the workers: "
            f"{refusal}.",
            "Run doctor as the workers' user of the broker. With an ACL of Redis, asking needs "
            "&*, +publish and ~*.celery.pidbox*.",
        )
        yield from _judge_by_work(wanted, "none was asked", was_asked=False)
        return
    except Exception as error:  # noqa: BLE001 - each broker raises its own; all are findings
        yield Finding(
            "error",
            "broker",
            f"The broker cannot be asked for its workers ({type(error).__name__}).",
            "Start it, or correct CELERY_BROKER_URL. Until then, mail is queued but not sent.",
        )
        return
    if not consumed:
        why = f"{_OFF}, or the broker does not let workers answer"
        yield from _judge_by_work(wanted, why, was_asked=True)
        return
    at_work = _at_work(set(wanted) - consumed, using)
    yield from without_worker(wanted, consumed | at_work)
    for queue in sorted(at_work):
        yield Finding(
            "info",
            "workers-silent",
            f"No worker that answers consumes the queue {queue}, but its work is done: a worker "
            "has remote control off, or has just stopped.",
            f"Watch the oldest due mail of the queue {queue} (manage.py epica_mail status).",
        )


def _at_work(queues: set[str], using: str) -> set[str]:
    """Return those queues whose work was done so lately that a worker must have consumed them.

    Raises the database's errors.
    """
    if not queues:
        return set()
    settings_of_mail = conf.get()
    moment, _ = backlog.clock_and_first_mail(using)
    since = moment - timedelta(seconds=settings_of_mail.health_no_worker)
    attempts = DeliveryAttempt.objects.using(using).filter(
        pk__gte=clock.lowest_id_at(since - _CLOCKS_DIFFER),  # a bound that the index knows
        created_at__gte=since,
        email__queue__in=queues,
    )
    found = set(attempts.order_by().values_list("email__queue", flat=True).distinct())
    last_sweep = backlog.age(backlog.last_sweep(using), moment)
    if last_sweep is not None and last_sweep <= settings_of_mail.health_last_sweep:
        found |= {sweep_queue()} & queues
    return found


def _may_be_asked() -> bool:
    return bool(app_or_default().conf.worker_enable_remote_control)


def _judge_by_work(wanted: Mapping[str, str], why: str, *, was_asked: bool) -> Iterator[Finding]:
    """Find out whether workers run that do not answer, by what they did.

    ``why`` says why they do not. If they were asked, silence counts: only recent work shows that
    one runs. Raises the database's errors.
    """
    check = health.worker()
    has_worked = check.value is not None and check.value <= (check.limit or 0)
    if not check.is_well or (was_asked and not has_worked):
        yield from without_worker(wanted, set())
        return
    yield Finding(
        "info",
        "workers-silent",
        f"No worker tells which queues it consumes: {why}. {check.text}",
        "Watch the oldest due mail of each queue (manage.py epica_mail status), or set "
        "CELERY_WORKER_ENABLE_REMOTE_CONTROL = True.",
    )


def without_worker(wanted: Mapping[str, str], consumed: set[str]) -> Iterator[Finding]:
    """Find the queues that no worker consumes; ``wanted`` says what does not happen in each."""
    if not consumed:
        yield Finding(
            "error",
            "no-worker",
            "No worker answers: queued mail is not sent.",
            f"Run celery -A {_app_name()} worker -Q {option_q(wanted)}.",
        )
        return
    for queue in sorted(set(wanted) - consumed):
        yield Finding(
            "error",
            "queue-without-worker",
            f"No worker that answers consumes the queue {queue}: {wanted[queue]}.",
            f"Add {queue} to the -Q option of a worker. One that runs with remote control off does "
            "not answer: it is known by its work.",
        )


def _app_name() -> str:
    """Return the name of the site's Celery app, which is usually that of its package."""
    name = str(app_or_default().main)
    return "proj" if name in ("default", "None", "__main__") else name


def queues(using: str) -> set[str]:
    """Return every queue in which mail is waiting or to which it may be routed."""
    return names.named_queues() | {queue for queue, _ in backlog.waiting(using)}


def periodic_queues() -> dict[str, set[str]]:
    """Return the queues of the periodic tasks that beat is to run, with the names of the tasks.

    Raises the database's errors.
    """
    found: dict[str, set[str]] = {}
    for task, queue in schedule.planned():
        found.setdefault(queue or celery_config.queue_of(task), set()).add(task.rpartition(".")[2])
    return found


def sweep_queue() -> str:
    """Return the queue of the sweep, as beat's entry or else the site's routes have it."""
    sweep = celery_config.SWEEP_TASK
    named = (queue for task, queue in schedule.planned() if task == sweep and queue)
    return next(named, None) or celery_config.queue_of(sweep)


def option_q(wanted: Iterable[str]) -> str:
    """Return the value of ``-Q`` for one worker of all these queues and the default one."""
    default = celery_config.default_queue()
    return shlex.quote(",".join([default, *sorted(set(wanted) - {default})]))
