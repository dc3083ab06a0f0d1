"""Resolves mail of unknown outcome by evidence, before any of it is sent again.

Events prove acceptance whenever they come (``events.confirm_delivered``). Here the site's own
function is asked, such as one that asks a provider's API, and mail is decided that has waited for
evidence as long as ``EVIDENCE_WAIT`` says.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections, router, transaction
from django.db.models import Prefetch, Q
from django.utils import timezone
from django.utils.module_loading import import_string

from django_epica_mail import clock, conf, lifecycle, retry
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailEvent, EmailLog, EmailRecipient
from django_epica_mail.replies import reply_text
from django_epica_mail.retry import LOST, Evidence, Kind
from django_epica_mail.tracking import events

logger = logging.getLogger(__name__)

_BUSY_SECONDS = 2.0
"""No question is begun after this time: the sweep has other work, and another sweep follows."""

_MOST = 100
"""How many e-mails one sweep looks at."""

_SHORTEST_PAUSE = 10.0
"""Seconds between two questions about an e-mail, at least; the pauses double."""

_MOST_UNANSWERED = 5
"""How many questions may stay unanswered in a process before none is asked."""

_unanswered = threading.BoundedSemaphore(_MOST_UNANSWERED)


def resolve() -> int:
    """Decide about mail of unknown outcome that is due for it; return how many were decided.

    Raises ``DatabaseError``, and nothing that the site's function raises.
    """
    using = router.db_for_write(EmailLog)
    started, decided = time.monotonic(), 0
    for mail in _due(using):
        if time.monotonic() - started > _BUSY_SECONDS:
            break
        decided += _resolve(mail, using)
    return decided


def _due(using: str) -> list[Any]:
    """Return the unknown e-mails that are due for a decision, the longest due first."""
    rows = EmailLog.objects.using(using).filter(
        failure_kind__in=LOST, finished_at=None, status=Status.UNKNOWN, due_at__lte=clock.now()
    )
    is_set_apart = Q(failure_kind=Kind.POISON) & ~Q(on_unknown=EmailLog.IfUnknown.FAIL)
    rows = rows.exclude(is_set_apart)  # for a person
    if conf.get().evidence is None:
        rows = rows.exclude(on_unknown=EmailLog.IfUnknown.HOLD)  # only evidence could move it
    attempts = DeliveryAttempt.objects.using(using).order_by("number")
    recipients = EmailRecipient.objects.using(using).order_by("position")
    found = rows.annotate(
        now=clock.now(),
        too_old=Q(give_up_at__lte=clock.now()),
        is_expired=Q(expires_at__isnull=False, expires_at__lte=clock.now()),
    )
    return list(
        found.order_by("due_at", "id").prefetch_related(
            Prefetch("delivery_attempts", attempts), Prefetch("recipients", recipients)
        )[:_MOST]
    )


def _resolve(mail: Any, using: str) -> bool:
    settings = conf.get()
    attempts = list(mail.delivery_attempts.all())
    waited = _seconds_since(attempts[-1].created_at, mail.now) if attempts else float("inf")
    pause = max(_SHORTEST_PAUSE, min(waited, settings.give_up_after))
    if mail.on_unknown != EmailLog.IfUnknown.HOLD and waited < settings.evidence_wait:
        pause = min(pause, settings.evidence_wait - waited)
    if mail.is_expired and not mail.too_old:  # so that its end is not missed
        left = (mail.give_up_at - mail.now).total_seconds()
        pause = min(pause, max(_SHORTEST_PAUSE, left))
    still = EmailLog.objects.using(using).filter(pk=mail.pk, status=Status.UNKNOWN)
    if not still.filter(due_at__lte=clock.now()).update(due_at=clock.now(pause)):
        return False  # another sweep asks about it, or an event has decided
    evidence, words = ask(mail)
    move = retry.resolve(
        evidence,
        mail.on_unknown,
        is_over=mail.too_old
        or mail.tries > mail.max_retries
        or mail.failure_kind == Kind.POISON,  # it would end a third worker
        # An expired one is not sent again: it waits for proof as long as mail may wait.
        is_patient=waited < settings.evidence_wait or (mail.is_expired and not mail.too_old),
    )
    if move is None or not _decide(mail, move, using):
        return False
    _record(mail, evidence, words)
    return True


def _seconds_since(attempt: datetime, now: datetime) -> float:
    """Return the seconds since an attempt; endless if its time is none of the past."""
    waited = (now - attempt).total_seconds()
    return waited if waited > -clock.SET_BACK else float("inf")


def ask(mail: EmailLog) -> tuple[Evidence, str]:
    """Return what the site's function says about an e-mail, and its words; never raises.

    ``UNKNOWN`` if there is no function, if it fails, and after ``EVIDENCE_TIMEOUT`` seconds; its
    thread is then left behind.
    """
    path, seconds = conf.get().evidence, conf.get().evidence_timeout
    if path is None:
        return Evidence.UNKNOWN, ""
    if not _unanswered.acquire(blocking=False):
        return Evidence.UNKNOWN, f"{path} was not asked: earlier questions are unanswered."
    answers: SimpleQueue[tuple[Evidence, str]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(_read(import_string(path)(mail)))
        except Exception as error:  # noqa: BLE001 - without its traceback, which may show addresses
            name = type(error).__name__
            logger.error("%s (EPICA_MAIL['EVIDENCE']) raised %s for %s.", path, name, mail.pk)
            answers.put((Evidence.UNKNOWN, reply_text(f"{name}: {error}")))
        finally:
            connections.close_all()  # those of this thread
            _unanswered.release()

    threading.Thread(target=answer, name="epica_mail evidence", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        logger.error(
            "%s (EPICA_MAIL['EVIDENCE']) took longer than %s s for %s.", path, seconds, mail.pk
        )
        return Evidence.UNKNOWN, f"{path} gave no answer in time."


def _read(answer: object) -> tuple[Evidence, str]:
    """Return an answer as it was given, alone or with words, as evidence and clean text.

    Raises ``ValueError`` for any other answer.
    """
    given, words = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, "")
    return Evidence(given), reply_text(str(words))


def _decide(mail: EmailLog, move: lifecycle.Move, using: str) -> bool:
    """Make a move; return whether the e-mail was still unknown."""
    if move is lifecycle.SUCCEED:
        return events.succeed(mail, using)
    rows = EmailLog.objects.using(using)
    unknown = rows.filter(status=Status.UNKNOWN)  # an event or a person may have decided meanwhile
    with transaction.atomic(using=using):
        if move is lifecycle.RESEND:
            is_moved = unknown.move(move, [mail.pk], due_at=clock.now())
            doorbell.ring_on_commit(mail.queue, using=using)
        else:
            recipients = EmailRecipient.objects.using(using).filter(email=mail)
            if recipients.filter(outcome=EmailRecipient.Outcome.ACCEPTED).exists():
                move = lifecycle.SUCCEED  # for these; an earlier attempt was accepted
            is_moved = unknown.move(move, [mail.pk], finished_at=clock.now())
            if is_moved and move is lifecycle.SUCCEED:
                recipients.filter(outcome="").update(
                    outcome=EmailRecipient.Outcome.REFUSED, reply=mail.reply
                )
            if is_moved and mail.forgets_content(move.target, mail.failure_kind):
                rows.forget_content([mail.pk])
        if is_moved:
            result_backend.expect([mail.pk], using)
            tell = partial(events.announce, mail.pk, move)
            transaction.on_commit(tell, using=using, robust=True)
    return bool(is_moved)


def _record(mail: EmailLog, evidence: Evidence, words: str) -> None:
    """Record a decision and its evidence, for the history of the e-mail."""
    what = f"{mail.pk} {events.Kind.RESOLVED} {mail.attempts} {evidence.value}"
    events.record(
        EmailEvent(
            email_id=mail.pk,
            key=hashlib.sha256(what.encode()).hexdigest(),
            kind=events.Kind.RESOLVED,
            at=timezone.now(),
            created_at=clock.now(),
            source=events.OWN,
            reason=evidence.value,
            reply=words,
        )
    )
