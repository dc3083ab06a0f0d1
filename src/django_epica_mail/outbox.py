"""The public API of the queue: enqueue, cancel, requeue and decide about mail, pause and resume."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import router, transaction
from django.db.models import Exists, OuterRef, Prefetch
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import clock, conf, lifecycle, routing
from django_epica_mail._compat import batched
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import slowed_domains, waiting
from django_epica_mail.delivery.outcome import Outcome
from django_epica_mail.delivery.settle import announce, announce_moves
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.models import (
    EmailAttachment,
    EmailBatch,
    EmailLog,
    EmailRecipient,
    SlowedDomain,
)
from django_epica_mail.queueing import names
from django_epica_mail.queueing.draft import Draft, draft
from django_epica_mail.queueing.enqueue import enqueue_one, enqueue_pairs, insert_drafts
from django_epica_mail.retry import Decision
from django_epica_mail.routing import Options
from django_epica_mail.rules import LEVELS
from django_epica_mail.transports import config as transports

logger = logging.getLogger(__name__)

_PORTION = 20
"""How many mails ``send_again`` reads at a time, because it holds their attachments in memory."""


class Verdict(str, Enum):
    """What a person decides about an e-mail whose outcome is unknown."""

    ARRIVED = "arrived"
    """It was accepted: it becomes ``sent``."""
    RESEND = "resend"
    """It is sent once more, and may arrive twice."""
    WRITE_OFF = "write_off"
    """It counts as ``failed`` and is not sent again."""


_CANCELLED = "Cancelled before it was accepted."
_WRITTEN_OFF = "Written off: it is not known whether it was accepted."
_ENDED = ("pk", "keep_content", "queue", "attempts")
"""The columns that are read of what a person ends."""

_MOVES = {
    Verdict.ARRIVED: lifecycle.SUCCEED,
    Verdict.RESEND: lifecycle.RESEND,
    Verdict.WRITE_OFF: lifecycle.WRITE_OFF,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The result of ``cancel``."""

    cancelled: list[UUID]
    """The e-mails that will not be sent, or not to those recipients who have not got them yet."""
    too_late: list[UUID]
    """The e-mails that a worker had already claimed or finished, and ids that do not exist."""


@sensitive_variables()
def enqueue(message: EmailMessage, **options: Any) -> EmailLog:
    """Queue one message and return its row.

    The row is written in the caller's transaction and sent after its commit; without a
    transaction, it is committed and sent immediately. ``options`` are the fields of
    ``routing.Options``. If ``idempotency_key`` was used before, returns the existing row.

    Raises ``ValueError`` or ``TypeError`` for a message that cannot be sent or an invalid option,
    and ``UnstorableMessage`` for a message that cannot be stored without loss. Nothing is written
    in that case.
    """
    return enqueue_one(message, routing.parse_options(options))


@sensitive_variables()
def enqueue_many(messages: Iterable[EmailMessage], **options: Any) -> EmailBatch:
    """Queue many messages as bulk mail and return their batch.

    ``messages`` may be a generator of any length. It is consumed and inserted in portions of
    bounded size, all in one transaction: either every message is queued or none.
    """
    parsed = routing.parse_options(options)
    return enqueue_pairs((message, parsed) for message in messages)


def cancel(ids: Iterable[UUID | str]) -> Cancelled:
    """Cancel e-mails that no worker has claimed yet, and report which were too late.

    An e-mail that some of its recipients have got already is not sent to the others: it is
    ``sent``, and these are ``refused``. Runs in the caller's transaction and is undone by its
    rollback.
    """
    wanted = _uuids(ids)
    using = router.db_for_write(EmailLog)
    with transaction.atomic(using=using):
        outcomes = _end(lifecycle.CANCEL, wanted, _CANCELLED, using)
        if outcomes:
            transaction.on_commit(partial(announce, outcomes, using), using=using)
    found = {it.mail.pk for it in outcomes}
    cancelled = [pk for pk in wanted if pk in found]
    return Cancelled(cancelled=cancelled, too_late=[pk for pk in wanted if pk not in found])


def requeue(ids: Iterable[UUID | str]) -> int:
    """Queue failed, unknown, cancelled or expired e-mails again, with a full budget of tries.

    Returns how many were queued. Recipients that accepted the e-mail before do not get it again.
    An ``unknown`` e-mail may arrive a second time; the caller takes that risk.
    """
    wanted = _uuids(ids)
    using = router.db_for_write(EmailLog)
    patience = timedelta(seconds=conf.get().give_up_after)
    with transaction.atomic(using=using):
        moved = EmailLog.objects.using(using).move_returning(
            lifecycle.REQUEUE,
            wanted,
            only=["pk", "queue"],
            due_at=clock.now(),
            expires_at=None,
            give_up_at=clock.now(patience),
            finished_at=None,
            tries=0,
        )
        requeued = [mail.pk for mail in moved]
        EmailRecipient.objects.using(using).filter(
            email__in=requeued,
            outcome__in=[EmailRecipient.Outcome.REFUSED, EmailRecipient.Outcome.SUPPRESSED],
        ).update(outcome="", code=None, reply="")
        result_backend.expect(requeued, using)
        for queue in {mail.queue for mail in moved}:
            doorbell.ring_on_commit(queue, using=using)
        tell = partial(announce_moves, lifecycle.REQUEUE, requeued)
        transaction.on_commit(tell, using=using)
    return len(requeued)


def send_now(ids: Iterable[UUID | str]) -> int:
    """Make queued e-mails due that wait for ``send_at`` or their next attempt; return how many.

    A paused queue or transport, an open breaker or a rate limit still holds them back.
    """
    using = router.db_for_write(EmailLog)
    rows = EmailLog.objects.using(using).filter(
        pk__in=_uuids(ids), status__in=lifecycle.CLAIMABLE, due_at__gt=clock.now()
    )
    with transaction.atomic(using=using):
        queues = set(rows.order_by().values_list("queue", flat=True))
        count = rows.update(due_at=clock.now())
        for queue in queues:
            doorbell.ring_on_commit(queue, using=using)
    return count


def decide(ids: Iterable[UUID | str], verdict: Verdict | str) -> int:
    """Decide about e-mails whose outcome is unknown; return how many were decided.

    ``verdict`` is a ``Verdict`` or its value: ``"arrived"`` (they become sent), ``"resend"`` (they
    are sent once more, and may arrive twice) or ``"write_off"`` (they become failed; one that some
    of its recipients have surely got becomes sent, and the others are ``refused``). Raises
    ``ValueError`` for any other value.
    """
    try:
        move = _MOVES[Verdict(verdict)]
    except ValueError:
        known = ", ".join(repr(it.value) for it in Verdict)
        raise ValueError(f"verdict must be one of {known}; it is {verdict!r}.") from None
    using = router.db_for_write(EmailLog)
    wanted = _uuids(ids)
    with transaction.atomic(using=using):
        if move is lifecycle.WRITE_OFF:
            outcomes = _end(move, wanted, _WRITTEN_OFF, using)
        else:
            unknown = EmailLog.objects.using(using).filter(status=lifecycle.Status.UNKNOWN)
            moved = unknown.move_returning(move, wanted, only=_ENDED, **_values_of(move))
            outcomes = _outcomes(move, moved, using)
        result_backend.expect([it.mail.pk for it in outcomes], using)
        if move is lifecycle.RESEND:
            for queue in {it.mail.queue for it in outcomes}:
                doorbell.ring_on_commit(queue, using=using)
        transaction.on_commit(partial(announce, outcomes, using), using=using)
    return len(outcomes)


@sensitive_variables()
def send_again(ids: Iterable[UUID | str]) -> list[EmailLog]:
    """Queue the messages of finished e-mails as new e-mails; return the new rows.

    A new e-mail goes to all of the recipients, takes the route of the old one, and has a
    Message-ID of its own. Skips e-mails that are not finished, those whose content was deleted or
    cannot be read, and those that would be refused if they were new, because
    their transport is not configured any more for one.
    """
    using = router.db_for_write(EmailLog)
    ended = EmailLog.objects.using(using).filter(status__in=lifecycle.FINAL).exclude(envelope="")
    made: list[EmailLog] = []
    with transaction.atomic(using=using):
        for portion in batched(_uuids(ids), _PORTION):
            rows = (
                ended.filter(pk__in=portion)
                .order_by("pk")
                .prefetch_related(Prefetch("attachments", EmailAttachment.objects.using(using)))
            )
            drafts = [again for mail in rows if (again := _draft_again(mail)) is not None]
            made += insert_drafts(drafts)
    return made


def pause(
    *,
    queue: str | None = None,
    transport: str | None = None,
    category: str | None = None,
    by: str = "",
    note: str = "",
) -> None:
    """Stop claiming mail of one queue, for one transport, or bulk mail of one category.

    The mail waits; nothing is lost. Mail of a category is bulk mail if a bulk call queued it.

    ``by`` and ``note`` say who pauses it and why; the admin shows them beside the pause. Raises
    ``ValueError`` for a transport that is not configured and that no mail waits for, and
    logs a warning for a queue that is not known: a mistyped name would hold nothing back.
    """
    if transport is not None and queue is category is None:
        rows = EmailLog.objects.using(router.db_for_write(EmailLog))
        if not rows.filter(transport=transport, pending__in=LEVELS).exists():
            names.check_transport(transport)
    if queue is not None and transport is category is None and not names.is_known_queue(queue):
        logger.warning("%s. It is paused, should mail be queued in it.", names.unknown(queue))
    gates.set_paused(True, queue=queue, transport=transport, category=category, by=by, note=note)


def resume(
    *,
    queue: str | None = None,
    transport: str | None = None,
    category: str | None = None,
    domain: str | None = None,
) -> None:
    """Claim mail of a paused queue, for a paused transport, or of a paused category, again.

    With ``domain``, mail to a slowed recipients' domain goes at full speed until its server
    complains again. Workers start with the next ring, at the latest that of the next sweep. Raises
    ``ValueError`` unless exactly one is named.
    """
    if domain is not None and queue is transport is category is None:
        slowed_domains.set_free(domain, router.db_for_write(SlowedDomain))
    elif domain is not None:
        raise ValueError("Name a domain, a queue, a transport or a category, and only one of them.")
    else:
        gates.set_paused(False, queue=queue, transport=transport, category=category)


def move(transport: str, *, to: str) -> int:
    """Give all mail that waits for one transport to another; return how many e-mails.

    For mail whose transport is not configured any more, or is out of order for long. The mail no
    longer fails over. Raises ``ValueError`` if the transport ``to`` is not configured.
    """
    names.check_transport(to)
    using = router.db_for_write(EmailLog)
    count, queues = waiting.move_waiting(transport, to, using)
    for queue in queues:
        doorbell.ring_on_commit(queue, using=using)
    return count


def probe(transport: str) -> bool:
    """Try a transport whose breaker is open now instead of later; return whether it is open.

    One e-mail probes it at the next ring or sweep.
    """
    return gates.return_probe(transport, router.db_for_write(EmailLog))


aenqueue = coroutine_of(enqueue)
aenqueue_many = coroutine_of(enqueue_many)
acancel = coroutine_of(cancel)
arequeue = coroutine_of(requeue)
apause = coroutine_of(pause)
aresume = coroutine_of(resume)
amove = coroutine_of(move)


def _end(move: lifecycle.Move, ids: list[UUID], words: str, using: str) -> list[Outcome]:
    """End e-mails by a move to a status that says that nobody got them; return what was done.

    One that some recipients have got is ``sent`` instead, as wherever partly delivered mail ends;
    the others are recorded as refused, with these ``words``.
    """
    rows, recipients = EmailLog.objects.using(using), EmailRecipient.objects.using(using)
    accepted = recipients.filter(email=OuterRef("pk"), outcome=EmailRecipient.Outcome.ACCEPTED)
    among = rows.filter(status__in=move.sources)
    partly = set(among.filter(Exists(accepted), pk__in=ids).values_list("pk", flat=True))
    parts = [(move, among, [pk for pk in ids if pk not in partly])]
    if partly:
        unknown = among.filter(status=lifecycle.Status.UNKNOWN)
        parts += [(lifecycle.SUCCEED, unknown, [*partly]), (lifecycle.CONFIRM, among, [*partly])]
    outcomes: list[Outcome] = []
    for made, which, some in parts:
        moved = which.move_returning(made, some, only=_ENDED, finished_at=clock.now())
        outcomes += _outcomes(made, moved, using)
    sent = [it.mail.pk for it in outcomes if it.mail.pk in partly]
    if sent:
        left = recipients.filter(email__in=sent, outcome="")
        left.update(outcome=EmailRecipient.Outcome.REFUSED, code=None, reply=words)
        result_backend.expect(sent, using)
    return outcomes


def _outcomes(move: lifecycle.Move, moved: list[EmailLog], using: str) -> list[Outcome]:
    """Return what a move means for e-mails; delete the content that goes with it."""
    outcomes = [Outcome(mail, None, Decision(moves=(move,))) for mail in moved]
    ended = [it.mail.pk for it in outcomes if it.ends_content]
    EmailLog.objects.using(using).forget_content(ended)
    return outcomes


def _values_of(move: lifecycle.Move) -> dict[str, Any]:
    """Return the columns that a verdict sets in addition to the status."""
    now = clock.now()
    if move is lifecycle.RESEND:
        patience = timedelta(seconds=conf.get().give_up_after)
        return {"due_at": now, "expires_at": None, "give_up_at": clock.now(patience)}
    values: dict[str, Any] = {"finished_at": now}
    if move is lifecycle.SUCCEED:
        values.update(failure_kind="", failure_code=None, reply="")
    return values


def _draft_again(mail: EmailLog) -> Draft | None:
    if mail.transport not in transports.aliases():
        logger.warning(
            "E-mail %s was not sent again: its transport %r is not configured any more.",
            mail.pk,
            mail.transport,
        )
        return None
    try:
        return _new_draft(mail)
    except UnreadableEnvelope:
        logger.warning("E-mail %s cannot be read and was not sent again.", mail.pk)
    except (ValueError, TypeError) as error:
        logger.warning(
            "E-mail %s was not sent again: what its row says is refused (%s).",
            mail.pk,
            type(error).__name__,
        )
    return None


def _new_draft(mail: EmailLog) -> Draft:
    message = mail.message()
    # Servers drop a second mail with the same Message-ID as a duplicate.
    message.extra_headers = {
        name: value for name, value in message.extra_headers.items() if name.lower() != "message-id"
    }
    options = Options(
        transport=mail.transport,
        queue=mail.queue,
        priority=mail.priority,
        category=mail.category or None,
        on_unknown=mail.on_unknown,
        keep_content=mail.keep_content,
    )
    again = draft(message, options, of_celery={})
    again.log.fallbacks = mail.fallbacks
    again.log.additions = mail.additions
    again.log.max_retries, again.log.delays = mail.max_retries, mail.delays
    return again


def _uuids(ids: Iterable[UUID | str]) -> list[UUID]:
    """Return ids as ``UUID``; raise ``TypeError`` or ``ValueError`` if one is not an id."""
    if isinstance(ids, (str, UUID)):
        raise TypeError(f"Give a list of ids; it is {ids!r}.")
    return [pk if isinstance(pk, UUID) else UUID(pk) for pk in ids]
