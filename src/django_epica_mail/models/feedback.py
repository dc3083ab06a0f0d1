"""What came back: events of sent e-mails, and the suppression list."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_epica_mail.clock import uuid7
from django_epica_mail.models.bounds import Moment, ReadableTimes
from django_epica_mail.models.emails import EmailLog
from django_epica_mail.models.fields import CopyCharField, CopyTextField, Key, Line
from django_epica_mail.models.row import Row


class EmailEvent(Row):
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
        RESOLVED = "resolved", _("unknown outcome decided")

    id = Key(primary_key=True, default=uuid7, editable=False)
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
    key = Line(max_length=64, editable=False)
    kind = Line(_("kind"), max_length=16, choices=Kind)
    at = Moment(pgettext_lazy("time", "at"))
    created_at = Moment(_("recorded at"))
    #: The provider's name, or ``epica_mail`` for events observed by this package.
    source = CopyCharField(_("source"), max_length=64)
    address = CopyCharField(_("address"), max_length=320, blank=True)
    provider_id = CopyCharField(_("provider's id"), max_length=255, blank=True)
    reason = CopyCharField(_("reason"), max_length=64, blank=True)
    reply = CopyTextField(_("server's reply"), blank=True)
    url = CopyTextField(_("link"), blank=True)
    user_agent = CopyCharField(_("user agent"), max_length=255, blank=True)
    ip = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    is_machine = models.BooleanField(_("by a machine"), default=False)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering: ClassVar = ["at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key"], name="epica_mail_event_once"),
            ReadableTimes(fields=["at", "created_at"], name="epica_mail_event_times"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["address"], name="epica_mail_event_address"),
            models.Index(fields=["provider_id"], name="epica_mail_event_provider"),
            models.Index(fields=["kind", "at"], name="epica_mail_event_kind"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.email_id}"


class Suppression(Row):
    """An address that gets no mail at all, or none of one category."""

    class Reason(models.TextChoices):
        """Why the address is suppressed."""

        BOUNCE = "bounce", _("bounced for good")
        COMPLAINT = "complaint", _("reported as spam")
        UNSUBSCRIBE = "unsubscribe", _("unsubscribed")
        MANUAL = "manual", _("added by hand")

    id = Key(primary_key=True, default=uuid7, editable=False)
    #: Empty if the person's data was erased; the digest still suppresses their mail.
    address = CopyCharField(_("address"), max_length=320, blank=True)
    #: An HMAC of the address for look-ups; it does not reveal the address.
    digest = Line(max_length=64, editable=False)
    scope = CopyCharField(
        _("category"), max_length=64, blank=True, help_text=_("Leave empty for all mail.")
    )
    reason = CopyCharField(_("reason"), max_length=16, choices=Reason, default=Reason.MANUAL)
    note = CopyTextField(_("note"), blank=True)
    created_at = Moment(_("created at"), default=timezone.now, editable=False)
    expires_at = Moment(_("expires at"), null=True, blank=True)

    class Meta:
        verbose_name = _("suppressed address")
        verbose_name_plural = _("suppressed addresses")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["digest", "scope", "reason"], name="epica_mail_suppressed_once"
            ),
            ReadableTimes(fields=["created_at", "expires_at"], name="epica_mail_suppression_times"),
        ]
        indexes: ClassVar = [models.Index(fields=["address"], name="epica_mail_suppressed")]

    def __str__(self) -> str:
        return str(self.id)
