"""Measure what pages of the admin cost the database among very many mails."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

ROUNDS = 5
LIST = "admin:epica_mail_emaillog_changelist"
DASHBOARD = "admin:epica_mail_emailtotal_changelist"


def measure() -> dict[str, float]:
    """Return the milliseconds that the database takes for each page; mail must be stored."""
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import Client, override_settings
    from django.urls import path, reverse

    from django_epica_mail.models import EmailLog

    client = Client()
    client.force_login(User.objects.create_superuser("benchmark"))
    mail = EmailLog.objects.order_by("pk")[1000]
    queries: dict[str, dict[str, str]] = {
        "list": {},
        "list, page 200": {"p": "200"},
        "list, queued": {"status": "queued"},
        "list, sent": {"status": "sent"},
        "list, failed (few and old)": {"status": "failed"},
        "list, cancelled (none)": {"status": "cancelled"},
        "list, one queue": {"queue": "emails"},
        "list, an unused category": {"category": "nothing"},
        "list, the last hour": {"since": "hour"},
        "search, an id": {"q": str(mail.pk)},
        "search, a Message-ID": {"q": mail.message_id},
        "search, an address": {"q": "rare@example.com"},
        "search, the beginning of an address": {"q": "rar*"},
        "search, an address that all mail goes to": {"q": "to@example.com"},
        "search, a domain": {"q": "@example.org"},
        "search, a word in no subject": {"q": "nothing"},
    }
    urlconf = (path("admin/", admin.site.urls),)
    with override_settings(ROOT_URLCONF=urlconf, ALLOWED_HOSTS=["testserver"]):
        found = {
            name: _milliseconds(client, reverse(LIST), query) for name, query in queries.items()
        }
        page = reverse("admin:epica_mail_emaillog_change", args=[mail.pk])
        found["one mail"] = _milliseconds(client, page, {})
        found["dashboard"] = _milliseconds(client, reverse(DASHBOARD), {})
    return {f"admin: {name}, ms": value for name, value in found.items()}


def _milliseconds(client: Any, address: str, query: dict[str, str]) -> float:
    from django.db import connection

    spent: list[float] = []

    def measured(
        execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        started = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            spent[-1] += (time.perf_counter() - started) * 1000

    with connection.execute_wrapper(measured):
        for _ in range(ROUNDS):
            spent.append(0.0)
            answer = client.get(address, query)
            assert answer.status_code == 200, answer
    return median(spent)
