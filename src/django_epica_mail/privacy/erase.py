"""Erasing one person: from the queue, the log, and what else keeps their address."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from django.apps import apps
from django.db import models, router, transaction
from django.db.models import F

from django_epica_mail import lifecycle, outbox
from django_epica_mail import models as models_module
from django_epica_mail.broker import result_backend
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.messages import codec, encryption
from django_epica_mail.models import EmailBatch, EmailEvent, EmailLog, EmailRecipient, Suppression
from django_epica_mail.privacy import person as privacy_person
from django_epica_mail.privacy.person import (
    CHUNK,
    LOG_TEXTS,
    RESULT_TEXTS,
    Advance,
    Found,
    Person,
    optional_model,
)

WAITING = lifecycle.CLAIMABLE | {lifecycle.Status.UNKNOWN}
"""Of a mail in one of these statuses, the recipients can still be changed."""

_APART = frozenset({"envelope", "payload", "message_id", "address", "digest"})
"""Columns that are dealt with by themselves, or in which no address stands."""


@dataclass(slots=True)
class Erased:
    """What was erased, in rows, and what could not be yet."""

    cancelled: int = 0
    """Mails called back, for nobody else was left to send them to."""
    deleted: int = 0
    """Mails to this person alone, those called back included."""
    recipients: int = 0
    """Places in mails to others too, which these have no more."""
    forgotten: int = 0
    """Mails to or from others that have lost their content."""
    texts: int = 0
    """Rows in which something else stands for the address now: server's replies and the like."""
    events: int = 0
    suppressions: int = 0
    """Entries of the suppression list that hold mail back by their digest alone now."""
    results: int = 0
    admin_log: int = 0
    left: list[str] = field(default_factory=list)
    """Mails and bulk calls that cannot be changed now: being sent; waiting to be sent to others,
    while they come from this person or mention them; not expanded yet."""
    unreadable: list[str] = field(default_factory=list)
    """Mails whose content no key of the site's decrypts."""


def erase(
    person: Person, *, dry_run: bool = False, advance: Advance = lambda done, total: None
) -> dict[str, Any]:
    """Erase a person from every table; return what ``Erased`` says.

    A mail to them alone is called back if it waits, and deleted. A mail to others too goes on
    without them if it waits; else it loses their address, and its content. ``dry_run`` does the
    same and undoes it. ``advance`` is called with the number of mails looked at and the whole.
    """
    using = router.db_for_write(EmailLog)
    done = Erased()
    with transaction.atomic(using=using) if dry_run else nullcontext():
        for found in list(privacy_person.find(person, using, advance)):
            if not found.is_readable:
                done.unreadable.append(str(found.id))
            if found.roles:
                with transaction.atomic(using=using):
                    _erase_mail(person, found, using, done, tells=not dry_run)
        _erase_elsewhere(person, using, done)
        if dry_run:
            transaction.set_rollback(True, using=using)
    done.left += [str(pk) for pk in privacy_person.unfinished_batches(person, using)]
    return asdict(done)


def _erase_mail(person: Person, found: Found, using: str, done: Erased, *, tells: bool) -> None:
    is_recipient = bool(found.roles & set(EmailRecipient.Kind.values))
    if found.status in lifecycle.FINAL:
        _erase_finished(person, found, using, done)
    elif found.status not in WAITING or not is_recipient:
        done.left.append(str(found.id))
    elif _is_for_others(person, found, using):
        if not _leave_out(person, found, using, done):
            done.left.append(str(found.id))
    elif outbox.cancel([found.id]).cancelled:
        done.cancelled += 1
        if tells:
            result_backend.mirror([found.id], using)
        _erase_finished(person, found, using, done)
    else:
        done.left.append(str(found.id))


def _is_for_others(person: Person, found: Found, using: str) -> bool:
    """Tell whether a waiting mail is still to be sent to somebody else."""
    recipients = EmailRecipient.objects.using(using).filter(email=found.id, outcome="")
    return recipients.exclude(address__in=person.addresses).exists()


def _leave_out(person: Person, found: Found, using: str, done: Erased) -> bool:
    """Let a waiting mail go on without a person; return whether nothing of them is left in it.

    Guarded by what was read: a worker that has claimed it meanwhile sends it as it was.
    """
    rows = EmailLog.objects.using(using).filter(pk=found.id, status__in=WAITING)
    old = rows.values_list("envelope", flat=True).first()
    if not old:
        return False
    try:
        new = codec.without_recipients(old, person.is_named)
    except MissingKey:
        return False
    if not rows.filter(envelope=old).update(envelope=new):
        return False
    recipients = EmailRecipient.objects.using(using).filter(email=found.id)
    own = recipients.filter(address__in=person.addresses).order_by("-position")
    for position in list(own.values_list("position", flat=True)):
        recipients.filter(position=position).delete()
        # A position is the place in the message's own list, which has closed up too.
        recipients.filter(position__gt=position).update(position=F("position") - 1)
        done.recipients += 1
    return not person.is_mentioned_in(encryption.unseal(new))


def _erase_finished(person: Person, found: Found, using: str, done: Erased) -> None:
    if found.roles & set(EmailRecipient.Kind.values) and not found.others:
        models_module.delete([found.id], using)
        done.deleted += 1
        return
    models_module.forget([found.id], using)
    done.forgotten += 1
    own = EmailRecipient.objects.using(using).filter(email=found.id, address__in=person.addresses)
    done.recipients += own.delete()[0]


def _erase_elsewhere(person: Person, using: str, done: Erased) -> None:
    """Erase the address from every column of every table that may hold it."""
    theirs = models.Q(address__in=person.addresses)
    done.events += EmailEvent.objects.using(using).filter(theirs).delete()[0]
    done.suppressions += Suppression.objects.using(using).filter(theirs).update(address="")
    for model in apps.get_app_config("epica_mail").get_models():
        names = [
            column.name
            for column in model._meta.concrete_fields
            if isinstance(column, (models.CharField, models.TextField))
            and not column.choices
            and column.name not in _APART
        ]
        if names:
            done.texts += _scrub(person, model._default_manager.using(using), names)
    done.texts += _scrub_refusals(person, using)
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
    """Put something else in the place of the address in some columns; return in how many rows."""
    count, last = 0, None
    holding = rows.filter(person.filter(names)).order_by("pk")
    while True:
        following = holding if last is None else holding.filter(pk__gt=last)
        portion = list(following.values("pk", *names)[:CHUNK])
        if not portion:
            return count
        last = portion[-1]["pk"]
        for row in portion:
            new = {
                name: value
                for name in names
                if row[name] and (value := _scrubbed(person, name, row[name])) != row[name]
            }
            if new:
                count += rows.filter(pk=row["pk"]).update(**new)


def _scrubbed(person: Person, name: str, text: str) -> str | None:
    """Return a text without the address; ``None`` of a key made from it, for each is unique."""
    if name == "idempotency_key":
        return None if person.occurs_in(text) else text
    return person.scrub(text)


def _scrub_refusals(person: Person, using: str) -> int:
    """Erase the address from what is said of entries that bulk calls refused."""
    count = 0
    batches = EmailBatch.objects.using(using).exclude(refused=[])
    for batch in batches.only("pk", "refused").iterator():
        refused = [{**it, "reason": person.scrub(str(it["reason"]))} for it in batch.refused]
        if refused != batch.refused:
            count += batches.filter(pk=batch.pk).update(refused=refused)
    return count
