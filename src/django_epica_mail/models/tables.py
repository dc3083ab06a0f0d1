"""The tables: the queue itself, the content of mail, and what became of each mail."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from django.core.mail import EmailMessage
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail import lifecycle, messages
from django_epica_mail.clock import uuid7
from django_epica_mail.messages import encryption
from django_epica_mail.models.queryset import EmailQuerySet
from django_epica_mail.retry import PASSING, Kind

RECOVERABLE = (*PASSING, Kind.MESSAGE)
"""The kinds of failure after which an e-mail can be queued again, automatically or by a person."""


class EmailBatch(models.Model):
    """One bulk call and the mails created from it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    #: The number of entries given to ``bulk``, or of messages given to ``enqueue_many``.
    total = models.PositiveIntegerField(_("entries"), default=0)
    accepted = models.PositiveIntegerField(_("mails"), default=0)
    #: ``[{"index": 3, "reason": "..."}]``: the entries that are not valid mail.
    refused = models.JSONField(_("refused entries"), default=list, blank=True)
    #: The entries as stored by ``bulk``; empty once all are expanded into mails.
    payload = models.TextField(editable=False, blank=True)
    #: The number of entries expanded or refused so far.
    position = models.PositiveIntegerField(default=0, editable=False)
    #: When the last entry was expanded or refused; NULL before that.
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True, db_index=True)

    class Meta:
        verbose_name = _("e-mail batch")
        verbose_name_plural = _("e-mail batches")

    def __str__(self) -> str:
        return str(self.id)

    @property
    def is_finished(self) -> bool:
        """Whether every entry has been expanded or refused."""
        return self.finished_at is not None


class EmailLog(models.Model):
    """One e-mail: the item in the queue, and afterwards the record of what became of it."""

    Status = lifecycle.Status

    class IfUnknown(models.TextChoices):
        """What to do with a mail that may or may not have been accepted: ``rules.ON_UNKNOWN``."""

        RESEND = "resend", _("send once more")
        HOLD = "hold", _("wait for a decision")
        FAIL = "fail", _("count as failed")

    class Keeping(models.TextChoices):
        """How long the content of a mail is kept: ``rules.KEEP_CONTENT``."""

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
    #: The priority while a worker may claim the row, else NULL; a column of the claim's index.
    pending = models.PositiveSmallIntegerField(null=True, editable=False)
    created_at = models.DateTimeField(_("created at"))
    due_at = models.DateTimeField(_("due at"))
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    give_up_at = models.DateTimeField(_("given up at"))
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    subject = models.TextField(_("subject"), blank=True)
    from_email = models.TextField(pgettext_lazy("sender", "from"))
    message_id = models.CharField(_("Message-ID"), max_length=255)
    #: The message as stored by ``messages.dump``. Text, not JSON, because jsonb refuses NUL.
    envelope = models.TextField(editable=False)
    attachments: models.ManyToManyField[EmailAttachment, models.Model] = models.ManyToManyField(
        "EmailAttachment", blank=True, related_name="emails", verbose_name=_("attachments")
    )

    #: The transports that take over, in this order, while the one before is out of order.
    fallbacks = models.JSONField(_("other transports"), default=list, blank=True)
    idempotency_key = models.CharField(  # noqa: DJ001 - unique, so rows without one hold NULL
        _("idempotency key"), max_length=255, null=True, blank=True
    )
    #: Whether the result is also stored in Celery's result backend.
    store_result = models.BooleanField(_("result stored"), default=False)
    on_unknown = models.CharField(_("if unknown"), max_length=8, choices=IfUnknown)
    #: What the worker adds to the message: keys of ``routing.ADDITIONS``, separated by spaces.
    additions = models.CharField(_("additions"), max_length=32, blank=True)
    #: How long the envelope and attachments are kept; a deleted envelope is empty.
    keep_content = models.CharField(
        _("content kept"), max_length=10, choices=Keeping, default=Keeping.ALWAYS
    )
    max_retries = models.PositiveSmallIntegerField(_("retries allowed"))
    retry_delay = models.FloatField(_("seconds between tries"))
    #: The attempts that count against ``max_retries``: not those ended by outage or throttling.
    tries = models.PositiveSmallIntegerField(_("tries used"), default=0)
    #: The number of all attempts.
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)

    #: The claim that holds the row or held it last; identifies the claim of a late result.
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
            # This constraint and the message_id index are not declared on the fields: PostgreSQL
            # would get a second index for LIKE on each, and every index slows down enqueueing.
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
            # None on status: moves filter by id and status, and a database whose statistics are
            # older than a backlog would prefer such an index to the primary key.
        ]
        permissions: ClassVar = [
            ("view_content", _("Can view the content of e-mails")),
            ("operate_emaillog", _("Can operate the e-mail queue")),
        ]

    def __str__(self) -> str:
        return str(self.id)

    def forgets_content(
        self, status: str, failure_kind: str = "", *, too_old: bool = False
    ) -> bool:
        """Return whether the content is deleted when the e-mail reaches ``status``.

        An e-mail that failed for a recoverable reason keeps its content until it is given up
        (``too_old``), because it cannot be queued again without it.
        """
        if self.keep_content == "always" or status not in lifecycle.FINAL:
            return False
        is_recoverable = status == lifecycle.Status.FAILED and failure_kind in RECOVERABLE
        return too_old or not is_recoverable

    def message(self) -> EmailMessage:
        """Return the message as the caller gave it, addressed to all of its recipients.

        Raises ``UnreadableEnvelope`` if the content is damaged or has been deleted, and
        ``MissingKey`` if none of the site's keys decrypts it.
        """
        blobs = {row.digest: row.data for row in self.attachments.all()}
        return messages.load(self.envelope, blobs)

    def failover(self, to: str) -> dict[str, Any]:
        """Return the column values that make the fallback ``to`` the transport.

        The transports before it move to the end of the list.
        """
        names = [self.transport, *self.fallbacks]
        at = names.index(to)
        return {"transport": to, "fallbacks": [*names[at + 1 :], *names[:at]]}


class EmailRecipient(models.Model):
    """One recipient of a mail, in the order of the message's ``recipients()``."""

    class Kind(models.TextChoices):
        """The field of the message that names the recipient."""

        TO = "to", pgettext_lazy("recipient", "To")
        CC = "cc", _("Cc")
        BCC = "bcc", _("Bcc")

    class Outcome(models.TextChoices):
        """The recipient's own outcome, where it differs from the mail's status."""

        ACCEPTED = "accepted", _("accepted")
        REFUSED = "refused", _("refused")
        SUPPRESSED = "suppressed", _("suppressed")

    email = models.ForeignKey(
        EmailLog, models.CASCADE, related_name="recipients", verbose_name=_("e-mail")
    )
    position = models.PositiveIntegerField(editable=False)
    kind = models.CharField(_("kind"), max_length=3, choices=Kind)
    address = models.CharField(_("address"), max_length=320, db_index=True)
    #: Empty while the mail's status applies to the recipient, as it nearly always does.
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
    """Content stored outside the envelope, once per call for all mails that share it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    digest = models.CharField("SHA-256", max_length=64)
    filename = models.TextField(_("file name"), blank=True)
    mimetype = models.CharField(_("type"), max_length=255)
    size = models.PositiveBigIntegerField(_("bytes"))
    #: As stored, encrypted if the site has keys; ``data`` is the original.
    content = models.BinaryField()

    class Meta:
        verbose_name = _("attachment")
        verbose_name_plural = _("attachments")

    def __str__(self) -> str:
        return self.filename or str(self.id)

    @cached_property
    def data(self) -> bytes:
        """The original bytes. Raises ``MissingKey`` if none of the site's keys decrypts them."""
        return encryption.unseal_bytes(bytes(self.content), self.size)


class DeliveryAttempt(models.Model):
    """One attempt to hand a mail to its transport, and the result."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.ForeignKey(
        EmailLog, models.CASCADE, related_name="delivery_attempts", verbose_name=_("e-mail")
    )
    number = models.PositiveSmallIntegerField(_("number"))
    transport = models.CharField(_("transport"), max_length=64)
    worker = models.CharField(_("worker"), max_length=255)
    created_at = models.DateTimeField(_("recorded at"))
    seconds = models.FloatField(_("seconds"), null=True, blank=True)
    #: Empty if the server accepted the mail for every recipient of the attempt.
    failure_kind = models.CharField(_("failure"), max_length=16, choices=Kind, blank=True)
    code = models.PositiveSmallIntegerField(_("reply code"), null=True, blank=True)
    reply = models.TextField(_("server's reply"), blank=True)
    #: The provider's id for the mail, from its response; later events refer to it.
    provider_id = models.CharField(_("provider's id"), max_length=255, blank=True)

    class Meta:
        verbose_name = _("delivery attempt")
        verbose_name_plural = _("delivery attempts")
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["email", "number"], name="epica_mail_attempt_number")
        ]
        indexes: ClassVar = [
            # Not a partial index: MariaDB has none, so it would get no index at all, and its sites
            # a warning (models.W037).
            models.Index(fields=["provider_id"], name="epica_mail_provider_id")
        ]

    def __str__(self) -> str:
        return f"{self.email_id} #{self.number}"


class EmailEvent(models.Model):
    """One event after a mail was sent, reported by a provider or observed by this package."""

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
    #: NULL if no mail matches, or until the attempt with the provider's id is recorded.
    email = models.ForeignKey(
        EmailLog,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="events",
        verbose_name=_("e-mail"),
    )
    #: A digest that identifies the event, so that one reported twice is stored once.
    key = models.CharField(max_length=64, editable=False)
    kind = models.CharField(_("kind"), max_length=16, choices=Kind)
    at = models.DateTimeField(pgettext_lazy("time", "at"))
    created_at = models.DateTimeField(_("recorded at"))
    #: The provider's name, or ``epica_mail`` for events observed by this package.
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
    """An address that gets no mail at all, or none of one category."""

    class Reason(models.TextChoices):
        """Why the address is suppressed."""

        BOUNCE = "bounce", _("bounced for good")
        COMPLAINT = "complaint", _("reported as spam")
        UNSUBSCRIBE = "unsubscribe", _("unsubscribed")
        MANUAL = "manual", _("added by hand")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    #: Empty if the person's data was erased; the digest still suppresses their mail.
    address = models.CharField(_("address"), max_length=320, blank=True)
    #: An HMAC of the address for look-ups; it does not reveal the address.
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
    """A mail whose final result is not in Celery's result backend yet."""

    email = models.OneToOneField(
        EmailLog, models.CASCADE, primary_key=True, related_name="pending_result"
    )
    #: No result is expected before this time.
    due_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("pending result")
        verbose_name_plural = _("pending results")

    def __str__(self) -> str:
        return str(self.email_id)


class DeliveryGate(models.Model):
    """A pause or an open breaker that holds mail of one queue or transport back for all workers."""

    class Scope(models.TextChoices):
        """What the gate applies to."""

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
    """How often an event happened in one hour, or in total; written only by ``totals``.

    Rows outlive the mails they count, so totals never go down.
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

    #: The start of the hour; ``totals.ALL_TIME`` for the sum over all hours.
    hour = models.DateTimeField()
    queue = models.CharField(max_length=64)
    transport = models.CharField(max_length=64)
    event = models.CharField(max_length=16, choices=Event)
    #: The kind of failure, for events that have one.
    failure_kind = models.CharField(max_length=16, choices=Kind, blank=True)
    #: The reply code, or 0.
    failure_code = models.PositiveSmallIntegerField(default=0)
    count = models.PositiveBigIntegerField(default=0)
    #: The sum of their durations, for events that have one.
    seconds = models.FloatField(default=0)
    #: How many durations fall into each bucket of ``totals.BOUNDS``.
    buckets = models.JSONField(default=list)

    class Meta:
        verbose_name = _("total")
        # Its only page in the admin is the dashboard, listed under this name.
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
    """The single row with the time up to which totals are counted; it also serialises counting."""

    counted_until = models.DateTimeField()

    class Meta:
        verbose_name = _("counting mark")
        verbose_name_plural = _("counting marks")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.counted_until)
