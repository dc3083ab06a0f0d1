"""The tables: the queue itself, what came back, and the state of the queue."""

from django_epica_mail.clock import uuid7
from django_epica_mail.models.emails import (
    RECOVERABLE,
    DeliveryAttempt,
    EmailAttachment,
    EmailBatch,
    EmailBatchPart,
    EmailLog,
    EmailQuerySet,
    EmailRecipient,
    PendingResult,
)
from django_epica_mail.models.feedback import EmailEvent, Suppression
from django_epica_mail.models.queue_state import (
    CountingMark,
    DeliveryGate,
    EmailTotal,
    ReputationDay,
    SlowedDomain,
)

__all__ = [
    "RECOVERABLE",
    "CountingMark",
    "DeliveryAttempt",
    "DeliveryGate",
    "EmailAttachment",
    "EmailBatch",
    "EmailBatchPart",
    "EmailEvent",
    "EmailLog",
    "EmailQuerySet",
    "EmailRecipient",
    "EmailTotal",
    "PendingResult",
    "ReputationDay",
    "SlowedDomain",
    "Suppression",
    "uuid7",  # where migration 0001 finds it
]
