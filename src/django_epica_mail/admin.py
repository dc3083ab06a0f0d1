"""The admin: read-only rows, for people who ask whether mail flows and what became of one."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.http import HttpRequest

from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailBatch,
    EmailLog,
    EmailRecipient,
)


class _ReadOnly:
    """Shows rows and changes none: the queue's rows move by its own rules only."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _RecipientInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = EmailRecipient
    fields = ("kind", "address", "outcome", "code", "reply")
    extra = 0


class _AttemptInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
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
class EmailLogAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """The mails, newest first; never their content."""

    list_display = ("id", "status", "subject", "queue", "transport", "tries", "created_at")
    list_filter = ("status",)
    search_fields = ("=id", "=message_id", "=recipients__address")
    ordering = ("-id",)
    show_full_result_count = False
    exclude = ("attachments",)
    inlines: ClassVar = [_RecipientInline, _AttemptInline]


@admin.register(EmailBatch)
class EmailBatchAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """The bulk calls, newest first."""

    list_display = ("id", "created_at", "total")
    ordering = ("-id",)


@admin.register(DeliveryGate)
class DeliveryGateAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """What is paused or out of order, and when each queue was last swept."""

    list_display = ("scope", "name", "paused", "outages", "open_until", "last_sweep_at")
