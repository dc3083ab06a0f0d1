"""The message of one mail, for who looks at it or sends it again."""

from __future__ import annotations

from django.core.mail import EmailMessage

from django_epica_mail import serialization
from django_epica_mail.models import EmailLog


def message_of(mail: EmailLog) -> EmailMessage:
    """Rebuild a mail's message, for all of its recipients, as its caller gave it.

    Raises ``UnreadableEnvelope`` where it cannot be, as for content that is forgotten.
    """
    blobs = {row.digest: bytes(row.content) for row in mail.attachments.all()}
    return serialization.load(mail.envelope, blobs)
