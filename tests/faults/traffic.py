"""Queue mail in every way during a run, and keep a journal of it.

These functions run inside the site, in their own processes.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from django.core.mail import EmailMessage
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections, transaction
from django.db.models import Q

from django_epica_mail import lifecycle, maintenance, outbox
from django_epica_mail.delivery.db_retry import retry_on_database_errors
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient
from django_epica_mail.retry import Kind

R = TypeVar("R")

POLICIES = ("resend", "resend", "resend", "hold", "fail")
ADDRESSEES = ("good",) * 8 + ("never", "later")
"""The local parts of addresses; the SMTP server always refuses "never", and "later" once."""
LIMITED = "limited.example"
"""The domain of a few mails, of which the server may take only some in a second."""
SPOILED = '{"v": 99}'
"""An envelope that no version of the package can read."""


_MANY = ("atomic", "nested", "bulk", "rolled back", "cancelled")


class _RollBackError(Exception):
    """Rolls back a transaction."""


def produce(journal: str, seed: int, seconds: float) -> int:
    """Queue mail for ``seconds``; return the number of transactions.

    Each adds a line to the journal: its outcome, and the keys and policies of its mails.
    """
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    with Path(journal).open("a", buffering=1) as lines:
        while time.monotonic() < end:
            fate, mails = _transaction(rng)
            lines.write(json.dumps({"fate": fate, "mails": mails}) + "\n")
            count += 1
            # The pace of a site with some visitors, not a wait for an event.
            time.sleep(rng.uniform(0.005, 0.05))
    return count


def _transaction(rng: random.Random) -> tuple[str, list[dict[str, str]]]:
    how = rng.choice(("single", "single", "single", *_MANY))
    number = {"single": 1, "bulk": 20}.get(how, 3)
    mails = [{"key": uuid.uuid4().hex, "policy": rng.choice(POLICIES)} for _ in range(number)]
    fate = "committed"
    queued: list[uuid.UUID] = []
    try:
        if how == "single":
            _queue(rng, mails[0])
        elif how == "bulk":
            policy = mails[0]["policy"]
            for mail in mails:
                mail["policy"] = policy
            outbox.enqueue_many((_message(rng, mail) for mail in mails), on_unknown=policy)
        else:
            with transaction.atomic():
                for mail in mails:
                    with transaction.atomic() if how == "nested" else nullcontext():
                        queued.append(_queue(rng, mail))
                if how == "rolled back":
                    raise _RollBackError
            if how == "cancelled":
                outbox.cancel(queued)
    except _RollBackError:
        fate = "rolled back"
    except (DatabaseError, InterfaceError):
        # Possibly only the reply to the commit was lost; the database shows it at the end.
        fate = "unsure"
        connections.close_all()
    return fate, mails


def _queue(rng: random.Random, mail: dict[str, str]) -> uuid.UUID:
    log = outbox.enqueue(
        _message(rng, mail),
        on_unknown=mail["policy"],
        priority=rng.choice(("urgent", "high", "normal", "low")),
    )
    return log.pk


def _message(rng: random.Random, mail: dict[str, str]) -> EmailMessage:
    names = rng.sample(range(10), rng.choice((1, 1, 1, 2, 3)))
    domain = LIMITED if rng.random() < 0.03 else "example.com"
    to = [f"{rng.choice(ADDRESSEES)}.{mail['key']}.{name}@{domain}" for name in names]
    # Like a provider's header against duplicates: it must be the same on every attempt.
    headers = {"Idempotency-Key": mail["key"]}
    if rng.random() < 0.3:
        headers["Message-ID"] = f"<own.{mail['key']}@example.com>"
    message = EmailMessage(mail["key"], "Body of " + mail["key"], None, to, headers=headers)
    if rng.random() < 0.1:
        message.attach("a.bin", rng.randbytes(rng.choice((10, 200_000))), "application/zip")
    return message


def retried(function: Callable[[], R]) -> Callable[[], R]:
    """Retry a function while concurrent transactions make it fail, as with serializable."""

    @wraps(function)
    def run() -> R:
        return retry_on_database_errors(
            function, until=time.monotonic() + 30, using=DEFAULT_DB_ALIAS
        )

    return run


@retried
def retry_failed() -> int:
    """Retry mail that failed temporarily, as beat does every half hour."""
    return maintenance.retry_failed()


@retried
def unfinished() -> dict[str, int]:
    """Return the number of mails that are not final, by status."""
    rows = EmailLog.objects.exclude(status__in=lifecycle.FINAL)
    unknown = rows.filter(status=lifecycle.Status.UNKNOWN)
    held = unknown.filter(Q(on_unknown="hold") | Q(failure_kind=Kind.POISON))
    rows = rows.exclude(pk__in=held.values("pk"))
    counts: dict[str, int] = {}
    for status in rows.values_list("status", flat=True):
        counts[status] = counts.get(status, 0) + 1
    return counts


@retried
def everything() -> list[dict[str, Any]]:
    """Return what the site stores of every mail."""
    kinds: dict[uuid.UUID, list[str]] = {}
    workers: dict[uuid.UUID, list[str]] = {}
    for attempt in DeliveryAttempt.objects.order_by("number"):
        kinds.setdefault(attempt.email_id, []).append(attempt.failure_kind)
        workers.setdefault(attempt.email_id, []).append(attempt.worker)
    recipients: dict[uuid.UUID, list[tuple[str, str]]] = {}
    for recipient in EmailRecipient.objects.order_by("position"):
        was_cancelled = recipient.reply == outbox._CANCELLED
        pair = (recipient.address, "cancelled" if was_cancelled else recipient.outcome)
        recipients.setdefault(recipient.email_id, []).append(pair)
    return [
        {
            "key": log.subject,
            "message_id": log.message_id,
            "status": log.status,
            "policy": log.on_unknown,
            "pending": log.pending,
            "leased": log.lease_until is not None,
            "spoiled": log.is_spoiled,
            "kinds": kinds.get(log.pk, []),
            "workers": workers.get(log.pk, []),
            "recipients": recipients.get(log.pk, []),
        }
        for log in EmailLog.objects.defer("envelope").annotate(is_spoiled=Q(envelope=SPOILED))
    ]
