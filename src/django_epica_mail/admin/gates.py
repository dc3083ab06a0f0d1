"""What is paused or out of order, in the admin."""

from __future__ import annotations

from django.contrib import admin

from django_epica_mail.admin.read_only import ReadOnly
from django_epica_mail.models import DeliveryGate


@admin.register(DeliveryGate)
class DeliveryGateAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """What is paused or out of order, and when each queue was last swept."""

    list_display = ("scope", "name", "paused", "outages", "open_until", "last_sweep_at")
