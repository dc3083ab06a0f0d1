"""The tables: the queue itself, its content, and what became of each e-mail."""

from django_epica_mail.clock import uuid7
from django_epica_mail.models.queryset import EmailQuerySet
from django_epica_mail.models.tables import (
    RECOVERABLE,
    CountingMark,
    DeliveryAttempt,
    DeliveryGate,
    EmailAttachment,
    EmailBatch,
    EmailEvent,
    EmailLog,
    EmailRecipient,
    EmailTotal,
    PendingResult,
    Suppression,
)

__all__ = [
    "RECOVERABLE",
    "CountingMark",
    "DeliveryAttempt",
    "DeliveryGate",
    "EmailAttachment",
    "EmailBatch",
    "EmailEvent",
    "EmailLog",
    "EmailQuerySet",
    "EmailRecipient",
    "EmailTotal",
    "PendingResult",
    "Suppression",
    "uuid7",  # where migration 0001 finds it
]
