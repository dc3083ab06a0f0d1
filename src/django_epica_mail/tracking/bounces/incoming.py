"""Records what comes back by mail as events, like those that providers report."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from uuid import UUID

from django.db import router
from django.utils import timezone

from django_epica_mail import clock, conf
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailEvent, EmailLog, EmailRecipient
from django_epica_mail.replies import says_no_such_address
from django_epica_mail.retry import Failure
from django_epica_mail.tracking import events
from django_epica_mail.tracking.bounces import reports, verp
from django_epica_mail.tracking.bounces.reports import Report, Verdict
from django_epica_mail.tracking.events import Kind

SOURCE = "mailbox"
"""The ``source`` of events that came back by mail."""


class Received(enum.Enum):
    """What became of a message that came back."""

    RECORDED = "recorded"
    KNOWN = "known"
    """It says nothing that was not recorded before."""
    UNMATCHED = "unmatched"
    """A report about mail that is not ours, or was deleted."""
    UNRECOGNISED = "unrecognised"
    """No report that is understood."""


def receive(content: bytes, *, envelope_to: str = "") -> Received:
    """Record what a message that came back reports; it may be received again, in any order.

    ``content`` is the message as received; ``envelope_to`` the address that it was delivered to,
    if the caller knows more than its headers say. Raises ``DatabaseError``.

    An e-mail of one recipient and a signed return address: the report is believed. Any other is
    recorded as ``unauthenticated``, and nothing follows, unless ``TRUST_UNSIGNED_BOUNCES`` is set:
    Message-IDs are no secret, and of several recipients each sees the one return address, so that
    one could have the others suppressed.
    """
    report = reports.parse(content)
    if report is None:
        return Received.UNRECOGNISED
    using = router.db_for_write(EmailLog)
    mail, is_signed = _find_email(report, envelope_to, using)
    if mail is None:
        return Received.UNMATCHED
    recipients = EmailRecipient.objects.using(using).filter(email=mail)
    rows = recipients.order_by("position").values_list("address", flat=True)
    addresses = [canonical(address) for address in rows]
    is_trusted = conf.get().trust_unsigned_bounces or (is_signed and len(addresses) == 1)
    found = [_event(mail, report, it, addresses, is_trusted=is_trusted) for it in report.verdicts]
    recorded = [events.record(event) for event in {it.key: it for it in found}.values()]
    return Received.RECORDED if any(recorded) else Received.KNOWN


def record_refusals(email_id: UUID, refused: Mapping[int, Failure]) -> None:
    """Record the recipients of an e-mail that the server refused as "no such user".

    ``refused`` holds the refusals for good by position, whether or not the server has accepted
    other recipients. ``SUPPRESS_REFUSED`` decides. Raises ``DatabaseError``.
    """
    said = {position: f"{it.code or ''} {it.reply}" for position, it in refused.items()}
    gone = {position: text for position, text in said.items() if says_no_such_address(text)}
    if not gone or not conf.get().suppress_refused:
        return
    recipients = EmailRecipient.objects.using(router.db_for_write(EmailLog))
    rows = recipients.filter(email=email_id, position__in=gone)
    for position, named in rows.values_list("position", "address"):
        address = canonical(named)
        events.record(
            EmailEvent(
                email_id=email_id,
                key=_key(events.OWN, email_id, Kind.BOUNCED, address, events.PERMANENT),
                kind=Kind.BOUNCED,
                at=timezone.now(),
                created_at=clock.now(),
                source=events.OWN,
                address=address,
                reason=events.PERMANENT,
                reply=gone[position],
            )
        )


def _find_email(report: Report, envelope_to: str, using: str) -> tuple[EmailLog | None, bool]:
    """Return the e-mail of a report, and whether only its one recipient saw the return address."""
    logs = EmailLog.objects.using(using).only("pk", "created_at")
    for email_id, is_shared in verp.find([envelope_to, *report.tied_by]):
        mail = logs.filter(pk=email_id).first()
        if mail is not None:
            return mail, not is_shared
    named = logs.filter(message_id__in=report.message_ids) if report.message_ids else logs.none()
    return named.order_by("-created_at").first(), False


def _event(
    mail: EmailLog, report: Report, verdict: Verdict, recipients: Sequence[str], *, is_trusted: bool
) -> EmailEvent:
    """Return the event of a verdict, about the recipient of ours that it concerns.

    The only recipient is meant by whatever address the report gives: mail that was forwarded
    bounces from where it went.
    """
    named = [canonical(address) for address in verdict.addresses]
    address = next((it for it in named if it in recipients), "")
    if len(recipients) == 1:
        address = recipients[0]
    reason = "" if is_trusted else events.UNAUTHENTICATED
    if is_trusted and verdict.kind is Kind.BOUNCED:
        is_for_good = says_no_such_address(verdict.reply)
        reason = events.PERMANENT if is_for_good else "transient"
    now = timezone.now()
    return EmailEvent(
        email_id=mail.pk,
        key=_key(SOURCE, mail.pk, verdict.kind, address, reason),
        kind=verdict.kind,
        at=min(max(report.at or now, mail.created_at), now),
        created_at=clock.now(),
        source=SOURCE,
        address=address,
        reason=reason,
        reply=verdict.reply,
    )


def _key(source: str, email_id: UUID, kind: Kind, address: str, reason: str) -> str:
    """Return a digest by which an event is stored once, however often its report is sent.

    What is believed and what is not differ by ``reason``: a forged report cannot keep out the
    true one, and the events of an e-mail stay few whatever is sent.
    """
    what = json.dumps([source, email_id.hex, kind, address, reason])
    return hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()
