"""The bulk calls in the admin."""

from __future__ import annotations

from django.contrib import admin

from django_epica_mail.admin.read_only import ReadOnly
from django_epica_mail.models import EmailBatch


@admin.register(EmailBatch)
class EmailBatchAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """The bulk calls, newest first."""

    list_display = ("id", "created_at", "total")
    ordering = ("-id",)
