"""Finds what prevents a site's mail from being queued, sent or seen, and names the remedy.

Includes the system checks (``checks``), which need only the settings. The other findings need the
database, the broker and, on request, the transports.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, router

from django_epica_mail import checks, clock, conf, routing, rules
from django_epica_mail.broker import celery_config
from django_epica_mail.delivery import gates
from django_epica_mail.exceptions import MailboxError, MissingExtra, TokenRefused
from django_epica_mail.messages import encryption
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailLog
from django_epica_mail.models import checks as database_checks
from django_epica_mail.monitoring import backlog, celery_findings, public_pages, reputation
from django_epica_mail.monitoring.celery_findings import Finding
from django_epica_mail.rules.routes import Facts, Rule
from django_epica_mail.tracking.bounces import mailbox
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

_NO_SWEEP = timedelta(minutes=5)
_SAMPLE = 500
"""How many of the oldest and of the newest mails are examined."""
_MAILS_THAT_BOUNCE = 1000
"""Among so many mails, some bounce: lists lose more addresses than one in a thousand."""
_NAMED = 5
"""How many e-mails a finding names."""
_REFUSED_CREDENTIALS = (534, 535, 538)
"""RFC 4954, section 6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where an e-mail would go, and what decides it."""

    rule: int | str
    """The position of the rule in ``ROUTES``, or ``"none"``."""
    match: dict[str, Any]
    """What that rule matches."""
    queue: str
    queue_by: str
    """``ROUTES``, ``CELERY_TASK_ROUTES`` or ``default``."""
    priority: int
    priority_by: str
    transports: list[str]
    """The transports in the order they are tried."""
    on_unknown: str
    retries: str
    celery_routes: dict[str, Any]
    """What ``CELERY_TASK_ROUTES`` says about our task."""


def examine(*, open_transports: bool = False) -> list[Finding]:
    """Return all findings, most severe first.

    ``open_transports`` also connects to every transport with its credentials, and to the mailbox
    for bounces.
    """
    messages = checks.check_configuration()
    found = _from_checks(messages)
    if not any(message.id == "epica_mail.E001" for message in messages):
        found += _from_checks(checks.check_deployment())
        found += [*_send_mail(), *celery_findings.of_settings(), *celery_findings.of_results()]
        found += [
            *celery_findings.of_rates(),
            *celery_findings.of_limits(),
            *_rows(),
            *_public_pages(),
        ]
        found += (*_connections(), *_mailbox()) if open_transports else ()
    levels = ("error", "warning", "info")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def explain(address: str, *, category: str = "", bulk: bool = False) -> Explanation:
    """Return where a mail to an address would go, and which rule of ``ROUTES`` decides it.

    Options of the call and of its backend, which take precedence, are not considered.
    """
    facts = Facts(
        category=category,
        recipients=[canonical(address)],
        sender=canonical(settings.DEFAULT_FROM_EMAIL),
        is_bulk=bulk,
    )
    of_celery = celery_config.site_route(bulk=bulk)
    route = routing.decide(routing.Options(), facts, conf.get(), of_celery)
    rule = Rule() if route.rule is None else conf.get().routes[route.rule]
    return Explanation(
        rule="none" if route.rule is None else route.rule,
        match=dict(rule.match),
        queue=route.queue,
        queue_by=_source(rule.queue, of_celery.get("queue")),
        priority=route.priority,
        priority_by=_source(rule.priority, of_celery.get("priority")),
        transports=list(route.transports or (transports.default_alias(),)),
        on_unknown=route.on_unknown,
        retries=f"{route.max_retries}, {_written(route.retry_delays)} s apart",
        celery_routes={name: value for name, value in of_celery.items() if value is not None},
    )


def _written(delays: Iterable[float]) -> str:
    return " / ".join(f"{it:g}" for it in delays)


def _source(by_rule: object, by_celery: object) -> str:
    if by_rule is not None:
        return "ROUTES"
    return "default" if by_celery is None else "CELERY_TASK_ROUTES"


def _from_checks(messages: Iterable[CheckMessage]) -> list[Finding]:
    """Return the findings of system checks, without those that the site silences."""
    return [_from_check(message) for message in messages if not message.is_silenced()]


def _from_check(message: CheckMessage) -> Finding:
    level = "error" if message.level >= ERROR else "info"
    level = "warning" if ERROR > message.level >= WARNING else level
    return Finding(level, str(message.id), str(message.msg), str(message.hint or ""))


def _send_mail() -> Iterator[Finding]:
    if not transports.is_send_mail_queued():
        yield Finding(
            "warning",
            "send-mail-not-queued",
            "send_mail() does not use the queue: another backend is configured.",
            f"Set {transports.QUEUE_BACKEND} as BACKEND of MAILERS['default'], or as "
            "EMAIL_BACKEND before Django 6.1.",
        )


def _rows() -> Iterator[Finding]:
    using = router.db_for_write(EmailLog)
    try:
        has_mail_ago = _oldest_is_older(using)
        found = [*celery_findings.of_workers(using)]
    except DatabaseError as error:
        missing = database_checks.missing_migrations(using)
        yield Finding(
            "error",
            "database",
            f"{missing or f'The tables of mail cannot be read ({type(error).__name__})'}: no mail "
            "can be queued.",
            "Run manage.py migrate."
            if missing
            else "Make sure that the database is running, and that this user may read the tables.",
        )
        return
    yield from found
    if has_mail_ago:
        yield from _beat(using)
    yield from _from_checks(database_checks.check_characters(databases=[using]))
    yield from _held_back(using)
    yield from _reputation(using)
    yield from _unencrypted(using)


def _oldest_is_older(using: str) -> bool:
    """Return whether the oldest mail is so old that a sweep must have run since."""
    rows = EmailLog.objects.using(using)
    oldest = rows.order_by("pk").values_list("pk")[:1]  # ids sort by creation time
    return any(
        rows.filter(pk=pk, created_at__lt=clock.now(-_NO_SWEEP)).exists() for (pk,) in oldest
    )


def _beat(using: str) -> Iterator[Finding]:
    if backlog.swept(using).filter(last_sweep_at__gt=clock.now(-_NO_SWEEP)).exists():
        return
    last = backlog.last_sweep(using)
    yield Finding(
        "error",
        "no-sweep",
        f"The last sweep was {last or 'never'}: scheduled mail and mail whose ring was lost wait "
        "for the next one.",
        "Run celery beat with django_epica_mail.schedule.SCHEDULE and a worker of the queue "
        f"{celery_findings.sweep_queue()}, or run manage.py epica_mail dispatch from cron.",
    )


def _held_back(using: str) -> Iterator[Finding]:
    for gate, reason in gates.Gates(using).reasons().items():
        is_paused = reason == "paused"
        yield Finding(
            "info" if is_paused else "warning",
            "paused" if is_paused else "out-of-order",
            f"Mail of the {gate} is held back: {reason}",
            f"To resume it, run manage.py epica_mail resume --{_argument(gate)}."
            if is_paused
            else "It is retried automatically. To find the cause, run doctor --open.",
        )
    if not transports.under_test():
        yield from _transports_gone(using)


def _argument(gate: str) -> str:
    """Return the option of a gate, such as ``queue emails``, whose name may be of anybody's row."""
    scope, _, name = gate.partition(" ")
    return f"{scope} {shlex.quote(name)}"


def _transports_gone(using: str) -> Iterator[Finding]:
    known = transports.aliases()
    gone: dict[str, list[str]] = {}
    for queue, alias in backlog.waiting(using):
        if alias not in known:
            gone.setdefault(alias, []).append(queue)
    for alias, queue_names in gone.items():
        rows = EmailLog.objects.using(using).filter(
            queue__in=queue_names, transport=alias, pending__in=rules.LEVELS
        )
        ids = list(rows.order_by("pk").values_list("pk", flat=True)[: _NAMED + 1])
        more = ", ..." if len(ids) > _NAMED else ""
        option = f"--transport {shlex.quote(alias)}"
        yield Finding(
            "error",
            "transport-gone",
            f"{rows.count()} e-mails in {', '.join(queue_names)} wait for the transport {alias!r}, "
            f"which is not configured: {', '.join(map(str, ids[:_NAMED]))}{more}.",
            f"Configure that alias until they are sent, run manage.py epica_mail move {option} "
            f"--to ALIAS, or run manage.py epica_mail cancel {option}.",
        )


def _reputation(using: str) -> Iterator[Finding]:
    """Find rates above their limits, and a guard that hears of no bounce and no complaint."""
    found, days = reputation.rates(using), conf.get().reputation_days
    for rate in found:
        if rate.level == reputation.LEVELS[0]:
            continue
        is_critical = rate.level == reputation.LEVELS[-1]
        yield Finding(
            "error" if is_critical else "warning",
            "reputation",
            f"{rate.level.capitalize()}: {rate.words} of {days} days.",
            "Mail fewer people, and only those who asked for it; look at the events of the last "
            "mailing in the admin. Providers refuse or hide the mail of senders with such rates.",
        )
    mails = sum(it.mails for it in found)
    if (
        conf.get().pause_on_reputation
        and mails >= _MAILS_THAT_BOUNCE
        and not reputation.hears_of_mail(using)
    ):
        yield Finding(
            "warning",
            "nothing-comes-back",
            f"EPICA_MAIL['PAUSE_ON_REPUTATION'] is set, but no event that counts came back for "
            f"{mails} mails of {days} days: no mail ever pauses.",
            "Send a mail to an address that does not exist, and see whether an event is recorded. "
            "If none is, look at the provider's list of webhooks, or at what reads the bounces.",
        )


def _unencrypted(using: str) -> Iterator[Finding]:
    """Find content that was stored before the site had keys, among the oldest and newest mail."""
    if not encryption.is_on():
        return
    rows = EmailLog.objects.using(using)
    ids = {
        pk
        for by in ("pk", "-pk")
        for pk in rows.order_by(by).values_list("pk", flat=True)[:_SAMPLE]
    }
    if rows.filter(pk__in=ids, envelope__startswith="{").exists():  # JSON; see ``encryption``
        yield Finding(
            "warning",
            "plain-content",
            "ENCRYPTION_KEYS is set, but stored mail is not encrypted: it was stored before, or by "
            "a process without the keys.",
            "Give every process the keys, then run manage.py epica_mail reencrypt.",
        )


def _public_pages() -> Iterator[Finding]:
    for obstacle in public_pages.examine() if getattr(settings, "ROOT_URLCONF", None) else ():
        remedy = (
            "Let it pass requests to this address: people who follow a link, mail clients and "
            "monitoring have no session."
            if obstacle.cause
            else "Include django_epica_mail.urls before the pattern that matches first."
        )
        yield Finding(
            "error",
            "public-page",
            f"{obstacle.request} does not reach its page: {obstacle.cause or 'another view'} "
            f"answers {obstacle.answer}.",
            remedy,
        )


def _mailbox() -> Iterator[Finding]:
    if conf.get().bounce_mailbox is None:
        return
    try:
        with mailbox.opened():
            pass
    except (ImproperlyConfigured, MissingExtra, MailboxError) as error:
        remedy = "Correct EPICA_MAIL['BOUNCE_MAILBOX']. Until then, no bounce is read."
        yield Finding("error", "bounce-mailbox", str(error), remedy)


def _connections() -> Iterator[Finding]:
    for alias in transports.aliases():
        failure = connection.probe(alias)
        if failure is None:
            continue
        is_without_token = failure.reply.startswith(TokenRefused.__name__)
        is_refused = failure.code in _REFUSED_CREDENTIALS or is_without_token
        place = transports.places(alias, "host", "port")
        remedy = f"Check {place}, its encryption, and that this machine can reach it."
        if is_refused and transports.our_options(alias).get("oauth"):
            remedy = "Correct its option oauth, or what its provider's console allows the account."
        elif is_refused:
            remedy = f"Correct {transports.places(alias, 'username', 'password')}."
        yield Finding(
            "error",
            "credentials" if is_refused else "transport",
            f"The transport {alias!r} "
            + ("refuses its credentials" if is_refused else "cannot be opened")
            + f": {failure.reply}",
            remedy,
        )
