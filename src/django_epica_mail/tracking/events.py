"""Records what happens to sent mail: each event once, whatever order reports arrive in."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connections, router, transaction
from django.db.models import BooleanField, Exists, ExpressionWrapper, OuterRef, Q
from django.utils import timezone

from django_epica_mail import clock, lifecycle, signals, suppression
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.lifecycle import Status
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    Suppression,
)
from django_epica_mail.replies import reply_text
from django_epica_mail.retry import ENDED_WORKER, LOST, PASSING

Kind = EmailEvent.Kind

OWN = "epica_mail"
"""The ``source`` of events that we observe ourselves."""

_SCAN_SECONDS = 3.0
"""A visit within this many seconds of sending is taken for a scanner's."""

_REPEAT_SECONDS = 10.0
"""Identical visits in the same slot of this length count once: no link can flood the table."""

_NO_PROOF_OF_SENDING = (Kind.SUBSCRIBED, Kind.AUTORESPONDED, Kind.RESOLVED)
_REASONS = {
    Kind.COMPLAINED: Suppression.Reason.COMPLAINT,
    Kind.UNSUBSCRIBED: Suppression.Reason.UNSUBSCRIBE,
}
REJECTION_REASONS = {
    "bounced": Suppression.Reason.BOUNCE,
    "invalid": Suppression.Reason.BOUNCE,
    "spam": Suppression.Reason.COMPLAINT,
    "unsubscribed": Suppression.Reason.UNSUBSCRIBE,
}
UNAUTHENTICATED = "unauthenticated"
"""The ``reason`` of an event that anybody may have posted: it is recorded, and nothing follows."""

PERMANENT = "permanent"
"""The ``reason`` of a bounce that suppresses the address."""


def record(event: EmailEvent) -> bool:
    """Record an event and act on it; return whether it was new.

    Events may be reported twice, in any order, and before the worker has settled the mail: the
    result is the same. The signal ``email_event`` is sent once for each.
    """
    using = router.db_for_write(EmailEvent)
    rows = EmailEvent.objects.using(using)
    with transaction.atomic(using=using):
        rows.bulk_create([event], ignore_conflicts=True)
        is_new = rows.filter(pk=event.pk).exists()
        if is_new:
            _suppress(event, using)
            transaction.on_commit(partial(_send_signal, event), using=using, robust=True)
    # After the commit: the worker looks for events after its own commit, so whichever commits
    # last sees the other.
    follow_up = partial(_follow_up, event.email_id, event.provider_id, using)
    follow_up()
    if connections[using].in_atomic_block:
        transaction.on_commit(follow_up, using=using)
    return is_new


def unsubscribe(found_by: str, scope: str, email_id: UUID | None) -> None:
    """Suppress an address that unsubscribed through a link, and record the event.

    ``found_by`` is the digest of the address. The call may be repeated, and may come long after the
    mail that carried the link was deleted: then only the digest is suppressed.
    """
    address = recipient_of(found_by, email_id)
    suppression.add_digest(
        found_by, reason=Suppression.Reason.UNSUBSCRIBE, scope=scope, recipient=address
    )
    _record_wish(Kind.UNSUBSCRIBED, email_id, address)


def subscribe(found_by: str, scope: str, email_id: UUID | None) -> None:
    """Take back what ``unsubscribe`` did, and record the event, once for each e-mail."""
    address = recipient_of(found_by, email_id)
    if suppression.readmit(found_by, scope, address):
        _record_wish(Kind.SUBSCRIBED, email_id, address)


def recipient_of(found_by: str, email_id: UUID | None) -> str:
    """Return the address that a digest stands for; empty if its e-mail is not known any more."""
    if email_id is None:
        return ""
    recipients = EmailRecipient.objects.using(router.db_for_write(EmailEvent))
    rows = recipients.filter(email=email_id)
    address = rows.values_list("address", flat=True).first() or ""
    return address if address and suppression.is_digest_of(found_by, address) else ""


def _record_wish(kind: Kind, email_id: UUID | None, address: str) -> None:
    using = router.db_for_write(EmailEvent)
    key = hashlib.sha256(f"{kind} {email_id}".encode()).hexdigest()
    if not address or EmailEvent.objects.using(using).filter(key=key).exists():
        return  # a link followed again writes nothing
    record(
        EmailEvent(
            email_id=email_id,
            key=key,
            kind=kind,
            at=timezone.now(),
            created_at=clock.now(),
            source=OWN,
            address=canonical(address),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """An open or a click, by a person or a program."""

    email_id: UUID
    kind: Kind
    url: str = field(default="", repr=False)
    user_agent: str = ""
    is_machine: bool = False
    ip: str | None = None


def record_visit(visit: Visit) -> bool:
    """Record a visit with one write at most; return ``False`` if its mail is deleted.

    Identical visits in the same 10-second slot count once, so a link causes at most 12 writes a
    minute: one visit of a person and one of a program in each slot. A visit before the mail was
    sent, or within 3 seconds of it, is a scanner's and counts as automated.
    """
    using = router.db_for_write(EmailEvent)
    logs = EmailLog.objects.using(using).filter(pk=visit.email_id)
    is_forgotten = ExpressionWrapper(Q(envelope=""), BooleanField())
    rows = logs.only("pk", "status", "finished_at").annotate(is_forgotten=is_forgotten)
    log: Any = rows.first()
    if log is None:
        return False
    now = timezone.now()
    is_machine = visit.is_machine or log.finished_at is None
    if log.finished_at is not None:
        is_machine |= (now - log.finished_at).total_seconds() < _SCAN_SECONDS
    what = [
        visit.email_id.hex,
        visit.kind,
        visit.url,
        is_machine,
        int(now.timestamp() // _REPEAT_SECONDS),
    ]
    event = EmailEvent(
        email_id=log.pk,
        key=hashlib.sha256(repr(what).encode("utf-8", "replace")).hexdigest(),
        kind=visit.kind,
        at=now,
        created_at=clock.now(),
        source=OWN,
        url="" if log.is_forgotten else visit.url,  # a link is content
        user_agent=reply_text(visit.user_agent)[:255],
        ip=visit.ip,
        is_machine=is_machine,
    )
    events = EmailEvent.objects.using(using)
    if events.filter(key=event.key).exists():
        return True
    events.bulk_create([event], ignore_conflicts=True)
    if signals.email_event.has_listeners(EmailEvent) and events.filter(pk=event.pk).exists():
        transaction.on_commit(partial(_send_signal, event), using=using, robust=True)
    if log.status != Status.SENT:  # a visit of any kind proves that it arrived
        confirm_delivered([log.pk], using)
    return True


def apply_early_events(ids: Iterable[UUID], provider_ids: Collection[str], using: str) -> None:
    """Apply events that arrived before their mail was settled.

    ``ids``: e-mails not settled as sent; ``provider_ids``: those of the attempts just settled.
    """
    confirm_delivered({*ids, *_link_orphans(provider_ids, using)}, using)


def confirm_delivered(ids: Collection[UUID], using: str) -> None:
    """Mark mail of unknown outcome as sent if an event proves that it was.

    Overrides whatever ``on_unknown`` did in the meantime; a resend not yet claimed is dropped.
    """
    if not ids:
        return
    lost = DeliveryAttempt.objects.using(using).filter(failure_kind__in=LOST)
    statuses = [*lifecycle.SUCCEED.sources - {Status.SENDING}, *lifecycle.CONFIRM.sources]
    candidates = EmailLog.objects.using(using).filter(
        Exists(lost.filter(email=OuterRef("pk"))), status__in=statuses
    )
    columns = ("pk", "status", "failure_kind", "keep_content", "queue")
    logs = list(candidates.filter(pk__in=ids).only(*columns))
    if not logs:
        return
    proven = _proven_recipients([log.pk for log in logs], using)
    kinds = defaultdict(list)
    for email_id, kind in lost.filter(email__in=proven).values_list("email_id", "failure_kind"):
        kinds[email_id].append(kind)
    for log in logs:
        if log.pk in proven:
            # Whom the attempt refused is known, unless it is one of several in doubt, or its worker
            # died. Then the proof is for those alone whom it names, if the mail goes on.
            is_known = len(kinds[log.pk]) == 1 and kinds[log.pk][0] not in ENDED_WORKER
            is_over = log.status == Status.CANCELLED or (
                log.status == Status.FAILED and log.failure_kind not in PASSING
            )
            succeed(log, using, proven[log.pk], covers_others=is_known or is_over)


def succeed(
    log: EmailLog, using: str, proven: Collection[int] = (), *, covers_others: bool = True
) -> bool:
    """Mark a mail as sent, or only some of its recipients if others are not proven.

    ``proven`` are the positions of those who surely got it. With ``covers_others``, so did the
    others except those refused for now. Returns whether its status was changed.
    """
    move = lifecycle.SUCCEED if log.status == Status.UNKNOWN else lifecycle.CONFIRM
    rows = EmailLog.objects.using(using)
    with transaction.atomic(using=using):
        recipients = EmailRecipient.objects.using(using).filter(email=log)
        codes = dict(recipients.filter(outcome="").values_list("position", "code"))
        left = {p: it for p, it in codes.items() if p not in proven}
        if covers_others:
            left = {p: code for p, code in left.items() if code is not None}
        if left:
            recipients.filter(position__in=codes.keys() - left.keys()).update(
                outcome=EmailRecipient.Outcome.ACCEPTED, code=None, reply=""
            )
            if log.status in lifecycle.CLAIMABLE:
                return False  # the others are retried as planned
            if log.status == Status.UNKNOWN and None in left.values():
                return False  # the others may have it as well
            move = lifecycle.RESEND if log.status == Status.UNKNOWN else lifecycle.REQUEUE
            still, is_withdrawn = rows.filter(status=log.status), log.status == Status.CANCELLED
            if not is_withdrawn and still.move(
                move, [log.pk], due_at=clock.now(), finished_at=None
            ):
                doorbell.ring_on_commit(log.queue, using=using)
                tell = partial(announce, log.pk, move)
                transaction.on_commit(tell, using=using)
                return True
            if not (is_withdrawn or still.filter(pk=log.pk, envelope="").exists()):
                return False
            # The others will not get it: it was cancelled, or its content is deleted.
            recipients.filter(position__in=left).update(outcome=EmailRecipient.Outcome.REFUSED)
            move = lifecycle.CONFIRM
        ended: dict[str, Any] = {"failure_kind": "", "failure_code": None, "reply": ""}
        ended["finished_at"] = clock.now()
        if not rows.move(move, [log.pk], **ended):
            if move is lifecycle.CONFIRM:
                return False
            move = lifecycle.CONFIRM  # its policy or a person has resent it since it was read
            if not rows.filter(status__in=lifecycle.CLAIMABLE).move(move, [log.pk], **ended):
                return False
        recipients.filter(outcome="", code__isnull=False).update(code=None, reply="")
        if log.forgets_content(move.target):
            rows.forget_content([log.pk])
        result_backend.expect([log.pk], using)
    announce(log.pk, move)
    return True


def announce(email_id: UUID, move: lifecycle.Move) -> None:
    """Send ``email_moved`` for a move that is committed."""
    signals.tell_moved(EmailLog, email_id, move)


def _proven_recipients(ids: Sequence[UUID], using: str) -> dict[UUID, set[int]]:
    """Return, for each e-mail proven sent, the positions of the recipients who surely got it.

    An event without an address is taken for one of each recipient. Only recipients whose outcome is
    unknown count.
    """
    unknown = defaultdict[UUID, dict[int, str]](dict)
    recipients = EmailRecipient.objects.using(using).filter(email_id__in=ids, outcome="")
    for email_id, position, address in recipients.values_list("email_id", "position", "address"):
        unknown[email_id][position] = canonical(address)
    events = EmailEvent.objects.using(using).filter(email_id__in=ids)
    seen = events.exclude(kind__in=_NO_PROOF_OF_SENDING).exclude(reason=UNAUTHENTICATED)
    named = defaultdict[UUID, set[str]](set)
    for email_id, address in seen.values_list("email_id", "address"):
        if email_id is not None:
            named[email_id].add(address)
    proven = {}
    for email_id, addresses in named.items():
        are_all = "" in addresses
        positions = {p for p, it in unknown[email_id].items() if are_all or it in addresses}
        if positions or are_all:
            proven[email_id] = positions
    return proven


def _follow_up(email_id: UUID | None, provider_id: str, using: str) -> None:
    ids = _link_orphans([provider_id], using) if email_id is None else {email_id}
    confirm_delivered(ids, using)


def _link_orphans(provider_ids: Iterable[str], using: str) -> set[UUID]:
    """Link events without an e-mail to the one with their provider's id.

    Returns the ids of those e-mails.
    """
    wanted = {it for it in provider_ids if it}
    if not wanted:
        return set()
    events = EmailEvent.objects.using(using).filter(email=None, provider_id__in=wanted)
    if not events.exists():
        return set()
    # Of events with an id that no mail has, anybody may have posted thousands: they are not read.
    attempts = DeliveryAttempt.objects.using(using).filter(provider_id__in=wanted)
    known = dict(attempts.values_list("provider_id", "email_id"))
    linked = set()
    for event in list(events.filter(provider_id__in=known) if known else ()):
        if event.provider_id in known:
            event.email_id = known[event.provider_id]
            with transaction.atomic(using=using):
                if events.filter(pk=event.pk).update(email_id=event.email_id):
                    _forget_link(event, using)
                    _suppress(event, using)
            linked.add(known[event.provider_id])
    return linked


def _forget_link(event: EmailEvent, using: str) -> None:
    """Delete the link of an event if the content of its mail, of which it is a part, is not kept.

    It came before the mail was known.
    """
    if not event.url:
        return
    log = EmailLog.objects.using(using).filter(pk__in=[event.email_id]).first()
    if log is None or not log.keeps_content():
        event.url = ""
        EmailEvent.objects.using(using).filter(pk=event.pk).update(url="")


def _suppress(event: EmailEvent, using: str) -> None:
    """Suppress the event's address if it bounces for good, or its owner opted out.

    An unsubscribe applies to its e-mail's category, so it has no effect until the e-mail is known.
    """
    if event.reason == UNAUTHENTICATED:
        return
    if event.kind == Kind.UNSUBSCRIBED and event.source == OWN:
        return  # ``unsubscribe`` has listed the scope that was left, which may be another
    reason = _REASONS.get(event.kind)
    if event.kind == Kind.BOUNCED and event.reason == PERMANENT:
        reason = Suppression.Reason.BOUNCE
    if event.kind == Kind.REJECTED:
        reason = REJECTION_REASONS.get(event.reason)
    if reason is None or not event.address:
        return
    scope = ""
    if reason == Suppression.Reason.UNSUBSCRIBE:
        if event.email_id is None:
            return
        logs = EmailLog.objects.using(using).filter(pk=event.email_id)
        scope = logs.values_list("category", flat=True).first() or ""
    note = f"{event.source}: {event.kind}"
    with contextlib.suppress(ValueError):  # the provider may report an invalid address
        suppression.add(event.address, reason=reason, scope=scope, note=note)


def _send_signal(event: EmailEvent) -> None:
    event.__dict__.pop("created_at", None)  # a database expression until reloaded
    with signals.concerning(event.email_id):
        signals.email_event.send_robust(EmailEvent, event=event)
