"""What the tables hold about one person, to be handed out to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.mail import EmailMessage
from django.db import models, router

from django_epica_mail import messages
from django_epica_mail.messages import encryption
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    Suppression,
)
from django_epica_mail.privacy.person import (
    LOG_TEXTS,
    RESULT_TEXTS,
    Advance,
    Found,
    Person,
    find,
    mentioning,
    optional_model,
    unfinished_batches,
)


def export(person: Person, *, advance: Advance = lambda done, total: None) -> dict[str, Any]:
    """Return, as what JSON can hold, all that the tables have about a person.

    Of a mail to them its content is part; of one that only mentions them, no more than that it
    does. Other recipients are not named.
    """
    using = router.db_for_write(EmailLog)
    found = list(find(person, using, advance))
    theirs = person.rows()
    results = models.Q(task_id__in=[str(it.id) for it in found if it.roles])
    of_app = models.Q(content_type__app_label="epica_mail")
    return {
        "address": person.addresses[0],
        "mails": list(filter(None, (_mail(it, person, using) for it in found if it.roles))),
        "unreadable": [str(it.id) for it in found if not it.is_readable],
        "unfinished_batches": [str(pk) for pk in unfinished_batches(person, using)],
        "events": list(EmailEvent.objects.using(using).filter(theirs).values()),
        "suppressions": list(Suppression.objects.using(using).filter(theirs).values()),
        "results": _values(
            "django_celery_results",
            "TaskResult",
            results | _about(person, "django_celery_results", "TaskResult", RESULT_TEXTS),
            ("task_id", "task_name", "status", "date_done"),  # others may be in the rest
        ),
        "admin_log": _values(
            "admin", "LogEntry", of_app & _about(person, "admin", "LogEntry", LOG_TEXTS, of_app)
        ),
    }


def _mail(found: Found, person: Person, using: str) -> dict[str, Any] | None:
    """Return what the tables have about a mail; ``None`` if it was deleted since it was found."""
    log = EmailLog.objects.using(using).filter(pk=found.id).first()
    if log is None:
        return None
    about: dict[str, Any] = {
        "id": str(log.pk),
        "roles": sorted(found.roles),
        "status": log.status,
        "created_at": log.created_at,
        "finished_at": log.finished_at,
        "message_id": log.message_id,
    }
    if found.roles == {"mentioned"}:
        return about
    own = EmailRecipient.objects.using(using).filter(person.rows(), email=log)
    attempts = DeliveryAttempt.objects.using(using).filter(email=log)
    names = ("number", "created_at", "transport", "code", "reply")
    return {
        **about,
        "subject": log.subject,
        "from": log.from_email,
        "category": log.category,
        "recipient": list(own.values("kind", "address", "outcome", "code", "reply")),
        "attempts": [
            # The server's words may be about others.
            it if not found.others or person.is_mentioned(it["reply"]) else {**it, "reply": ""}
            for it in attempts.values(*names)
        ],
        "content": _content(log, using) if log.envelope and found.is_readable else None,
    }


def _content(log: EmailLog, using: str) -> dict[str, Any]:
    place = encryption.envelope_of(log.pk)
    message: EmailMessage = messages.load(log.envelope, messages.AbsentAttachments(), place)
    files = log.attachments.using(using).filter(digest__in=log.attached_digests())
    return {
        "subject": str(message.subject),
        "body": None if message.body is None else str(message.body),
        "alternatives": [
            {"type": it[1], "content": str(it[0])} for it in getattr(message, "alternatives", ())
        ],
        "attachments": list(files.values("filename", "mimetype", "size")),
    }


def _about(
    person: Person, app_label: str, name: str, columns: Sequence[str], among: models.Q | None = None
) -> models.Q:
    """Return the condition that a row of an optional app contains the address."""
    model = optional_model(app_label, name)
    if model is None:
        return models.Q(pk__in=[])
    rows = model._default_manager.using(router.db_for_write(model)).filter(among or models.Q())
    return models.Q(pk__in=[row["pk"] for row in mentioning(person, rows, columns)])


def _values(
    app_label: str, name: str, wanted: models.Q, columns: Sequence[str] = ()
) -> list[dict[str, Any]]:
    model = optional_model(app_label, name)
    if model is None:
        return []
    rows = model._default_manager.using(router.db_for_write(model)).filter(wanted)
    return list(rows.order_by("pk").values(*columns))
