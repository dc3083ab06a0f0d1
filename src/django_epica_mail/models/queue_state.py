"""The state of the queue: gates that hold mail back, and the totals of what happened."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail import lifecycle
from django_epica_mail.models.bounds import (
    Amount,
    BigCount,
    BigVersion,
    Count,
    Moment,
    ReadableTimes,
    SmallCount,
    Version,
)
from django_epica_mail.models.fields import CopyCharField, CopyTextField, Line
from django_epica_mail.models.lists import JSONList, is_count
from django_epica_mail.models.row import Row
from django_epica_mail.retry import Kind

# One string each, so that a translation decides the order of kind and name.
_NAMED = {
    "queue": _("queue %(name)s"),
    "transport": _("transport %(name)s"),
    "category": _("category %(name)s"),
}


class DeliveryGate(Row):
    """A pause or an open breaker that holds mail back for all workers."""

    class Scope(models.TextChoices):
        """What the gate applies to."""

        QUEUE = "queue", _("queue")
        TRANSPORT = "transport", _("transport")
        CATEGORY = "category", _("category")
        """Its bulk mail alone."""

        def named(self, name: str) -> str:
            """Return what people call one gate, as in ``queue emails``."""
            return str(_NAMED[self.value]) % {"name": name}

    scope = Line(_("scope"), max_length=9, choices=Scope)
    name = Line(pgettext_lazy("gate", "name"), max_length=64)
    paused = models.BooleanField(_("paused"), default=False)
    #: The last pause: since when, by whom, and why. They stay when it ends, for an undo.
    paused_at = Moment(_("paused at"), null=True, blank=True)
    paused_by = CopyCharField(_("paused by"), max_length=150, blank=True, db_default="")
    note = CopyCharField(_("note"), max_length=200, blank=True, db_default="")
    #: How many probes have failed in a row; above 0 the breaker is open or half-open.
    outages = Count(_("outages in a row"), default=0)
    open_until = Moment(_("breaker open until"), null=True, blank=True)
    tripped_at = Moment(_("out of order since"), null=True, blank=True)
    #: When a probe last ended; it failed if there are outages.
    probed_at = Moment(_("last probe"), null=True, blank=True)
    reason = CopyTextField(_("reason"), blank=True)
    #: When a category was resumed: what was sent up to then does not pause it again.
    resumed_at = Moment(_("resumed at"), null=True, blank=True)
    last_sweep_at = Moment(_("last sweep"), null=True, blank=True)

    class Meta:
        verbose_name = _("delivery gate")
        verbose_name_plural = _("delivery gates")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "name"], name="epica_mail_one_gate"),
            ReadableTimes(
                fields=[
                    "paused_at",
                    "open_until",
                    "tripped_at",
                    "probed_at",
                    "resumed_at",
                    "last_sweep_at",
                ],
                name="epica_mail_gate_times",
            ),
        ]

    def __str__(self) -> str:
        return self.Scope(self.scope).named(self.name)


class SlowedDomain(Row):
    """A domain whose mail a transport sends more slowly, because the server complained.

    Written only by ``delivery.limits.slowed_domains``, which explains the columns.
    """

    transport = Line(_("transport"), max_length=64)
    domain = Line(_("domain"), max_length=255)
    #: The mails per second at which the server complained last.
    ceiling = Amount(_("mails per second at the last complaint"))
    #: How many complaints have lowered the rate, and how often turns were reserved: whoever changes
    #: the row compares and sets one of them, so that one of several wins. Not the times, of which
    #: SQLite stores fewer digits than Django compares.
    complaints = Version(_("complaints"), default=1)
    turns = BigVersion(_("turns"), default=0)
    changed_at = Moment(_("last complaint"))
    since = Moment(_("slowed down since"))
    #: When the next mail may be claimed.
    next_at = Moment(_("next e-mail"))
    reply = CopyTextField(_("server's reply"), blank=True)

    class Meta:
        verbose_name = _("slowed domain")
        verbose_name_plural = _("slowed domains")
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["transport", "domain"], name="epica_mail_one_slowed_domain"
            ),
            ReadableTimes(
                fields=["changed_at", "since", "next_at"], name="epica_mail_slowed_times"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.transport} {self.domain}"


class EmailTotal(Row):
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
    hour = Moment()
    queue = Line(max_length=64)
    transport = Line(max_length=64)
    event = Line(max_length=16, choices=Event)
    #: The kind of failure, for events that have one.
    failure_kind = Line(max_length=16, choices=Kind, blank=True)
    #: The reply code, or 0.
    failure_code = SmallCount(default=0)
    count = BigCount(default=0)
    #: The sum of their durations, for events that have one.
    seconds = Amount(default=0)
    #: How many durations fall into each bucket of ``totals.BOUNDS``.
    buckets = JSONList(default=list, of=is_count)

    class Meta:
        verbose_name = _("total")
        # Its only page in the admin is the dashboard, listed under this name.
        verbose_name_plural = _("dashboard")
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["hour", "queue", "transport", "event", "failure_kind", "failure_code"],
                name="epica_mail_one_total",
            ),
            ReadableTimes(fields=["hour"], name="epica_mail_total_times"),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H} {self.queue} {self.transport} {self.event}"


class ReputationDay(Row):
    """What became of the mail that one domain sent in a category on one day.

    Written only by ``monitoring.reputation``. Rows outlive the mails they count.
    """

    #: The day, in UTC, on which the mails were accepted or refused for good.
    day = models.DateField()
    category = Line(max_length=64, blank=True)
    #: The domain of the sender's address.
    domain = Line(max_length=255, blank=True)
    mails = BigCount(default=0)
    #: How many of them bounced for good, and how many were reported as spam; each mail counts once.
    bounced = BigCount(default=0)
    complained = BigCount(default=0)

    class Meta:
        verbose_name = _("reputation")
        verbose_name_plural = _("reputation")
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["day", "category", "domain"], name="epica_mail_one_reputation"
            )
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.category} {self.domain}"


class CountingMark(Row):
    """The single row with the time up to which totals are counted; it also serialises counting."""

    counted_until = Moment()

    class Meta:
        verbose_name = _("counting mark")
        verbose_name_plural = _("counting marks")
        default_permissions = ()
        constraints: ClassVar = [
            ReadableTimes(fields=["counted_until"], name="epica_mail_mark_times"),
        ]

    def __str__(self) -> str:
        return str(self.counted_until)
