"""The rows: the queue itself, its content, and what became of each mail."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import connections, models, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail import lifecycle, messages
from django_epica_mail.clock import uuid7 as uuid7  # where migration 0001 finds it
from django_epica_mail.messages import encryption
from django_epica_mail.retry import PASSING, Kind


class EmailBatch(models.Model):
    """One bulk call and the mails it made."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    #: Of a call whose entries wait to be expanded into mails, how many it has; else the mails made.
    total = models.PositiveIntegerField(_("entries"), default=0)
    accepted = models.PositiveIntegerField(_("mails"), default=0)
    #: ``[{"index": 3, "reason": "..."}]``: the entries that are no mail that can be sent.
    refused = models.JSONField(_("refused entries"), default=list, blank=True)
    #: The entries, as ``bulk`` wrote them, until all are mails.
    payload = models.TextField(editable=False, blank=True)
    #: How many entries are done with.
    position = models.PositiveIntegerField(default=0, editable=False)
    #: When all were; NULL while there are some left.
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, db_index=True)

    class Meta:
        verbose_name = _("e-mail batch")
        verbose_name_plural = _("e-mail batches")

    def __str__(self) -> str:
        return str(self.id)

    @property
    def is_finished(self) -> bool:
        """Whether every entry is a mail or refused."""
        return self.finished_at is not None


class EmailQuerySet(models.QuerySet["EmailLog"]):
    """Queries of the queue, and the one way to change a status."""

    def move(
        self,
        move: lifecycle.Move,
        ids: Iterable[uuid.UUID],
        *,
        token: uuid.UUID | None = None,
        **values: Any,
    ) -> int:
        """Make a legal move for those of ``ids`` that may make it; return how many did.

        ``token`` restricts it to rows still held by that claim. Whether a row can be claimed
        afterwards (``pending``) and whether it is leased follow from the move.
        """
        rows = self.filter(pk__in=ids, status__in=move.sources)
        if token is not None:
            rows = rows.filter(lease_token=token)
        if move is lifecycle.REQUEUE:
            rows = rows.exclude(envelope="")  # what is forgotten cannot be sent
        values["status"] = move.target
        values["pending"] = models.F("priority") if move.target in lifecycle.CLAIMABLE else None
        if move is not lifecycle.CLAIM:
            values["lease_until"] = None
        return rows.update(**values)

    def skipping_locked(self) -> EmailQuerySet:
        """Lock the rows that are found, and pass over those that another transaction holds.

        Neither on SQLite, which has one writer at a time.
        """
        features = connections[self.db].features
        if not features.has_select_for_update_skip_locked:
            return self
        # A plain FOR UPDATE would skip rows to which an open transaction adds a child row.
        return self.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )


class EmailLog(models.Model):
    """One e-mail: the item in the queue, and afterwards the record of what became of it."""

    Status = lifecycle.Status

    class IfUnknown(models.TextChoices):
        """What becomes of a mail if nobody knows whether it was accepted: ``rules.ON_UNKNOWN``."""

        RESEND = "resend", _("send once more")
        HOLD = "hold", _("wait for a decision")
        FAIL = "fail", _("count as failed")

    class Keeping(models.TextChoices):
        """For how long what a mail says is kept: ``rules.KEEP_CONTENT``."""

        ALWAYS = "always", _("always")
        UNTIL_SENT = "until_sent", _("until it is sent")
        NEVER = "never", _("never")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    batch = models.ForeignKey(
        EmailBatch,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="emails",
        verbose_name=_("batch"),
    )
    status = models.CharField(
        _("status"), max_length=16, choices=lifecycle.Status, default=lifecycle.Status.QUEUED
    )
    queue = models.CharField(_("queue"), max_length=64)
    transport = models.CharField(_("transport"), max_length=64)
    category = models.CharField(_("category"), max_length=64, blank=True)
    priority = models.PositiveSmallIntegerField(_("priority"))
    #: The priority while a worker may claim the row, NULL otherwise: what the claim's index finds.
    pending = models.PositiveSmallIntegerField(null=True, editable=False)
    created_at = models.DateTimeField(_("created at"))
    due_at = models.DateTimeField(_("due at"))
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    give_up_at = models.DateTimeField(_("given up at"))
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    subject = models.TextField(_("subject"), blank=True)
    from_email = models.TextField(pgettext_lazy("sender", "from"))
    message_id = models.CharField(_("Message-ID"), max_length=255)
    #: The message as ``serialization`` wrote it. Text, not JSON: jsonb refuses NUL.
    envelope = models.TextField(editable=False)
    attachments: models.ManyToManyField[EmailAttachment, models.Model] = models.ManyToManyField(
        "EmailAttachment", blank=True, related_name="emails", verbose_name=_("attachments")
    )

    #: The transports that take over, one after the other, while the one before is out of order.
    fallbacks = models.JSONField(_("other transports"), default=list, blank=True)
    idempotency_key = models.CharField(  # noqa: DJ001 - many rows may have none, and it is unique
        _("idempotency key"), max_length=255, null=True, blank=True
    )
    #: Whether Celery's result backend is told too.
    store_result = models.BooleanField(_("result stored"), default=False)
    on_unknown = models.CharField(_("if unknown"), max_length=8, choices=IfUnknown)
    #: What the worker adds to the message: words of ``additions``, with a space between them.
    additions = models.CharField(_("additions"), max_length=32, blank=True)
    #: How long the envelope and the attachments are kept; an empty envelope is one forgotten.
    keep_content = models.CharField(
        _("content kept"), max_length=10, choices=Keeping, default=Keeping.ALWAYS
    )
    max_retries = models.PositiveSmallIntegerField(_("retries allowed"))
    retry_delay = models.FloatField(_("seconds between tries"))
    #: What the retries are counted against; an outage or a throttling uses none up.
    tries = models.PositiveSmallIntegerField(_("tries used"), default=0)
    #: Every attempt there was, and so the number of the next one.
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)

    #: Which claim holds the row, or held it last: a late answer is recognised by it.
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    worker = models.CharField(_("worker"), max_length=255, blank=True)

    failure_kind = models.CharField(_("failure"), max_length=16, choices=Kind, blank=True)
    failure_code = models.PositiveSmallIntegerField(_("reply code"), null=True, blank=True)
    reply = models.TextField(_("server's reply"), blank=True)

    objects = EmailQuerySet.as_manager()

    class Meta:
        verbose_name = _("e-mail")
        verbose_name_plural = _("e-mails")
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(status__in=lifecycle.Status.values),
                name="epica_mail_known_status",
            ),
            # Here, and the index below, not at the fields: there PostgreSQL would be given a second
            # index each, for LIKE, and a request pays for every index of a row.
            models.UniqueConstraint(fields=["idempotency_key"], name="epica_mail_one_key"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "transport", "pending", "due_at", "id"], name="epica_mail_claim"
            ),
            models.Index(fields=["lease_until"], name="epica_mail_lease"),
            models.Index(fields=["transport", "pending", "give_up_at"], name="epica_mail_give_up"),
            models.Index(fields=["failure_kind", "finished_at"], name="epica_mail_finished"),
            models.Index(fields=["message_id"], name="epica_mail_message_id"),
            # None on the status. It guards each move by id, and a database that has not counted
            # its rows since a backlog came takes such an index to be quicker than the ids.
        ]
        permissions: ClassVar = [
            ("view_content", _("Can view the content of e-mails")),
            ("operate_emaillog", _("Can operate the e-mail queue")),
        ]

    def __str__(self) -> str:
        return str(self.id)

    def failover(self, to: str) -> dict[str, Any]:
        """Return the values by which one of ``fallbacks`` takes over; those before it come last."""
        names = [self.transport, *self.fallbacks]
        at = names.index(to)
        return {"transport": to, "fallbacks": [*names[at + 1 :], *names[:at]]}


class EmailRecipient(models.Model):
    """One address a mail goes to, in the order of the message's ``recipients()``."""

    class Kind(models.TextChoices):
        """The header, or its absence, that names the recipient."""

        TO = "to", pgettext_lazy("recipient", "To")
        CC = "cc", _("Cc")
        BCC = "bcc", _("Bcc")

    class Outcome(models.TextChoices):
        """What the server said of this recipient, where it differs from the mail's status."""

        ACCEPTED = "accepted", _("accepted")
        REFUSED = "refused", _("refused")
        SUPPRESSED = "suppressed", _("suppressed")

    email = models.ForeignKey(
        EmailLog, models.CASCADE, related_name="recipients", verbose_name=_("e-mail")
    )
    position = models.PositiveIntegerField(editable=False)
    kind = models.CharField(_("kind"), max_length=3, choices=Kind)
    address = models.CharField(_("address"), max_length=320, db_index=True)
    #: Empty while the recipient shares the mail's own fate, which is nearly always.
    outcome = models.CharField(_("outcome"), max_length=10, choices=Outcome, blank=True)
    code = models.PositiveSmallIntegerField(_("reply code"), null=True, blank=True)
    reply = models.TextField(_("server's reply"), blank=True)

    class Meta:
        verbose_name = _("recipient")
        verbose_name_plural = _("recipients")
        ordering: ClassVar = ["position"]

    def __str__(self) -> str:
        return f"{self.email_id} #{self.position}"


class EmailAttachment(models.Model):
    """Content kept out of the envelope, once per call however many mails of it carry it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    digest = models.CharField("SHA-256", max_length=64)
    filename = models.TextField(_("file name"), blank=True)
    mimetype = models.CharField(_("type"), max_length=255)
    size = models.PositiveBigIntegerField(_("bytes"))
    #: As ``encryption`` wrote it; ``data`` is what was attached.
    content = models.BinaryField()

    class Meta:
        verbose_name = _("attachment")
        verbose_name_plural = _("attachments")

    def __str__(self) -> str:
        return self.filename or str(self.id)

    @cached_property
    def data(self) -> bytes:
        """What was attached. Raises ``MissingKey`` for what no key of the site's decrypts."""
        return encryption.unseal_bytes(bytes(self.content), self.size)


class DeliveryAttempt(models.Model):
    """One try at handing a mail to its transport, and what came of it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.ForeignKey(
        EmailLog, models.CASCADE, related_name="delivery_attempts", verbose_name=_("e-mail")
    )
    number = models.PositiveSmallIntegerField(_("number"))
    transport = models.CharField(_("transport"), max_length=64)
    worker = models.CharField(_("worker"), max_length=255)
    created_at = models.DateTimeField(_("recorded at"))
    seconds = models.FloatField(_("seconds"), null=True, blank=True)
    #: Empty when the server accepted the mail for every recipient tried.
    failure_kind = models.CharField(_("failure"), max_length=16, choices=Kind, blank=True)
    code = models.PositiveSmallIntegerField(_("reply code"), null=True, blank=True)
    reply = models.TextField(_("server's reply"), blank=True)
    #: What a provider calls the mail, in its answer and in the events it reports later.
    provider_id = models.CharField(_("provider's id"), max_length=255, blank=True)

    class Meta:
        verbose_name = _("delivery attempt")
        verbose_name_plural = _("delivery attempts")
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["email", "number"], name="epica_mail_attempt_number")
        ]
        indexes: ClassVar = [
            # Whole, and not for those that have one: MariaDB has no partial index, and would be
            # left without any, and its site with a warning (models.W037).
            models.Index(fields=["provider_id"], name="epica_mail_provider_id")
        ]

    def __str__(self) -> str:
        return f"{self.email_id} #{self.number}"


class EmailEvent(models.Model):
    """One thing that happened to a mail after it was sent: told by a provider, or seen by us."""

    class Kind(models.TextChoices):
        """What happened."""

        ACCEPTED = "accepted", _("taken by the provider")
        DELIVERED = "delivered", _("delivered")
        DEFERRED = "deferred", _("deferred")
        BOUNCED = "bounced", _("bounced")
        REJECTED = "rejected", _("rejected by the provider")
        FAILED = "failed", _("failed at the provider")
        COMPLAINED = "complained", _("reported as spam")
        UNSUBSCRIBED = "unsubscribed", _("unsubscribed")
        SUBSCRIBED = "subscribed", _("subscribed")
        OPENED = "opened", _("opened")
        CLICKED = "clicked", _("clicked")
        AUTORESPONDED = "autoresponded", _("answered by a machine")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    #: NULL of an event that came before its mail was known by the provider's id, or of no mail.
    email = models.ForeignKey(
        EmailLog,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="events",
        verbose_name=_("e-mail"),
    )
    #: A digest of all that makes the event what it is: of one that is told twice, one is kept.
    key = models.CharField(max_length=64, editable=False)
    kind = models.CharField(_("kind"), max_length=16, choices=Kind)
    at = models.DateTimeField(pgettext_lazy("time", "at"))
    created_at = models.DateTimeField(_("recorded at"))
    #: The provider's name, or ``epica_mail`` of what we saw ourselves.
    source = models.CharField(_("source"), max_length=64)
    address = models.CharField(_("address"), max_length=320, blank=True)
    provider_id = models.CharField(_("provider's id"), max_length=255, blank=True)
    reason = models.CharField(_("reason"), max_length=64, blank=True)
    reply = models.TextField(_("server's reply"), blank=True)
    url = models.TextField(_("link"), blank=True)
    user_agent = models.CharField(_("user agent"), max_length=255, blank=True)
    ip = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    is_machine = models.BooleanField(_("by a machine"), default=False)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering: ClassVar = ["at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key"], name="epica_mail_event_once")
        ]
        indexes: ClassVar = [
            models.Index(fields=["address"], name="epica_mail_event_address"),
            models.Index(fields=["provider_id"], name="epica_mail_event_provider"),
            models.Index(fields=["kind", "at"], name="epica_mail_event_kind"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.email_id}"


class Suppression(models.Model):
    """An address that is not sent to, for all mail or for one category."""

    class Reason(models.TextChoices):
        """Why it is not."""

        BOUNCE = "bounce", _("bounced for good")
        COMPLAINT = "complaint", _("reported as spam")
        UNSUBSCRIBE = "unsubscribe", _("unsubscribed")
        MANUAL = "manual", _("added by hand")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    #: Empty of a person whose data was erased; the digest goes on to hold mail back.
    address = models.CharField(_("address"), max_length=320, blank=True)
    #: By what it is found: an HMAC of the address, from which nobody reads it.
    digest = models.CharField(max_length=64, editable=False)
    scope = models.CharField(
        _("category"), max_length=64, blank=True, help_text=_("Leave empty for all mail.")
    )
    reason = models.CharField(_("reason"), max_length=16, choices=Reason, default=Reason.MANUAL)
    note = models.TextField(_("note"), blank=True)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)

    class Meta:
        verbose_name = _("suppressed address")
        verbose_name_plural = _("suppressed addresses")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["digest", "scope", "reason"], name="epica_mail_suppressed_once"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["address"], name="epica_mail_suppressed")]

    def __str__(self) -> str:
        return str(self.id)


class PendingResult(models.Model):
    """A mail whose end Celery's result backend has not been told of yet."""

    email = models.OneToOneField(
        EmailLog, models.CASCADE, primary_key=True, related_name="pending_result"
    )
    #: Before this there is nothing to tell.
    due_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("pending result")
        verbose_name_plural = _("pending results")

    def __str__(self) -> str:
        return str(self.email_id)


class DeliveryGate(models.Model):
    """What holds mail back, per queue or per transport, for every worker alike."""

    class Scope(models.TextChoices):
        """What the gate stands before."""

        QUEUE = "queue", _("queue")
        TRANSPORT = "transport", _("transport")

    scope = models.CharField(_("scope"), max_length=9, choices=Scope)
    name = models.CharField(_("name"), max_length=64)
    paused = models.BooleanField(_("paused"), default=False)
    #: How many probes have failed in a row; above 0 the breaker is open or half-open.
    outages = models.PositiveIntegerField(_("outages in a row"), default=0)
    open_until = models.DateTimeField(_("breaker open until"), null=True, blank=True)
    reason = models.TextField(_("reason"), blank=True)
    last_sweep_at = models.DateTimeField(_("last sweep"), null=True, blank=True)

    class Meta:
        verbose_name = _("delivery gate")
        verbose_name_plural = _("delivery gates")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "name"], name="epica_mail_one_gate")
        ]

    def __str__(self) -> str:
        return f"{self.get_scope_display()} {self.name}"


class EmailTotal(models.Model):
    """How often something happened to mail in one hour, or ever; written by ``totals`` alone.

    It outlives the mails it counts, so that what is read from it never goes down.
    """

    class Event(models.TextChoices):
        """What is counted."""

        ENQUEUED = "enqueued", pgettext_lazy("total", "queued")
        SENT = lifecycle.Status.SENT.value, _("sent")
        FAILED = lifecycle.Status.FAILED.value, _("failed")
        CANCELLED = lifecycle.Status.CANCELLED.value, _("cancelled")
        EXPIRED = lifecycle.Status.EXPIRED.value, _("expired")
        SUPPRESSED = lifecycle.Status.SUPPRESSED.value, _("suppressed")
        ATTEMPT = "attempt", _("attempts")
        RETRIED = "retried", _("retried")
        POSTPONED = "postponed", _("postponed")
        UNKNOWN = lifecycle.Status.UNKNOWN.value, _("unknown")

    #: Its beginning; ``totals.EVER`` for the sum over all hours.
    hour = models.DateTimeField()
    queue = models.CharField(max_length=64)
    transport = models.CharField(max_length=64)
    event = models.CharField(max_length=16, choices=Event)
    #: Why, of an event that has a reason.
    failure_kind = models.CharField(max_length=16, choices=Kind, blank=True)
    #: The reply code, or 0.
    failure_code = models.PositiveSmallIntegerField(default=0)
    count = models.PositiveBigIntegerField(default=0)
    #: How long all of them took together, of an event that takes time.
    seconds = models.FloatField(default=0)
    #: How many took at most each of ``totals.BOUNDS``, and not at most the one before.
    buckets = models.JSONField(default=list)

    class Meta:
        verbose_name = _("total")
        # It has one page in the admin, and this is its name in the list.
        verbose_name_plural = _("dashboard")
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["hour", "queue", "transport", "event", "failure_kind", "failure_code"],
                name="epica_mail_one_total",
            )
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H} {self.queue} {self.transport} {self.event}"


class CountingMark(models.Model):
    """The one row that says until when the totals are counted, and lets one count at a time."""

    counted_until = models.DateTimeField()

    class Meta:
        verbose_name = _("counting mark")
        verbose_name_plural = _("counting marks")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.counted_until)


_HOPEFUL = (*PASSING, Kind.MESSAGE)
"""Why mail fails that can be queued again, by ``retry_failed_emails`` or by a person."""


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


def message_of(mail: EmailLog) -> EmailMessage:
    """Rebuild a mail's message, for all of its recipients, as its caller gave it.

    Raises ``UnreadableEnvelope`` where it cannot be, as for content that is forgotten, and
    ``MissingKey`` for what no key of the site's decrypts.
    """
    blobs = {row.digest: row.data for row in mail.attachments.all()}
    return messages.load(mail.envelope, blobs)
