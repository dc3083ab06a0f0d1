"""The question before an operation: groups by reason, and exactly the e-mails that it was about."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from benchmarks.rows import template
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind
from tests.integration.admin.pages import text_in, url

LIST = "emaillog_changelist"


def failed(code: int | None, reply: str, number: int = 1, kind: Kind = Kind.PERMANENT) -> list[Any]:
    """Store e-mails that failed for one reason; return their ids."""
    rows = [template(Status.FAILED, kind=kind, finished=timedelta()) for _ in range(number)]
    ids = [row.pk for row in rows]
    EmailLog.objects.filter(pk__in=ids).update(
        failure_code=code, reply=reply, finished_at=timezone.now(), envelope="{}"
    )
    return ids


def ask(client: Client, action: str = "requeue", query: str = "?status=failed") -> str:
    """Press a button for all that matches; return the question."""
    first = str(EmailLog.objects.latest("pk").pk)
    form = {"action": action, "_selected_action": first, "select_across": "1"}
    return client.post(url(LIST) + query, form).content.decode()


def form_of(html: str, *without: str) -> dict[str, list[str]]:
    """Return the fields of the question as a browser sends them, ``without`` some groups."""
    fields: dict[str, list[str]] = {}
    pattern = r'<input type="(?:hidden|checkbox)" name="([^"]+)" value="([^"]*)"( checked)?'
    for name, value, _checked in re.findall(pattern, html.partition("<form method")[2]):
        if value not in without:
            fields.setdefault(name, []).append(value)
    return fields


def requeued() -> set[Any]:
    return set(EmailLog.objects.filter(status="queued").values_list("pk", flat=True))


def test_the_question_names_each_reason_with_its_number(superuser) -> None:
    failed(554, "5.7.1 blocked", 3)
    failed(550, "5.1.1 user <unknown>", 2)
    failed(None, "", 1, Kind.OVERDUE)
    text = text_in(ask(superuser))
    assert "“Queue again” for 6 e-mails?" in text
    found = [
        text.index(it)
        for it in (
            "3 × failed 554 refused for good 5.7.1 blocked",
            "2 × failed 550 refused for good 5.1.1 user &lt;unknown&gt;",
            "1 × failed waited too long",
        )
    ]
    assert found == sorted(found), "the largest group first"


def test_a_group_can_be_left_out(superuser) -> None:
    blocked = failed(554, "5.7.1 blocked", 3)
    failed(550, "5.1.1 user unknown", 2)
    form = form_of(ask(superuser), "failed|permanent|550")
    superuser.post(f"{url(LIST)}?status=failed", form)
    assert requeued() == set(blocked)


def test_without_any_group_nothing_happens(superuser) -> None:
    failed(554, "5.7.1 blocked")
    failed(550, "5.1.1 user unknown")
    form = form_of(ask(superuser))
    form.pop("group")
    answer = superuser.post(f"{url(LIST)}?status=failed", form, follow=True)
    assert "applies to none of the chosen" in answer.content.decode()
    assert requeued() == set()


def test_mail_that_fails_after_the_question_is_not_touched(superuser) -> None:
    asked = failed(554, "5.7.1 blocked", 2)
    form = form_of(ask(superuser))
    failed(554, "5.7.1 blocked", 2)
    superuser.post(f"{url(LIST)}?status=failed", form)
    assert requeued() == set(asked)


def test_mail_that_is_queued_after_the_question_is_not_touched(superuser, queue_mail) -> None:
    asked = queue_mail()
    form = form_of(ask(superuser, "cancel", "?status=queued"))
    later = queue_mail()
    superuser.post(f"{url(LIST)}?status=queued", form)
    assert EmailLog.objects.get(pk=asked.pk).status == "cancelled"
    assert EmailLog.objects.get(pk=later.pk).status == "queued"


@pytest.mark.parametrize("name", ["newest", "last_end", "group", "grouped", "note"])
@pytest.mark.parametrize("value", ["", "nonsense", "2026-13-40T99:99", "2026-01-01", "\0"])
def test_no_field_of_the_question_is_an_error(superuser, name, value) -> None:
    failed(554, "5.7.1 blocked")
    form = {**form_of(ask(superuser)), name: [value]}
    assert superuser.post(f"{url(LIST)}?status=failed", form).status_code < 500
