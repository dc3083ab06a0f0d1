"""The coroutine functions on an asynchronous site."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from celery.exceptions import TimeoutError as CeleryTimeoutError
from django.core.exceptions import SynchronousOnlyOperation
from django.core.mail import EmailMessage
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.test import AsyncClient, TestCase, override_settings
from django.urls import path
from django.utils import translation
from django.utils.translation import gettext_lazy

from django_epica_mail import outbox, tasks
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.models import EmailLog
from django_epica_mail.testing import (
    assert_email_queued,
    drain_email_queue,
    fail_delivery,
    queued_mail,
)

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

adrain = sync_to_async(drain_email_queue)


async def order_view(request: HttpRequest) -> JsonResponse:
    """Queue an order confirmation and a newsletter."""
    result = await tasks.asend_email_async("Order", "Thank you.", None, ["a@example.com"])
    log = await outbox.aenqueue(message("b@example.com"), priority="high")
    batch = await outbox.aenqueue_many(message(f"{n}@example.com") for n in range(3))
    status = await result.astatus()
    return JsonResponse({"ids": [result.id, str(log.pk)], "bulk": batch.total, "status": status})


urlpatterns = [path("order/", order_view)]


def message(to: str) -> EmailMessage:
    return EmailMessage("News", "It is out.", None, [to])


@queued_mail()
class UnderASGITests(TestCase):
    """Coroutine functions in requests through Django's ASGI handler."""

    @override_settings(ROOT_URLCONF=__name__)
    async def test_a_view_queues_without_leaving_the_event_loop(self) -> None:
        response = await AsyncClient().get("/order/")
        data: dict[str, Any] = response.json()
        assert (data["bulk"], data["status"]) == (3, "PENDING")
        singles = EmailLog.objects.filter(batch=None).order_by("id")
        assert [str(pk) async for pk in singles.values_list("pk", flat=True)] == data["ids"]
        assert len(await adrain()) == 5

    async def test_django_refuses_the_synchronous_function(self) -> None:
        with pytest.raises(SynchronousOnlyOperation):
            outbox.enqueue(message("a@example.com"))

    async def test_a_mail_is_rolled_back_with_its_threads_transaction(self) -> None:
        # ATOMIC_REQUESTS opens and rolls back a transaction the same way, in the database thread.
        atomic = transaction.atomic()
        await sync_to_async(atomic.__enter__)()
        await outbox.aenqueue(message("a@example.com"))
        assert await EmailLog.objects.acount() == 1
        error = RuntimeError()
        await sync_to_async(atomic.__exit__)(RuntimeError, error, None)
        assert await EmailLog.objects.acount() == 0

    async def test_the_mail_uses_the_callers_language(self) -> None:
        with translation.override("tr"):
            await outbox.aenqueue(EmailMessage(gettext_lazy("Monday"), "", None, ["a@example.com"]))
        await sync_to_async(assert_email_queued)(1, subject="Pazartesi")

    async def test_mail_is_cancelled_requeued_paused_and_resumed(self) -> None:
        log = await outbox.aenqueue(message("a@example.com"))
        assert (await outbox.acancel([log.pk])).cancelled == [log.pk]
        assert await outbox.arequeue([log.pk]) == 1
        await outbox.apause(queue="emails")
        assert await adrain() == []
        await outbox.aresume(queue="emails")
        assert len(await adrain()) == 1

    async def test_aget_awaits_the_end(self) -> None:
        result = await tasks.asend_email_async("S", "M", None, ["a@example.com"])
        waiting = asyncio.create_task(result.aget(timeout=20, interval=0.01))
        await asyncio.sleep(0)
        assert not waiting.done()
        await adrain()
        assert (await waiting)["status"] == "sent"

    async def test_aget_raises_or_returns_a_failure(self) -> None:
        result = await tasks.asend_email_async("S", "M", None, ["a@example.com"])
        with fail_delivery(reply=(550, "5.1.1 No such user")):
            await adrain()
        with pytest.raises(DeliveryFailed):
            await result.aget(timeout=20)
        assert isinstance(await result.aget(propagate=False), DeliveryFailed)

    async def test_aget_times_out(self) -> None:
        result = await tasks.asend_email_async("S", "M", None, ["a@example.com"])
        with pytest.raises(CeleryTimeoutError):
            await result.aget(timeout=0.01, interval=0.001)

    @override_settings(TEMPLATES=TEMPLATES)
    async def test_templated_mail_is_queued(self) -> None:
        context = {"title": "Out now", "body": "Read it."}
        template = "emails/notification"
        result = await tasks.asend_templated_email_async(
            None, template, context, None, ["a@example.com"]
        )
        assert await EmailLog.objects.aget(pk=result.id)
        batch = await tasks.asend_bulk_templated_emails(
            None, template, [("b@example.com", context)]
        )
        assert batch.accepted == 1


def test_each_has_the_name_and_signature_of_its_function() -> None:
    for module, names in (
        (outbox, ("enqueue", "enqueue_many", "cancel", "requeue", "pause", "resume")),
        (tasks, ("send_email_async", "send_templated_email_async", "send_bulk_templated_emails")),
    ):
        for name in names:
            coroutine = getattr(module, f"a{name}")
            assert coroutine.__name__ == f"a{name}"
            assert inspect.iscoroutinefunction(coroutine)
            assert inspect.signature(coroutine) == inspect.signature(getattr(module, name))


@queued_mail()
class PageTests(TestCase):
    """The documentation page on asynchronous code."""

    async def test_its_code_queues_the_mail_it_describes(self) -> None:
        names = page()
        response = await names["contact"](HttpRequest())
        assert json.loads(response.content)["status"] == "PENDING"
        await names["sign_up"]("ali", "ali@example.com")
        await sync_to_async(assert_email_queued)(3)
        await sync_to_async(assert_email_queued)(1, subject="Welcome", to="ali@example.com")


def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "async.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names
