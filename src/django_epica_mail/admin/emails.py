"""The mails in the admin: what became of each, and why."""

from __future__ import annotations

from typing import ClassVar

from django.contrib import admin

from django_epica_mail.admin.read_only import ReadOnly
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient


class _RecipientInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = EmailRecipient
    fields = ("kind", "address", "outcome", "code", "reply")
    extra = 0


class _AttemptInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = DeliveryAttempt
    fields = (
        "number",
        "created_at",
        "transport",
        "worker",
        "seconds",
        "failure_kind",
        "code",
        "reply",
    )
    extra = 0


@admin.register(EmailLog)
class EmailLogAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """The mails, newest first; never their content."""

    list_display = ("id", "status", "subject", "queue", "transport", "tries", "created_at")
    list_filter = ("status",)
    search_fields = ("=id", "=message_id", "=recipients__address")
    ordering = ("-id",)
    show_full_result_count = False
    exclude = ("attachments",)
    inlines: ClassVar = [_RecipientInline, _AttemptInline]
