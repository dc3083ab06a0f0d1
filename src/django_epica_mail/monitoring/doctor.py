"""The doctor: finds what keeps a site's mail from being queued, sent or seen, and says what to do.

What can be known at start-up is a system check too (``checks``); the rest asks the database, the
broker and, on request, the transports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parseaddr
from typing import Any

from celery.app import app_or_default
from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage
from django.db import DatabaseError, router
from django.db.models import Max

from django_epica_mail import checks, clock, conf, routing, rules
from django_epica_mail.broker import celery_config, workers
from django_epica_mail.delivery import gates
from django_epica_mail.models import DeliveryGate, EmailLog
from django_epica_mail.monitoring import backlog
from django_epica_mail.rules import Facts
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

_NO_SWEEP = timedelta(minutes=5)
_REFUSED_CREDENTIALS = (534, 535, 538)
"""RFC 4954, section 6."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    level: str
    """``error``, ``warning`` or ``info``."""
    id: str
    """What sort of thing it is: a name that stays, for scripts. Of a system check, the check's."""
    text: str
    remedy: str


def examine(*, open_transports: bool = False) -> list[Finding]:
    """Return everything found, what matters most first.

    ``open_transports`` connects to every transport, with its credentials.
    """
    found = [_from_check(message) for message in checks.check_configuration()]
    if not any(finding.id == "epica_mail.E001" for finding in found):
        found += [_from_check(message) for message in checks.check_deployment()]
        found += [*_send_mail(), *_celery(), *_results(), *_rows()]
        found += _connections() if open_transports else ()
    levels = ("error", "warning", "info")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def explain(address: str, *, category: str = "", bulk: bool = False) -> dict[str, Any]:
    """Return where a mail to an address would go, and which rule of ``ROUTES`` says so.

    Of what the call and the OPTIONS of its backend may say, which come first, nothing is known.
    """
    facts = Facts(
        category=category,
        recipients=[address.lower()],
        sender=parseaddr(settings.DEFAULT_FROM_EMAIL)[1].lower(),
        is_bulk=bulk,
    )
    of_celery = celery_config.site_route(bulk=bulk)
    route = routing.decide(routing.Options(), facts, conf.get(), of_celery)
    rule = rules.Rule() if route.rule is None else conf.get().routes[route.rule]
    return {
        "rule": "none" if route.rule is None else route.rule,
        "match": dict(rule.match),
        "queue": route.queue,
        "queue by": _source(rule.queue, of_celery.get("queue")),
        "priority": route.priority,
        "priority by": _source(rule.priority, of_celery.get("priority")),
        "transports": list(route.transports or (transports.default_alias(),)),
        "on_unknown": route.on_unknown,
        "retries": f"{route.max_retries}, {route.retry_delay:g} s apart",
        "celery routes": {name: value for name, value in of_celery.items() if value is not None},
    }


def queues() -> set[str]:
    """Return every queue that mail waits in or may be sent to."""
    of_celery = [celery_config.site_route(bulk=bulk).get("queue") for bulk in (False, True)]
    named = {of_celery[0] or routing.QUEUE, of_celery[1] or routing.BULK_QUEUE}
    named |= {rule.queue for rule in conf.get().routes if rule.queue}
    named |= {
        options["queue"] for options in transports.queueing().values() if options.get("queue")
    }
    return named | {queue for queue, _ in backlog.waiting(router.db_for_read(EmailLog))}


def _source(by_rule: object, by_celery: object) -> str:
    if by_rule is not None:
        return "ROUTES"
    return "default" if by_celery is None else "CELERY_TASK_ROUTES"


def _from_check(message: CheckMessage) -> Finding:
    level = "error" if message.level >= ERROR else "info"
    level = "warning" if ERROR > message.level >= WARNING else level
    return Finding(level, str(message.id), str(message.msg), str(message.hint or ""))


def _send_mail() -> Iterator[Finding]:
    if not transports.is_send_mail_queued():
        yield Finding(
            "warning",
            "send-mail-not-queued",
            "send_mail() does not go through the queue: its backend is another one.",
            f"Name {transports.QUEUE_BACKEND} as BACKEND of MAILERS['default'], or before "
            "Django 6.1 as EMAIL_BACKEND.",
        )


def _celery() -> Iterator[Finding]:
    app = app_or_default()
    if app.conf.task_always_eager:
        if not settings.DEBUG:
            yield Finding(
                "warning",
                "always-eager",
                "Each commit sends its mail by itself and waits for the server: Celery runs "
                "tasks at once.",
                "Unset CELERY_TASK_ALWAYS_EAGER, and run a worker.",
            )
        return
    options = app.conf.broker_transport_options or {}
    if "redis" in str(app.conf.broker_url) and "socket_timeout" not in options:
        yield Finding(
            "info",
            "socket-timeout",
            "A Redis that hangs blocks the site's own tasks without end; rings are bounded.",
            "Set CELERY_BROKER_TRANSPORT_OPTIONS = {'socket_timeout': 5, "
            "'socket_connect_timeout': 5}.",
        )


def _results() -> Iterator[Finding]:
    settings_of_celery = app_or_default().conf
    if not settings_of_celery.result_backend:
        return  # handles are answered from the rows
    expires, days = settings_of_celery.result_expires, conf.get().keep_days
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    if seconds and seconds < timedelta(days=days).total_seconds():
        yield Finding(
            "warning" if seconds < timedelta(days=1).total_seconds() else "info",
            "result-expires",
            f"Results are kept for {seconds:g} s, and mail for {days} days: AsyncResult(id) "
            "says PENDING of mail that was sent before that.",
            f"Set CELERY_RESULT_EXPIRES = timedelta(days={days}).",
        )
    if not settings_of_celery.result_extended:
        yield Finding(
            "info",
            "result-extended",
            "Results are stored without their task's name: the admin shows ids alone.",
            "Set CELERY_RESULT_EXTENDED = True.",
        )
    if not settings_of_celery.task_track_started:
        yield Finding(
            "info",
            "track-started",
            "AsyncResult.status says PENDING of mail that a worker is sending.",
            "Set CELERY_TASK_TRACK_STARTED = True.",
        )


def _rows() -> Iterator[Finding]:
    using = router.db_for_read(EmailLog)
    try:
        has_mail_ago = _oldest_is_older(using)
        wanted = queues()
    except DatabaseError as error:
        yield Finding(
            "error",
            "database",
            f"The tables of mail cannot be read ({type(error).__name__}): no mail can be queued.",
            "Run manage.py migrate epica_mail, and see that the database answers.",
        )
        return
    if not app_or_default().conf.task_always_eager:
        yield from _workers(wanted)
    if has_mail_ago:
        yield from _beat(using)
    yield from _held_back(using)


def _workers(wanted: set[str]) -> Iterator[Finding]:
    try:
        consumed = {queue for queues in workers.consumed().values() for queue in queues}
    except Exception as error:  # noqa: BLE001 - any broker, any error: it is what was asked for
        yield Finding(
            "error",
            "broker",
            f"The broker cannot be asked for its workers ({type(error).__name__}).",
            "Start it, or correct CELERY_BROKER_URL. Mail is queued all the same, and waits.",
        )
        return
    yield from without_worker(wanted, consumed)


def without_worker(wanted: set[str], consumed: set[str]) -> Iterator[Finding]:
    """Find the queues that mail goes to and no worker consumes."""
    if not consumed:
        yield Finding(
            "error",
            "no-worker",
            "No worker answers: nothing sends the mail that is queued.",
            f"Run celery -A proj worker -Q celery,{','.join(sorted(wanted))}.",
        )
        return
    for queue in sorted(wanted - consumed):
        yield Finding(
            "error",
            "queue-without-worker",
            f"No worker consumes the queue {queue}: its mail waits for ever.",
            f"Add {queue} to -Q of a worker.",
        )


def _oldest_is_older(using: str) -> bool:
    """Tell whether there has been mail for so long that a sweep must have come by."""
    rows = EmailLog.objects.using(using)
    oldest = rows.order_by("pk").values_list("pk")[:1]  # ids sort by their time
    return any(
        rows.filter(pk=pk, created_at__lt=clock.now(-_NO_SWEEP)).exists() for (pk,) in oldest
    )


def _beat(using: str) -> Iterator[Finding]:
    sweeps = DeliveryGate.objects.using(using)
    if sweeps.filter(last_sweep_at__gt=clock.now(-_NO_SWEEP)).exists():
        return
    last = sweeps.aggregate(at=Max("last_sweep_at"))["at"]
    yield Finding(
        "error",
        "no-sweep",
        f"The last sweep was {last or 'never'}: mail whose ring was lost is not found, and "
        "neither is what is scheduled.",
        "Run celery beat with django_epica_mail.schedule.SCHEDULE, and a worker of the "
        "queue its tasks go to; or manage.py epica_mail dispatch from cron.",
    )


def _held_back(using: str) -> Iterator[Finding]:
    for gate, reason in gates.Gates(using).reasons().items():
        is_paused = reason == "paused"
        yield Finding(
            "info" if is_paused else "warning",
            "paused" if is_paused else "out-of-order",
            f"Mail of the {gate} is held back: {reason}",
            f"Let it go by manage.py epica_mail resume --{gate}."
            if is_paused
            else "It is tried again by itself. See what is wrong by doctor --open.",
        )
    known = transports.aliases()
    for queue, alias in backlog.waiting(using):
        if alias not in known and not transports.under_test():
            yield Finding(
                "error",
                "transport-gone",
                f"Mail in the queue {queue} waits for the transport {alias!r}, which there is not.",
                "Configure that alias again, until its mail is sent.",
            )


def _connections() -> Iterator[Finding]:
    for alias in transports.aliases():
        failure = connection.probe(alias)
        if failure is None:
            continue
        is_refused = failure.code in _REFUSED_CREDENTIALS
        yield Finding(
            "error",
            "credentials" if is_refused else "transport",
            f"The transport {alias!r} "
            + ("refuses its credentials" if is_refused else "cannot be opened")
            + f": {failure.reply}",
            "Correct the user name and password in its OPTIONS."
            if is_refused
            else "Check its host, port and encryption, from this machine.",
        )
