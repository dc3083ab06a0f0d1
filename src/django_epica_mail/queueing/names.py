"""Checks the names that calls give: a transport must be configured, a queue should be known.

No call asks a worker. A queue is known by the settings, or by the mail that is or was in it.
"""

from __future__ import annotations

import logging
from functools import lru_cache

from django.db import router

from django_epica_mail import conf
from django_epica_mail.broker import celery_config
from django_epica_mail.models import EmailLog
from django_epica_mail.transports import config as transports

logger = logging.getLogger(__name__)


def check_transport(alias: str) -> None:
    """Raise ``ValueError`` for a transport that is not configured: its mail would wait for ever."""
    known = transports.aliases()
    if alias not in known:
        raise ValueError(
            f"There is no transport {alias!r}: name one of {', '.join(known) or 'none'}, or "
            "configure it in MAILERS (or in EPICA_MAIL['TRANSPORTS'] without MAILERS)."
        )


def named_queues() -> set[str]:
    """Return the queues that the settings name: the defaults, Celery's, ``ROUTES`` and OPTIONS."""
    named = {celery_config.site_queue(bulk=bulk) for bulk in (False, True)}
    named |= {rule.queue for rule in conf.get().routes if rule.queue}
    return named | {
        options["queue"] for options in transports.queueing().values() if options.get("queue")
    }


def is_known_queue(queue: str) -> bool:
    """Return whether the settings, the site's ``CELERY_TASK_QUEUES`` or a row names a queue."""
    if queue in named_queues() or queue in celery_config.task_queues():
        return True
    rows = EmailLog.objects.using(router.db_for_write(EmailLog))
    return rows.filter(queue=queue).exists()


@lru_cache(maxsize=1024)
def warn_of_unknown_queue(queue: str) -> None:
    """Log a warning, once in a process for each name, if a queue that a call names is not known.

    Call it before the call's mail is stored.
    """
    if not is_known_queue(queue):
        logger.warning("%s: unless a worker consumes it, its mail is not sent.", unknown(queue))


def unknown(queue: str) -> str:
    """Return the words that say that a queue is not known, and which the settings name."""
    named = ", ".join(sorted(named_queues()))
    return (
        f"No queue {queue!r} is known: no rule of ROUTES, no OPTIONS, no setting of Celery and no "
        f"mail names it (the settings name {named})"
    )
