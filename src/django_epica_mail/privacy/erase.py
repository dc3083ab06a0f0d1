"""Erases a person from the queue, the log and every other table that contains their address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from django.apps import apps
from django.db import IntegrityError, connections, models, router, transaction
from django.db.models import F

from django_epica_mail import lifecycle, outbox
from django_epica_mail.broker import result_backend
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import codec, encryption
from django_epica_mail.models import EmailEvent, EmailLog, EmailRecipient, Suppression
from django_epica_mail.privacy import person as privacy_person
from django_epica_mail.privacy import remains as privacy_remains
from django_epica_mail.privacy.person import (
    LOG_TEXTS,
    RESULT_TEXTS,
    Advance,
    Found,
    Person,
    is_cut,
    mentioning,
    optional_model,
)
from django_epica_mail.privacy.reasons import change_reasons

WAITING = lifecycle.CLAIMABLE | {lifecycle.Status.UNKNOWN}
"""The statuses in which a mail's recipients can still be changed."""

_NOT_SCRUBBED = frozenset({"envelope", "payload", "address", "digest", "key"})
"""Columns that are handled separately or never contain an address."""


@dataclass(slots=True)
class Erased:
    """What was erased, in rows, and what could not be erased yet."""

    cancelled: int = 0
    """Mails cancelled, because no other recipient was left."""
    deleted: int = 0
    """Mails to this person alone, including cancelled ones."""
    recipients: int = 0
    """Recipients removed from mails that are kept for others."""
    forgotten: int = 0
    """Mails kept for others, without their content."""
    texts: int = 0
    """Rows in which the address was replaced, in a server's reply for example."""
    events: int = 0
    suppressions: int = 0
    """Entries of the suppression list that lost the address and still suppress by its digest."""
    results: int = 0
    admin_log: int = 0
    left: list[str] = field(default_factory=list)
    """Ids of what cannot be changed now: mails being sent, mails waiting to be sent to others that
    are from this person or mention them, and bulk calls not expanded yet."""
    unreadable: list[str] = field(default_factory=list)
    """Ids of mails whose content, and of bulk calls whose reasons for refusing entries, none of the
    site's keys decrypts."""
    remains: list[str] = field(default_factory=list)
    """Where else the address may still stand, as table, column and row: it may be part of a longer
    address there, which only a person can decide."""


def erase(
    person: Person, *, dry_run: bool = False, advance: Advance = lambda done, total: None
) -> dict[str, Any]:
    """Erase a person from every table; return the fields of ``Erased``.

    A mail to them alone is deleted, and cancelled first if it is waiting. A mail that is also to
    others is sent without them if it is waiting; otherwise it loses their address and its content.
    ``dry_run`` does the same and rolls it back. ``advance`` is called with the number of mails
    examined so far and the total.
    """
    using = router.db_for_write(EmailLog)
    done = Erased()
    with transaction.atomic(using=using) if dry_run else nullcontext():
        for found in list(privacy_person.find(person, using, advance)):
            if not found.is_readable:
                done.unreadable.append(str(found.id))
            if found.roles:
                with transaction.atomic(using=using):
                    _erase_mail(person, found, using, done, mirrors=not dry_run)
        _erase_elsewhere(person, using, done)
        done.left += [str(pk) for pk in privacy_person.unfinished_batches(person, using)]
        done.remains += privacy_remains.remains(person, using, known={*done.left, *done.unreadable})
        if dry_run:
            transaction.set_rollback(True, using=using)
    return asdict(done)


def _erase_mail(person: Person, found: Found, using: str, done: Erased, *, mirrors: bool) -> None:
    is_recipient = bool(found.roles & set(EmailRecipient.Kind.values))
    status = _lock(found, using)
    if status is None:
        return  # deleted since it was found
    if status in lifecycle.FINAL:
        _erase_finished(person, found, using, done)
    elif status not in WAITING or not is_recipient:
        done.left.append(str(found.id))
    elif _is_for_others(person, found, using):
        if not _leave_out(person, found, using, done):
            done.left.append(str(found.id))
    elif outbox.cancel([found.id]).cancelled:
        done.cancelled += 1
        if mirrors:
            result_backend.mirror([found.id], using)
        _erase_finished(person, found, using, done)
    else:
        done.left.append(str(found.id))


def _lock(found: Found, using: str) -> str | None:
    """Lock the row of an e-mail for this transaction; return its status, which no longer changes.

    Between finding an e-mail and erasing it, a person may have requeued it, or a worker sent it.
    """
    rows = EmailLog.objects.using(using).filter(pk=found.id)
    if connections[using].features.has_select_for_update:
        rows = rows.select_for_update()
    return rows.values_list("status", flat=True).first()


def _is_for_others(person: Person, found: Found, using: str) -> bool:
    """Return whether a waiting mail still has other recipients to be sent to."""
    recipients = EmailRecipient.objects.using(using).filter(email=found.id, outcome="")
    return recipients.exclude(person.rows()).exists()


def _leave_out(person: Person, found: Found, using: str, done: Erased) -> bool:
    """Remove a person from a waiting mail; return whether it no longer mentions them.

    Updates only the envelope it has read: a worker that claims the mail first sends it unchanged.
    """
    rows = EmailLog.objects.using(using).filter(pk=found.id, status__in=WAITING)
    old = rows.values_list("envelope", flat=True).first()
    if not old:
        return False
    place = encryption.envelope_of(found.id)
    try:
        new = codec.without_recipients(old, person.is_named, place)
    except UnreadableEnvelope:
        return False
    # A late answer to the claim before counts the recipients as they were: it finds none.
    if not rows.filter(envelope=old).update(envelope=new, lease_token=None):
        return False
    recipients = EmailRecipient.objects.using(using).filter(email=found.id)
    own = recipients.filter(person.rows()).order_by("-position")
    for position in list(own.values_list("position", flat=True)):
        recipients.filter(position=position).delete()
        # Positions are indexes into the message's recipients, which have moved up too.
        recipients.filter(position__gt=position).update(position=F("position") - 1)
        done.recipients += 1
    return not person.is_mentioned_in(encryption.unseal(new, place))


def _erase_finished(person: Person, found: Found, using: str, done: Erased) -> None:
    if found.roles & set(EmailRecipient.Kind.values) and not found.others:
        EmailLog.objects.using(using).delete_with_content([found.id])
        done.deleted += 1
        return
    EmailLog.objects.using(using).forget_content([found.id])
    done.forgotten += 1
    own = EmailRecipient.objects.using(using).filter(email=found.id).filter(person.rows())
    done.recipients += own.delete()[0]


def _erase_elsewhere(person: Person, using: str, done: Erased) -> None:
    """Erase the address from every column of every table that may contain it."""
    theirs = person.rows()
    done.events += EmailEvent.objects.using(using).filter(theirs).delete()[0]
    done.suppressions += Suppression.objects.using(using).filter(theirs).update(address="")
    for model in apps.get_app_config("epica_mail").get_models():
        rows = model._default_manager.using(using)
        done.texts += _scrub(person, rows, privacy_remains.text_columns(model, _NOT_SCRUBBED))
    _scrub_refusals(person, using, done)
    done.results += _scrub_of("django_celery_results", "TaskResult", RESULT_TEXTS, person)
    done.admin_log += _scrub_of(
        "admin", "LogEntry", LOG_TEXTS, person, content_type__app_label="epica_mail"
    )


def _scrub_of(
    app_label: str, name: str, names: Sequence[str], person: Person, **wanted: Any
) -> int:
    model = optional_model(app_label, name)
    if model is None:
        return 0
    rows = model._default_manager.using(router.db_for_write(model)).filter(**wanted)
    return _scrub(person, rows, names)


def _scrub(person: Person, rows: models.QuerySet[Any], names: Sequence[str]) -> int:
    """Replace the address in some columns; return the number of rows changed."""
    count = 0
    for row in mentioning(person, rows, names) if names else ():
        new = {
            name: value
            for name in names
            if row[name] and (value := _scrubbed(person, rows.model, name, row[name])) != row[name]
        }
        if new:
            count += _replace(rows.filter(pk=row["pk"]), new)
    return count


def _replace(row: models.QuerySet[Any], new: Mapping[str, str | None]) -> int:
    """Write the new texts of a row; return 0 if another row, erased before, has them already.

    The row is then among what ``remains`` finds.
    """
    try:
        with transaction.atomic(using=row.db):
            return row.update(**new)
    except IntegrityError:
        return 0


def _scrubbed(person: Person, model: type[models.Model], name: str, text: str) -> str | None:
    """Return a text without the address; ``None`` for an idempotency key, which must be unique."""
    cut = is_cut(model, name, text)
    if name == "idempotency_key":
        return None if person.occurrences(text, is_cut=cut) else text
    return person.scrub(text, is_cut=cut)[: model._meta.get_field(name).max_length]  # type: ignore[union-attr]


def _scrub_refusals(person: Person, using: str, done: Erased) -> None:
    """Erase the address from the reasons why bulk calls refused entries."""

    def scrubbed(stored: str, place: str) -> str:
        reason = encryption.unseal(stored, place)
        new = person.scrub(reason)
        return stored if new == reason else encryption.reseal(new, stored)

    for reasons in change_reasons(scrubbed, using):
        done.texts += bool(reasons.changed)
        if reasons.unreadable:
            done.unreadable.append(str(reasons.batch))
