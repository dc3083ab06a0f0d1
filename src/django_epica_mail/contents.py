"""The messages of a batch, rebuilt from their rows one at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import transaction

from django_epica_mail import clock, lifecycle, providers, serialization, suppression
from django_epica_mail.claiming import Batch
from django_epica_mail.models import EmailAttachment, EmailLog, EmailRecipient
from django_epica_mail.portions import portions
from django_epica_mail.retry import PASSING, Kind

_CHUNK = 500
_HOPEFUL = (*PASSING, Kind.MESSAGE)
"""Why mail fails that can be queued again, by ``retry_failed_emails`` or by a person."""


def recipient_outcomes(mails: Iterable[EmailLog], using: str) -> dict[UUID, dict[int, str]]:
    """Return, for mails tried before, what is known of each recipient, by mail and position."""
    tried_before = [mail.pk for mail in mails if mail.attempts]
    found: dict[UUID, dict[int, str]] = defaultdict(dict)
    if tried_before:
        rows = EmailRecipient.objects.using(using).filter(email_id__in=tried_before)
        for row in rows.only("email_id", "position", "outcome"):
            found[row.email_id][row.position] = row.outcome
    return found


def ends_with(
    status: str, keep_content: str, failure_kind: str = "", *, too_old: bool = False
) -> bool:
    """Tell whether a mail's content is to be forgotten when it comes to a status.

    What failed for a reason that may pass, or that a new version of the site may mend, can still be
    queued again: until it is given up (``too_old``), only its content makes that possible.
    """
    if keep_content == "always" or status not in lifecycle.FINAL:
        return False
    return too_old or status != lifecycle.Status.FAILED or failure_kind not in _HOPEFUL


def forget_given_up(using: str) -> int:
    """Forget the content that was kept for another try, where none is to come; return how many.

    Looks through all mail that failed and is not deleted yet: for once a day, then.
    """
    count = 0
    for kind in _HOPEFUL:
        given_up = (
            EmailLog.objects.using(using)
            .filter(failure_kind=kind, status=lifecycle.Status.FAILED, give_up_at__lte=clock.now())
            .exclude(keep_content="always")
            .exclude(envelope="")
        )
        for ids in portions(list(given_up.values_list("pk", flat=True)), _CHUNK):
            with transaction.atomic(using=using):
                forget(ids, using)
            count += len(ids)
    return count


def forget(ids: Iterable[UUID], using: str) -> None:
    """Delete the content of mails: their envelopes, and attachments that no other mail has."""
    ids = list(ids)
    links = EmailLog.attachments.through._default_manager.using(using).filter(emaillog_id__in=ids)
    candidates = list(links.values_list("emailattachment_id", flat=True).distinct())
    links.delete()
    EmailAttachment.objects.using(using).filter(pk__in=candidates, emails__isnull=True).delete()
    EmailLog.objects.using(using).filter(pk__in=ids).update(envelope="")


def delete(ids: Iterable[UUID], using: str) -> None:
    """Delete mails, and the attachments that no other mail has."""
    ids = list(ids)
    with transaction.atomic(using=using):
        forget(ids, using)
        EmailLog.objects.using(using).filter(pk__in=ids).only("pk").delete()


class Contents:
    """Loads what a batch needs beside its rows, and builds each message when its turn comes.

    Few mails have attachments, and few were tried before: a batch without either costs one query.
    """

    def __init__(self, batch: Batch) -> None:
        self._using = batch.using
        self._attachments = self._find_attachments(batch)
        self._outcomes = recipient_outcomes(batch.mails, batch.using)
        self._held_back: dict[UUID, dict[int, str]] = {}
        self._left: dict[UUID, int] = {}
        if any(getattr(mail, "is_guarded", False) for mail in batch.mails):
            self._held_back, self._left = suppression.held_back(batch.mails, batch.using)
        self._blobs: dict[UUID, EmailAttachment] = {}
        self._total = 0

    def fetch(self, mail: EmailLog) -> None:
        """Read the attachments of a mail, keeping those it shares with the mail before it.

        Raises ``DatabaseError``; afterwards ``message`` needs no database.
        """
        wanted = self._attachments.get(mail.pk, [])
        kept = {pk: self._blobs[pk] for pk in wanted if pk in self._blobs}
        missing = [pk for pk in wanted if pk not in kept]
        if missing:
            kept.update(EmailAttachment.objects.using(self._using).in_bulk(missing))
        self._blobs = kept

    def message(self, mail: EmailLog) -> EmailMessage:
        """Build the message of the mail fetched last, for the recipients not yet done with.

        Raises whatever an unreadable envelope raises.
        """
        self._total = 0
        blobs = {row.digest: row.data for row in self._blobs.values()}
        message = serialization.load(mail.envelope, blobs)
        if "message-id" not in {name.lower() for name in message.extra_headers}:
            # First, for there Django puts its own: the order of the headers stays the same.
            message.extra_headers = {"Message-ID": mail.message_id, **message.extra_headers}
        setattr(message, providers.ID, str(mail.pk))
        everyone = message.recipients()
        self._total = len(everyone)
        outstanding = self.outstanding(mail)
        if len(outstanding) < len(everyone):
            addresses = [everyone[position] for position in outstanding]
            message.recipients = lambda: addresses  # type: ignore[method-assign]
        return message

    def outstanding(self, mail: EmailLog) -> list[int]:
        """Return the positions of the recipients that a try of this mail concerns."""
        outcomes = self._outcomes.get(mail.pk) or dict.fromkeys(range(self._total), "")
        held_back = self.held_back(mail)
        return sorted(
            position
            for position, outcome in outcomes.items()
            if not outcome and position not in held_back
        )

    def held_back(self, mail: EmailLog) -> Mapping[int, str]:
        """Return the recipients that the suppression list keeps from a mail, and why."""
        return self._held_back.get(mail.pk, {})

    def is_suppressed(self, mail: EmailLog) -> bool:
        """Tell whether the suppression list keeps a mail from everyone it was left to try for."""
        return bool(self.held_back(mail)) and not self._left[mail.pk]

    def was_accepted(self, mail: EmailLog) -> bool:
        """Tell whether an earlier try was accepted for some of the recipients."""
        return EmailRecipient.Outcome.ACCEPTED in self._outcomes.get(mail.pk, {}).values()

    def _find_attachments(self, batch: Batch) -> dict[UUID, list[UUID]]:
        link = EmailLog.attachments.through
        rows = (
            link._default_manager.using(self._using)
            .filter(emaillog_id__in=[mail.pk for mail in batch.mails])
            .values_list("emaillog_id", "emailattachment_id")
        )
        found: dict[UUID, list[UUID]] = defaultdict(list)
        for email_id, attachment_id in rows:
            found[email_id].append(attachment_id)
        return found
