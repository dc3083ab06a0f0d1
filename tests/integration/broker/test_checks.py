"""The system checks of Celery, and what triggers each."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, _state, current_app
from django.core.checks import WARNING
from kombu import Queue

from django_epica_mail.broker import checks
from django_epica_mail.broker.celery_config import BULK_TASK, SINGLE_TASK
from django_epica_mail.schedule import SCHEDULE


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


def test_the_checks_leave_an_app_made_with_the_urls_that_of_all_threads(tmp_path) -> None:
    (tmp_path / "late_urls.py").write_text(
        "from celery import Celery; Celery('shop'); urlpatterns = []"
    )
    code = """
import os, sys, threading
from types import SimpleNamespace
os.environ["DJANGO_SETTINGS_MODULE"] = "late"
sys.path.append(sys.argv[1])
sys.modules["late"] = SimpleNamespace(
    SECRET_KEY="s", INSTALLED_APPS=["django_epica_mail"], ROOT_URLCONF="late_urls",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
from celery import shared_task
from django.core.checks import run_checks
run_checks(tags=["mail"])
import late_urls
@shared_task
def resize(): pass
thread = threading.Thread(target=lambda: print(resize.app.main))
thread.start()
thread.join()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "shop", "the site's own tasks go to its own broker"


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
    written = (
        "from celery import Celery; app = Celery('shop'); app.set_default(); "
        "app.conf.broker_write_url = app.conf.broker_read_url = 'redis://127.0.0.1:1'"
    )
    alone = "settings.DEBUG, settings.EPICA_MAIL = True, {'DELIVER_IN_PROCESS': True}"
    for line, is_found in (("", True), (loaded, False), (written, False), (alone, False)):
        done = subprocess.run(
            [sys.executable, "-c", code % line], capture_output=True, text=True, check=True
        )
        assert ("epica_mail.W007" in done.stdout.split()) is is_found


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    """Make Celery apps that end with the test, after which the tests' app is current again."""
    made: list[Celery] = []
    before = current_app._get_current_object()

    def make(name: str, **options: Any) -> Celery:
        made.append(Celery(name, broker="memory://", **options))
        return made[-1]

    yield make
    for app in made:
        app.close()
        _state._deregister_app(app)
    before.set_current()
    before.set_default()


def test_w051_a_second_app_in_the_process(make_app) -> None:
    assert list(checks.check_single_app()) == []
    make_app("other", set_as_current=False)
    assert list(checks.check_single_app()) == [], "which cannot become current"
    make_app("second")
    (message,) = checks.check_single_app()
    assert (message.id, message.level) == ("epica_mail.W061", WARNING)
    assert "'second'" in message.msg
    assert "'tests'" in message.msg
    current_app.set_default()
    assert list(checks.check_single_app()) == [], "the site has chosen it"


@pytest.mark.parametrize(
    ("queues", "missing"),
    [
        (None, ["'bulk_emails'", "'emails'"]),
        ([Queue("emails"), Queue("bulk_emails")], ["'celery'"]),
        ([Queue("emails"), Queue("bulk_emails"), Queue("celery")], []),
    ],
    ids=["none", "without the default", "all"],
)
def test_w050_a_queue_that_celery_does_not_create(monkeypatch, queues, missing) -> None:
    app = Celery("closed", broker="memory://", set_as_current=False)
    app.conf.update(task_create_missing_queues=False, task_queues=queues)
    monkeypatch.setattr(checks, "app_or_default", lambda: app)
    messages = list(checks.check_queues({"emails", "bulk_emails"}))
    assert [it.id for it in messages] == ["epica_mail.W060"] * bool(missing)
    for message in messages:
        assert ", ".join(missing) in message.msg
    app.conf.task_create_missing_queues = True
    assert list(checks.check_queues({"anything"})) == []


BEAT = [
    ("django_celery_beat.schedulers:DatabaseScheduler", "At each start"),
    ("django", "At each start"),
    ("celery.beat:PersistentScheduler", "Started with -S django"),
]


@pytest.mark.parametrize(("scheduler", "when"), BEAT)
def test_w081_tasks_of_mail_that_overwrite_the_tables_of_beat(monkeypatch, scheduler, when) -> None:
    own = {"task": "shop.tasks.report", "schedule": 60}
    monkeypatch.setitem(current_app.conf, "beat_schedule", {**SCHEDULE, "report": own})
    monkeypatch.setitem(current_app.conf, "beat_scheduler", scheduler)
    assert list(checks.check_beat()) == []  # without django-celery-beat, they are in their place
    monkeypatch.setattr(checks.apps, "is_installed", lambda name: name == "django_celery_beat")
    (message,) = checks.check_beat()
    assert message.id == "epica_mail.W081"
    assert when in message.msg
    assert "dispatch-due-emails" in message.msg
    assert "report" not in message.msg
    monkeypatch.setitem(current_app.conf, "beat_schedule", {"report": own})
    assert list(checks.check_beat()) == []


def test_w081_another_scheduler_of_the_site_is_left_alone(monkeypatch) -> None:
    monkeypatch.setitem(current_app.conf, "beat_schedule", SCHEDULE)
    monkeypatch.setitem(current_app.conf, "beat_scheduler", "redbeat.RedBeatScheduler")
    monkeypatch.setattr(checks.apps, "is_installed", lambda name: True)
    assert list(checks.check_beat()) == []
