"""The doctor: finds what keeps a site's mail from being queued, sent or seen, and says what to do.

What can be known at start-up is a system check too (``checks``); the rest asks the database, the
broker and, on request, the transports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

from celery.app import app_or_default
from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage
from django.db import DEFAULT_DB_ALIAS, router
from django.db.models import Max

from django_epica_mail import checks, clock, conf, doorbell, maintenance, routing, transport
from django_epica_mail.models import DeliveryGate, EmailLog
from django_epica_mail.rules import Facts

_NO_SWEEP = timedelta(minutes=5)
_DEVELOPMENT = ("console", "dummy", "filebased", "locmem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    level: str
    """``error``, ``warning`` or ``info``."""
    text: str
    remedy: str


def examine(*, open_transports: bool = False) -> list[Finding]:
    """Return everything found, what matters most first.

    ``open_transports`` connects to every transport, with its credentials.
    """
    found = [*_checks(), *_workers(), *_beat(), *_celery(), *_database(), *_sender(), *_backends()]
    if open_transports:
        found += _connections()
    levels = ("error", "warning", "info")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def explain(address: str, *, category: str = "", bulk: bool = False) -> dict[str, Any]:
    """Return where a mail to an address would go, and which rule of ``ROUTES`` says so."""
    facts = Facts(category=category, recipients=[address.lower()], is_bulk=bulk)
    of_celery = doorbell.site_route(bulk=bulk)
    route = routing.decide(routing.Options(), facts, of_celery)
    return {
        "rule": "none" if route.rule is None else route.rule,
        "queue": route.queue,
        "priority": route.priority,
        "transports": list(route.transports or (transport.default_alias(),)),
        "on_unknown": route.on_unknown,
        "retries": f"{route.max_retries}, {route.retry_delay:g} s apart",
        "celery routes": {name: value for name, value in of_celery.items() if value is not None},
    }


def _checks() -> Iterator[Finding]:
    for message in checks.check_configuration():
        yield Finding(level=_level(message), text=str(message.msg), remedy=str(message.hint or ""))


def _level(message: CheckMessage) -> str:
    if message.level >= ERROR:
        return "error"
    return "warning" if message.level >= WARNING else "info"


def queues() -> set[str]:
    """Return every queue that mail waits in or may be sent to."""
    named = {routing.QUEUE, routing.BULK_QUEUE}
    named |= {rule.queue for rule in conf.get().routes if rule.queue}
    named |= {
        queue for bulk in (False, True) if (queue := doorbell.site_route(bulk=bulk).get("queue"))
    }
    named |= {options["queue"] for options in _queueing_options() if options.get("queue")}
    return named | set(maintenance.queues(router.db_for_read(EmailLog)))


def _queueing_options() -> Iterator[dict[str, Any]]:
    if transport.uses_mailers():
        mailers: dict[str, dict[str, Any]] = settings.MAILERS
        for spec in mailers.values():
            if transport.is_queue(spec):
                yield spec.get("OPTIONS", {})


def _workers() -> Iterator[Finding]:
    try:
        app = app_or_default()
        with doorbell.bounded_connection(app) as connection:
            active = app.control.inspect(timeout=2.0, connection=connection).active_queues() or {}
    except Exception as error:  # noqa: BLE001 - any broker, any error: it is what was asked for
        yield Finding(
            level="error",
            text=f"The broker cannot be asked for its workers ({type(error).__name__}).",
            remedy="Start it, or correct CELERY_BROKER_URL. Mail is queued all the same, and "
            "waits.",
        )
        return
    if not active:
        yield Finding(
            level="error",
            text="No worker answers: nothing sends the mail that is queued.",
            remedy=f"Run celery -A proj worker -Q celery,{','.join(sorted(queues()))}.",
        )
        return
    consumed = {queue["name"] for worker in active.values() for queue in worker}
    for queue in sorted(queues() - consumed):
        yield Finding(
            level="error",
            text=f"No worker consumes the queue {queue}: its mail waits for ever.",
            remedy=f"Add {queue} to -Q of a worker.",
        )


def _beat() -> Iterator[Finding]:
    using = router.db_for_read(EmailLog)
    sweeps = DeliveryGate.objects.using(using)
    if not EmailLog.objects.using(using).exists():
        return  # a sweep leaves a trace only where there is a queue
    recent = sweeps.filter(last_sweep_at__gt=clock.now(-_NO_SWEEP))
    if recent.exists():
        return
    last = sweeps.aggregate(at=Max("last_sweep_at"))["at"]
    yield Finding(
        level="error",
        text=f"The last sweep was {last or 'never'}: mail whose ring was lost is not found, and "
        "neither is what is scheduled.",
        remedy="Run celery beat with django_epica_mail.schedule.SCHEDULE, or manage.py epica_mail "
        "dispatch from cron.",
    )


def _celery() -> Iterator[Finding]:
    app = app_or_default()
    if app.main == "default" or not app.conf.broker_url:
        yield Finding(
            level="error",
            text="This process has no Celery app of the site: its rings go nowhere.",
            remedy="Import the app in proj/__init__.py, as Celery's page on Django shows.",
        )
    timeouts = app.conf.broker_transport_options or {}
    if "redis" in str(app.conf.broker_url) and "socket_timeout" not in timeouts:
        yield Finding(
            level="info",
            text="A Redis that hangs blocks the site's own tasks without end; rings are bounded.",
            remedy="Set CELERY_BROKER_TRANSPORT_OPTIONS = {'socket_timeout': 5, "
            "'socket_connect_timeout': 5}.",
        )
    expires = app.conf.result_expires
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if app.conf.result_backend and seconds and seconds < timedelta(days=1).total_seconds():
        yield Finding(
            level="warning",
            text=f"Results are kept for {seconds:g} s: AsyncResult(id) forgets sooner than mail.",
            remedy="Set CELERY_RESULT_EXPIRES, to 30 days for instance.",
        )
    for pattern in _broad_routes(app.conf.task_routes):
        yield Finding(
            level="warning",
            text=f"The entry {pattern!r} of CELERY_TASK_ROUTES also decides where mail waits.",
            remedy=f"Add entries of their own for {doorbell.SINGLE_TASK} and {doorbell.BULK_TASK}.",
        )


def _broad_routes(routes: Any) -> list[str]:
    """Return the patterns that take our tasks with others."""
    if not isinstance(routes, dict) or {doorbell.SINGLE_TASK, doorbell.BULK_TASK} <= set(routes):
        return []
    return [
        pattern
        for pattern in routes
        if "*" in pattern
        and not pattern.startswith("django_epica_mail.")
        and fnmatchcase(doorbell.SINGLE_TASK, pattern)
    ]


def _database() -> Iterator[Finding]:
    using = router.db_for_write(EmailLog)
    if using != DEFAULT_DB_ALIAS:
        yield Finding(
            level="warning",
            text=f"Mail is stored in the database {using!r}: not in the transactions of "
            f"{DEFAULT_DB_ALIAS!r}.",
            remedy="Route epica_mail to the database of the business data, or accept that a "
            "rollback there leaves the mail.",
        )


def _sender() -> Iterator[Finding]:
    if settings.DEFAULT_FROM_EMAIL == "webmaster@localhost":
        yield Finding(
            level="warning",
            text="DEFAULT_FROM_EMAIL is Django's own webmaster@localhost.",
            remedy="Set it to an address of the site's domain.",
        )


def _backends() -> Iterator[Finding]:
    if settings.DEBUG or transport.under_test():
        return
    for alias, spec in transport.specs().items():
        if str(spec.get("BACKEND", "")).removesuffix(".EmailBackend").endswith(_DEVELOPMENT):
            yield Finding(
                level="error",
                text=f"The transport {alias!r} is {spec['BACKEND']}, which sends nothing.",
                remedy="Name a backend that sends mail, or set DEBUG.",
            )


def _connections() -> Iterator[Finding]:
    for alias in transport.aliases():
        failure = transport.probe(alias)
        if failure is not None:
            yield Finding(
                level="error",
                text=f"The transport {alias!r} cannot be opened: {failure.reply}",
                remedy="Check its host, port, encryption and credentials, from this machine.",
            )
