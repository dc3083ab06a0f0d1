"""The system checks of Celery, and what triggers each."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery import current_app

from django_epica_mail.broker import checks
from django_epica_mail.broker.celery_config import BULK_TASK, SINGLE_TASK


@pytest.fixture
def task_routes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Set CELERY_TASK_ROUTES."""

    def use(routes: Any) -> None:
        monkeypatch.setitem(current_app.conf, "task_routes", routes)

    return use


@pytest.mark.parametrize(
    ("routes", "tasks"),
    [
        (None, []),
        ({"*": "default"}, [SINGLE_TASK, BULK_TASK]),
        ({"*": {"queue": "default"}, SINGLE_TASK: {"queue": "mail"}}, [BULK_TASK]),
        ([{BULK_TASK: "bulk"}, {"*": "default"}], [SINGLE_TASK]),
        ([{"*": "default"}, {BULK_TASK: "bulk"}], [SINGLE_TASK, BULK_TASK]),
        ([[("django_epica_mail.tasks.*", "mail"), ("*", "default")]], []),
        ({re.compile(r".*\.tasks\..*"): {"queue": "default"}}, [SINGLE_TASK, BULK_TASK]),
        ({"shop.*": "shop", "*": {"priority": 3}}, []),
    ],
)
def test_w003_a_catch_all_celery_route(task_routes, routes, tasks) -> None:
    task_routes(routes)
    messages = list(checks.check_task_routes())
    assert {message.id for message in messages} <= {"epica_mail.W003"}
    assert len(messages) == len(tasks)
    for message, task in zip(messages, tasks, strict=True):
        assert f"sends {task} to 'default'" in message.msg
        assert task in str(message.hint)


def test_w007_a_process_without_the_sites_celery_app() -> None:
    code = """
import django
from django.conf import settings
from django.core.checks import run_checks

settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django_epica_mail"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    USE_TZ=True,
)
%s
django.setup()
print(*[message.id for message in run_checks(tags=["mail"])])
"""
    loaded = "from celery import Celery; Celery('shop', broker='redis://127.0.0.1:1').set_default()"
    for line, is_found in (("", True), (loaded, False)):
        done = subprocess.run(
            [sys.executable, "-c", code % line], capture_output=True, text=True, check=True
        )
        assert ("epica_mail.W007" in done.stdout.split()) is is_found
