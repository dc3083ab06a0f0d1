"""What happened to mail after it was sent: recorded once, in whatever order it is told."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.db import connections, router, transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from django_epica_mail import clock, lifecycle, models, signals, suppression
from django_epica_mail.broker import result_backend
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    Suppression,
)
from django_epica_mail.retry import Kind as FailureKind
from django_epica_mail.retry import reply_text

Kind = EmailEvent.Kind

OWN = "epica_mail"
"""The source of what we saw ourselves."""

_TOO_SOON = 3.0
"""Seconds after it was sent in which no person opens a mail, or follows a link of it."""

_SAME = 10.0
"""Seconds in which the same visit is counted once, so that no link fills the table."""

_SAYS_NOTHING_OF_THE_SENDING = (Kind.SUBSCRIBED, Kind.AUTORESPONDED)
_LEFT_OPEN = (FailureKind.UNKNOWN, FailureKind.WORKER_LOST)
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
PERMANENT = "permanent"
"""The ``reason`` of a bounce after which the address is not sent to again."""


def record(event: EmailEvent) -> bool:
    """Write an event down, with all that follows from it; return whether it was not known yet.

    Events may be told twice, in any order, and before the worker has settled the mail: what is
    there in the end is the same. A receiver of ``email_event`` hears of each once.
    """
    using = router.db_for_write(EmailEvent)
    rows = EmailEvent.objects.using(using)
    with transaction.atomic(using=using):
        rows.bulk_create([event], ignore_conflicts=True)
        is_new = rows.filter(pk=event.pk).exists()
        if is_new:
            _suppress(event, using)
            tell = partial(_tell, event)
            transaction.on_commit(tell, using=using, robust=True)
    # After the commit, as the worker looks for events after its own: one of the two sees the other.
    follow_up = partial(_follow_up, event.email_id, event.provider_id, using)
    follow_up()
    if connections[using].in_atomic_block:
        transaction.on_commit(follow_up, using=using)
    return is_new


def unsubscribe(found_by: str, scope: str, email_id: UUID | None) -> None:
    """Note that a person unsubscribed by a link, and hold mail back from the address from now on.

    ``found_by`` is the digest of the address. It may be done again, and long after the mail that
    carried the link was deleted.
    """
    using = router.db_for_write(EmailEvent)
    recipients = EmailRecipient.objects.using(using).filter(email=email_id)
    address = recipients.values_list("address", flat=True).first() if email_id else None
    if address is None or suppression.digest(address) != found_by:
        suppression.add_digest(found_by, reason=Suppression.Reason.UNSUBSCRIBE, scope=scope)
        return
    suppression.add(address, reason=Suppression.Reason.UNSUBSCRIBE, scope=scope)
    record(
        EmailEvent(
            email_id=email_id,
            key=hashlib.sha256(f"{Kind.UNSUBSCRIBED} {email_id}".encode()).hexdigest(),
            kind=Kind.UNSUBSCRIBED,
            at=timezone.now(),
            created_at=clock.now(),
            source=OWN,
            address=suppression.normalise(address),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Somebody, or something, that opens a mail or follows one of its links."""

    email_id: UUID
    kind: Kind
    url: str = ""
    user_agent: str = ""
    is_machine: bool = False
    ip: str | None = None


def observe(visit: Visit) -> bool:
    """Record a visit, with one write; return whether it was.

    Not of a mail that is deleted. The same again within a few seconds is the same visit. Who
    comes before the mail has been sent for some seconds is a scanner on its way.
    """
    using = router.db_for_write(EmailEvent)
    logs = EmailLog.objects.using(using).filter(pk=visit.email_id)
    log = logs.only("pk", "status", "finished_at").first()
    if log is None:
        return False
    now = timezone.now()
    is_machine = visit.is_machine or log.finished_at is None
    if log.finished_at is not None:
        is_machine |= (now - log.finished_at).total_seconds() < _TOO_SOON
    what = [visit.email_id.hex, visit.kind, visit.url, is_machine, int(now.timestamp() // _SAME)]
    event = EmailEvent(
        email_id=log.pk,
        key=hashlib.sha256(repr(what).encode("utf-8", "replace")).hexdigest(),
        kind=visit.kind,
        at=now,
        created_at=clock.now(),
        source=OWN,
        url=visit.url,
        user_agent=reply_text(visit.user_agent)[:255],
        ip=visit.ip,
        is_machine=is_machine,
    )
    rows = EmailEvent.objects.using(using)
    rows.bulk_create([event], ignore_conflicts=True)
    if signals.email_event.has_listeners(EmailEvent) and rows.filter(pk=event.pk).exists():
        transaction.on_commit(partial(_tell, event), using=using, robust=True)
    if log.status != Status.SENT:  # whoever looks at it, it has arrived
        confirm_delivered([log.pk], using)
    return True


def settled(ids: Iterable[UUID], provider_ids: Collection[str], using: str) -> None:
    """Take account of events that came before their mail was settled.

    ``ids`` are those of mails that were not sent; ``provider_ids`` what providers call mails.
    """
    confirm_delivered({*ids, *_tie(provider_ids, using)}, using)


def confirm_delivered(ids: Collection[UUID], using: str) -> None:
    """Take mail for sent whose outcome was open, where an event shows that it was.

    Whatever its policy has made of it since: it is not sent again.
    """
    if not ids:
        return
    left_open = DeliveryAttempt.objects.using(using).filter(
        email=OuterRef("pk"), failure_kind__in=_LEFT_OPEN
    )
    statuses = [*lifecycle.SUCCEED.sources - {Status.SENDING}, *lifecycle.CONFIRM.sources]
    candidates = EmailLog.objects.using(using).filter(Exists(left_open), status__in=statuses)
    logs = list(candidates.filter(pk__in=ids).only("pk", "status", "keep_content"))
    told = _told([log.pk for log in logs], using) if logs else set()
    for log in logs:
        if log.pk in told:
            _succeed(log, using)


def _succeed(log: EmailLog, using: str) -> None:
    move = lifecycle.SUCCEED if log.status == Status.UNKNOWN else lifecycle.CONFIRM
    with transaction.atomic(using=using):
        moved = EmailLog.objects.using(using).move(
            move,
            [log.pk],
            failure_kind="",
            failure_code=None,
            reply="",
            finished_at=clock.now(),
        )
        if not moved:
            return
        if models.ends_with(move.target, log.keep_content):
            models.forget([log.pk], using)
        result_backend.expect([log.pk], using)
    signals.email_moved.send_robust(EmailLog, email_id=log.pk, move=move, failure=None)


def _told(ids: Sequence[UUID], using: str) -> set[UUID]:
    """Return the mails of which an event tells that a recipient was sent to who was left open."""
    left = defaultdict(set)
    recipients = EmailRecipient.objects.using(using).filter(email_id__in=ids, outcome="")
    for email_id, address in recipients.values_list("email_id", "address"):
        left[email_id].add(suppression.normalise(address))
    events = EmailEvent.objects.using(using).filter(email_id__in=ids)
    seen = events.exclude(kind__in=_SAYS_NOTHING_OF_THE_SENDING)
    return {
        email_id
        for email_id, address in seen.values_list("email_id", "address")
        if email_id is not None and (not address or address in left[email_id])
    }


def _follow_up(email_id: UUID | None, provider_id: str, using: str) -> None:
    ids = _tie([provider_id], using) if email_id is None else {email_id}
    confirm_delivered(ids, using)


def _tie(provider_ids: Iterable[str], using: str) -> set[UUID]:
    """Give events that are of no mail yet the mail their provider's id stands for; return which."""
    wanted = {it for it in provider_ids if it}
    if not wanted:
        return set()
    events = EmailEvent.objects.using(using).filter(email=None, provider_id__in=wanted)
    orphans = list(events)
    if not orphans:
        return set()
    attempts = DeliveryAttempt.objects.using(using).exclude(provider_id="")
    known = dict(
        attempts.filter(provider_id__in={it.provider_id for it in orphans}).values_list(
            "provider_id", "email_id"
        )
    )
    tied = set()
    for event in orphans:
        if event.provider_id in known:
            event.email_id = known[event.provider_id]
            with transaction.atomic(using=using):
                if events.filter(pk=event.pk).update(email_id=event.email_id):
                    _suppress(event, using)
            tied.add(known[event.provider_id])
    return tied


def _suppress(event: EmailEvent, using: str) -> None:
    """Hold mail back from an address of which an event says that it wants, or takes, none.

    Who unsubscribes from mail of a category gets the rest; so while the mail is not known, nobody
    is suppressed for it.
    """
    reason = _REASONS.get(Kind(event.kind))
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
    with contextlib.suppress(ValueError):  # what a provider takes for an address, and is none
        suppression.add(event.address, reason=reason, scope=scope, note=note)


def _tell(event: EmailEvent) -> None:
    event.__dict__.pop("created_at", None)  # an expression until the database has said its time
    signals.email_event.send_robust(EmailEvent, event=event)
