"""The queue itself: e-mails, their recipients, attachments and attempts."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar

from django.apps import apps
from django.core.mail import EmailMessage
from django.db import connections, models, router, transaction
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail import conf, lifecycle
from django_epica_mail.clock import now, uuid7
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import codec, encryption
from django_epica_mail.models.bounds import Amount, Count, Moment, ReadableTimes, SmallCount
from django_epica_mail.models.fields import CopyCharField, CopyTextField, Key, Line, Text
from django_epica_mail.models.indexes import WaitingIndex
from django_epica_mail.models.lists import JSONList, is_name, is_refusal
from django_epica_mail.models.row import Row
from django_epica_mail.retry import LOST, PASSING, Evidence, Kind
from django_epica_mail.rules import LEVELS, check_seconds

RECOVERABLE = (*PASSING, Kind.MESSAGE)
"""The kinds of failure after which an e-mail can be queued again, automatically or by a person."""


class EmailQuerySet(models.QuerySet["EmailLog"]):
    """Queries on the queue, and the only way to change a status."""

    def move(
        self,
        move: lifecycle.Move,
        ids: Iterable[uuid.UUID],
        *,
        token: uuid.UUID | None = None,
        **values: Any,
    ) -> int:
        """Make a move for those of ``ids`` whose status allows it; return how many were moved.

        ``token`` restricts it to rows still held by that claim. Whether a row can be claimed
        afterwards (``pending``) and whether it is leased follow from the move. Other column values
        are set as given.
        """
        rows = self.filter(pk__in=ids, status__in=move.sources)
        if token is not None:
            rows = rows.filter(lease_token=token)
        if move is lifecycle.REQUEUE:
            rows = rows.exclude(envelope="")  # mail whose content was deleted cannot be sent
        values["status"] = move.target
        values["pending"] = models.F("priority") if move.target in lifecycle.CLAIMABLE else None
        if move is not lifecycle.CLAIM:
            values["lease_until"] = None
        return rows.update(**values)

    def move_returning(
        self,
        move: lifecycle.Move,
        ids: Iterable[uuid.UUID],
        *,
        only: Sequence[str] = ("pk",),
        **values: Any,
    ) -> list[EmailLog]:
        """Make a move as ``move`` does; return the rows that made it, with the columns ``only``.

        A fresh ``lease_token`` tells the rows moved by this call from rows that had the target
        status before. Call it inside a transaction: otherwise another process may move a row on
        between the two statements.
        """
        token, ids = uuid.uuid4(), list(ids)
        self.move(move, ids, lease_token=token, **values)
        moved = self._rows().filter(pk__in=ids, lease_token=token)
        return list(moved.only(*only).order_by())

    def move_returning_ids(
        self, move: lifecycle.Move, ids: Iterable[uuid.UUID], **values: Any
    ) -> list[uuid.UUID]:
        """Make a move as ``move_returning`` does; return the ids that made it, in their order."""
        ids = list(ids)
        moved = {row.pk for row in self.move_returning(move, ids, **values)}
        return [pk for pk in ids if pk in moved]

    def forget_content(self, ids: Iterable[uuid.UUID]) -> None:
        """Delete the content of e-mails: envelopes, and attachments that no other e-mail uses."""
        ids = list(ids)
        if not ids:
            return
        links = EmailLog.attachments.through._default_manager.using(self.db)
        links = links.filter(emaillog_id__in=ids)
        candidates = list(links.values_list("emailattachment_id", flat=True).distinct())
        links.delete()
        attachments = EmailAttachment.objects.using(self.db).filter(pk__in=candidates)
        if candidates and connections[self.db].features.has_select_for_update:
            # In one order, and before looking for other links: of two transactions that delete the
            # last two links of an attachment, the second waits here and sees the first one's.
            list(attachments.order_by("pk").select_for_update().values_list("pk"))
        attachments.filter(emails__isnull=True).delete()
        self._rows().filter(pk__in=ids).update(envelope="")
        events = apps.get_model("epica_mail", "EmailEvent").objects.using(self.db)
        # The links that were followed are content as well.
        events.filter(email__in=ids).exclude(url="").update(url="")

    def delete_with_content(self, ids: Iterable[uuid.UUID]) -> int:
        """Delete e-mails, and the attachments that no other uses; return how many were found."""
        ids = list(ids)
        with transaction.atomic(using=self.db):
            self.forget_content(ids)
            _, deleted = self._rows().filter(pk__in=ids).only("pk").delete()
        return deleted.get(EmailLog._meta.label, 0)

    def change_in_chunks(
        self, size: int, change: Callable[[list[EmailLog]], int], most: int = sys.maxsize
    ) -> int:
        """Call ``change`` with up to ``most`` rows in lists of ``size``; return the sum it returns.

        ``change`` returns how many rows of its list no longer match the query. The others are not
        met again: a row that cannot be changed neither stops nor repeats the work.
        """
        changed = unchanged = 0
        while chunk := list(self[unchanged:][: min(size, most - changed - unchanged)]):
            number = change(chunk)
            changed += number
            unchanged += len(chunk) - number
        return changed

    def names(self, column: str, **leading: str) -> Iterator[str]:
        """Yield all values of a column that follows ``leading`` in an index, by a look-up each."""
        name, least = "", models.Min(column, output_field=models.CharField())
        while True:
            following = self._rows().filter(models.Q((f"{column}__gt", name)), **leading)
            name = following.aggregate(name=least)["name"]
            if not isinstance(name, str):  # none, or a BLOB of SQLite's, which comes after text
                return
            yield name

    def due_to(self, domains: Iterable[str], transports: Iterable[str]) -> EmailQuerySet:
        """Return the due e-mails to some domains."""
        # By all columns of the index of domains, so that none of the finished ones are read.
        return self.filter(
            domain__in=domains,
            queue__in=list(self.names("queue")),
            transport__in=transports,
            pending__in=LEVELS,
            due_at__lte=now(),
        )

    def surely_not_accepted(self, **which: Any) -> EmailQuerySet:
        """Leave out the e-mails that may have been accepted in some attempt, of those ``which``.

        It may have been if its outcome is lost, and no evidence since then says it was refused.
        """
        events = apps.get_model("epica_mail", "EmailEvent")
        refused = events.objects.using(self.db).filter(
            email=models.OuterRef("email"),
            kind=events.Kind.RESOLVED,
            reason=Evidence.REFUSED.value,
            created_at__gte=models.OuterRef("created_at"),
        )
        in_doubt = DeliveryAttempt.objects.using(self.db).filter(
            ~models.Exists(refused),
            email=models.OuterRef("pk"),
            failure_kind__in=LOST,
            **which,
        )
        return self.filter(~models.Exists(in_doubt))

    def lock_ids(self, size: int) -> list[uuid.UUID]:
        """Lock up to ``size`` rows and return their ids; skip rows that others have locked.

        The conditions of the query hold for the locked rows until the end of the transaction.
        """
        return list(self.skipping_locked().values_list("pk", flat=True)[:size])

    def skipping_locked(self) -> EmailQuerySet:
        """Lock the rows found, skipping rows that another transaction has locked.

        SQLite, which has one writer at a time, neither locks nor skips.
        """
        features = connections[self.db].features
        if not features.has_select_for_update_skip_locked:
            return self
        # A plain FOR UPDATE would skip rows to which an open transaction adds a child row.
        return self.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )

    def _rows(self) -> EmailQuerySet:
        """Return all rows of the database of this query."""
        return EmailLog.objects.using(self.db)


class EmailBatch(Row):
    """One bulk call and the mails created from it."""

    id = Key(primary_key=True, default=uuid7, editable=False)
    created_at = Moment(_("created at"), auto_now_add=True)
    #: The number of entries given to ``bulk``, or of messages given to ``enqueue_many``.
    total = Count(_("entries"), default=0)
    accepted = Count(_("mails"), default=0)
    #: The entries that are not valid mail: ``results.Refusal``, and the sealed ``reason``.
    refused = JSONList(_("refused entries"), default=list, blank=True, of=is_refusal)
    #: The entries as stored by ``bulk``, unless they are in parts, and the files they name; empty
    #: once all are expanded into mails.
    payload = Text(editable=False, blank=True)
    #: The queue in which the call looks for a worker; empty for where the site routes bulk calls.
    queue = Line(max_length=64, blank=True, default="", db_default="", editable=False)
    #: The number of entries expanded or refused so far.
    position = Count(default=0, editable=False)
    #: When a worker last expanded entries, or the sweep last rang for one; NULL before that. While
    #: a worker is at it, the time by which it must have ended.
    active_at = Moment(null=True, editable=False)
    #: When the last entry was expanded or refused; NULL before that.
    finished_at = Moment(_("finished at"), null=True, blank=True, db_index=True)

    class Meta:
        verbose_name = _("e-mail batch")
        verbose_name_plural = _("e-mail batches")
        constraints: ClassVar = [
            ReadableTimes(
                fields=["created_at", "active_at", "finished_at"], name="epica_mail_batch_times"
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)

    @property
    def is_finished(self) -> bool:
        """Whether every entry has been expanded or refused."""
        return self.finished_at is not None


class EmailBatchPart(Row):
    """A part of the entries of a bulk call that is too long for one row, until it is expanded."""

    #: It follows from the batch and ``start``: ``bulk``.
    id = Key(primary_key=True, editable=False)
    batch = models.ForeignKey(EmailBatch, models.CASCADE, related_name="parts")
    #: The number of the part's first entry among those of the call.
    start = Count(editable=False)
    payload = Text(editable=False)

    class Meta:
        verbose_name = _("part of an e-mail batch")
        verbose_name_plural = _("parts of e-mail batches")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.id)


class EmailLog(Row):
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

    id = Key(primary_key=True, default=uuid7, editable=False)
    batch = models.ForeignKey(
        EmailBatch,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="emails",
        verbose_name=_("batch"),
    )
    status = Line(
        _("status"), max_length=16, choices=lifecycle.Status, default=lifecycle.Status.QUEUED
    )
    queue = Line(_("queue"), max_length=64)
    transport = Line(_("transport"), max_length=64)
    category = CopyCharField(_("category"), max_length=64, blank=True)
    priority = SmallCount(_("priority"))
    #: The priority while a worker may claim the row, else NULL; a column of the claim's index.
    pending = models.PositiveSmallIntegerField(null=True, editable=False)
    created_at = Moment(_("created at"))
    due_at = Moment(_("due at"))
    expires_at = Moment(_("expires at"), null=True, blank=True)
    give_up_at = Moment(_("given up at"))
    finished_at = Moment(_("finished at"), null=True, blank=True)

    subject = CopyTextField(_("subject"), blank=True)
    from_email = CopyTextField(pgettext_lazy("sender", "from"))
    message_id = CopyCharField(_("Message-ID"), max_length=255)
    #: The one domain of the recipients, by which mail is slowed down; empty if there are several.
    domain = Line(_("recipients' domain"), max_length=255, blank=True, default="", db_default="")
    #: The message as stored by ``messages.dump``. Text, not JSON, because jsonb refuses NUL.
    envelope = Text(editable=False)
    attachments: models.ManyToManyField[EmailAttachment, models.Model] = models.ManyToManyField(
        "EmailAttachment", blank=True, related_name="emails", verbose_name=_("attachments")
    )

    #: The transports that take over, in this order, while the one before is out of order.
    fallbacks = JSONList(_("other transports"), default=list, blank=True, of=is_name)
    #: Unique, so rows without one hold NULL.
    idempotency_key = Line(_("idempotency key"), max_length=255, null=True, blank=True)
    #: Whether the result is also stored in Celery's result backend.
    store_result = models.BooleanField(_("result stored"), default=False)
    on_unknown = Line(_("if unknown"), max_length=8, choices=IfUnknown)
    #: What the worker adds to the message: keys of ``routing.ADDITIONS``, separated by spaces.
    additions = Line(_("additions"), max_length=32, blank=True)
    #: How long the envelope and attachments are kept; a deleted envelope is empty.
    keep_content = Line(_("content kept"), max_length=10, choices=Keeping, default=Keeping.ALWAYS)
    max_retries = SmallCount(_("retries allowed"))
    retry_delay = models.FloatField(_("seconds between tries"))
    #: The seconds before each retry, separated by spaces, if they differ; the last one repeats.
    retry_delays = Line(
        _("seconds before each retry"), max_length=800, blank=True, default="", db_default=""
    )
    #: The attempts that count against ``max_retries``: not those ended by outage or throttling.
    tries = SmallCount(_("tries used"), default=0)
    #: The number of all attempts.
    attempts = SmallCount(_("attempts"), default=0)

    #: The claim that holds the row or held it last; identifies the claim of a late result.
    lease_token = Key(null=True, editable=False)
    lease_until = Moment(null=True, editable=False)
    worker = CopyCharField(_("worker"), max_length=255, blank=True)

    failure_kind = Line(_("failure"), max_length=16, choices=Kind, blank=True)
    failure_code = SmallCount(_("reply code"), null=True, blank=True)
    reply = CopyTextField(_("server's reply"), blank=True)

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
            ReadableTimes(
                fields=[
                    "created_at",
                    "due_at",
                    "expires_at",
                    "give_up_at",
                    "finished_at",
                    "lease_until",
                ],
                name="epica_mail_mail_times",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["queue", "transport", "pending", "due_at", "id"], name="epica_mail_claim"
            ),
            models.Index(fields=["lease_until"], name="epica_mail_lease"),
            models.Index(fields=["transport", "pending", "give_up_at"], name="epica_mail_give_up"),
            models.Index(fields=["failure_kind", "finished_at"], name="epica_mail_finished"),
            models.Index(fields=["message_id"], name="epica_mail_message_id"),
            WaitingIndex(
                fields=["domain", "queue", "transport", "pending", "due_at"],
                name="epica_mail_domain",
            ),
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
        attachments = getattr(self, "_prefetched_objects_cache", {}).get("attachments")
        if attachments is None:
            using = self._state.db or router.db_for_write(EmailLog)
            attachments = self.attachments.using(using)
        return self.build({row.digest: row.data for row in attachments})

    def build(self, blobs: Mapping[str, bytes]) -> EmailMessage:
        """Return the message as ``message`` does, with the attachments in ``blobs`` by digest.

        Sets ``additions`` and ``keep_content`` as they were encrypted with it: whoever can write to
        the database can change the columns.
        """
        place = encryption.envelope_of(self.pk)
        message, terms = codec.load_with_terms(self.envelope, blobs, place)
        if terms is not None:
            self.additions, self.keep_content = terms
        return message

    def attached_digests(self) -> set[str]:
        """Return the digests of the attachments that the message names; raise as it does."""
        return codec.digests(self.envelope, encryption.envelope_of(self.pk))

    def keeps_content(self) -> bool:
        """Return whether the content is kept for good, so that events may keep links of it."""
        if self.keep_content != self.Keeping.ALWAYS or not self.envelope:
            return False
        try:
            terms = codec.terms(self.envelope, encryption.envelope_of(self.pk))
        except UnreadableEnvelope:
            return False
        return terms is None or terms.keep_content == self.Keeping.ALWAYS

    @property
    def delays(self) -> list[float]:
        """The seconds before each retry; the last one repeats.

        What is no such number is left out: a damaged row must not stop the mail of others.
        """
        found: list[float] = []
        written: list[Any] = self.retry_delays.split()
        for it in written or [self.retry_delay]:
            with suppress(ValueError):
                found.append(check_seconds("retry_delays", float(it)))
        return found or [conf.get().retry_delay]

    @delays.setter
    def delays(self, seconds: Sequence[float]) -> None:
        self.retry_delay = seconds[0]
        written = " ".join(f"{it:.12g}" for it in seconds)
        self.retry_delays = written if len(seconds) > 1 else ""

    def failover(self, to: str) -> dict[str, Any]:
        """Return the column values that make the fallback ``to`` the transport.

        The transports before it move to the end of the list.
        """
        names = [self.transport, *self.fallbacks]
        at = names.index(to)
        return {"transport": to, "fallbacks": [*names[at + 1 :], *names[:at]]}


class EmailRecipient(Row):
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
    position = Count(editable=False)
    kind = Line(_("kind"), max_length=3, choices=Kind)
    address = CopyCharField(_("address"), max_length=320, db_index=True)
    #: Empty while the mail's status applies to the recipient, as it nearly always does.
    outcome = Line(_("outcome"), max_length=10, choices=Outcome, blank=True)
    code = SmallCount(_("reply code"), null=True, blank=True)
    reply = CopyTextField(_("server's reply"), blank=True)

    class Meta:
        verbose_name = _("recipient")
        verbose_name_plural = _("recipients")
        ordering: ClassVar = ["position"]

    def __str__(self) -> str:
        return f"{self.email_id} #{self.position}"

    def get_outcome_display(self) -> str:  # type: ignore[no-redef] # instead of Django's own
        """Return the recipient's outcome for people: of a sent mail, ``accepted``."""
        outcome = self.outcome
        if not outcome and self.code is None and self.email.status == EmailLog.Status.SENT:
            outcome = self.Outcome.ACCEPTED
        # A value that this version does not know is shown as it is, as Django does.
        return str(dict(self.Outcome.choices).get(outcome, outcome))


class EmailAttachment(Row):
    """Content stored outside the envelope, once per call for all mails that share it."""

    id = Key(primary_key=True, default=uuid7, editable=False)
    digest = Line("SHA-256", max_length=64)
    filename = CopyTextField(_("file name"), blank=True)
    mimetype = CopyCharField(pgettext_lazy("attachment", "type"), max_length=255)
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
        """The original bytes. Raises as ``encryption.unseal_attachment`` does."""
        return encryption.unseal_attachment(bytes(self.content), self.size, self.digest)


class DeliveryAttempt(Row):
    """One attempt to hand a mail to its transport, and the result."""

    id = Key(primary_key=True, default=uuid7, editable=False)
    email = models.ForeignKey(
        EmailLog, models.CASCADE, related_name="delivery_attempts", verbose_name=_("e-mail")
    )
    number = SmallCount(_("number"))
    transport = Line(_("transport"), max_length=64)
    worker = CopyCharField(_("worker"), max_length=255)
    created_at = Moment(_("recorded at"))
    seconds = Amount(_("seconds"), null=True, blank=True)
    #: Empty if the server accepted the mail for some recipients, and no other is in doubt.
    failure_kind = Line(_("failure"), max_length=16, choices=Kind, blank=True)
    code = SmallCount(_("reply code"), null=True, blank=True)
    reply = CopyTextField(_("server's reply"), blank=True)
    #: The provider's id for the mail, from its response; later events refer to it.
    provider_id = CopyCharField(_("provider's id"), max_length=255, blank=True)

    class Meta:
        verbose_name = _("delivery attempt")
        verbose_name_plural = _("delivery attempts")
        ordering: ClassVar = ["number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["email", "number"], name="epica_mail_attempt_number"),
            ReadableTimes(fields=["created_at"], name="epica_mail_attempt_times"),
        ]
        indexes: ClassVar = [
            # Not a partial index: MariaDB has none, so it would get no index at all, and its sites
            # a warning (models.W037).
            models.Index(fields=["provider_id"], name="epica_mail_provider_id")
        ]

    def __str__(self) -> str:
        return f"{self.email_id} #{self.number}"


class PendingResult(Row):
    """A mail whose final result is not in Celery's result backend yet."""

    email = models.OneToOneField(
        EmailLog, models.CASCADE, primary_key=True, related_name="pending_result"
    )
    #: No result is expected before this time.
    due_at = Moment(db_index=True)

    class Meta:
        verbose_name = _("pending result")
        verbose_name_plural = _("pending results")
        constraints: ClassVar = [
            ReadableTimes(fields=["due_at"], name="epica_mail_result_times"),
        ]

    def __str__(self) -> str:
        return str(self.email_id)
