"""What installing the app registers, in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from anymail.signals import tracking
from django.apps import AppConfig, apps
from django.core.checks import run_checks
from django.core.management import call_command
from django.db.models.signals import post_migrate
from django.utils import translation

from django_epica_mail import schedule, signals

INSTALLED = """
import json
import django
django.setup()
from celery import current_app
print(json.dumps(sorted(name for name in current_app.tasks if "epica" in name)))
"""

MADE_LATE = """
import os, sys, threading
from types import SimpleNamespace
os.environ["DJANGO_SETTINGS_MODULE"] = "late"
sys.modules["late"] = SimpleNamespace(SECRET_KEY="s", INSTALLED_APPS=["django_epica_mail"])
from django.core.wsgi import get_wsgi_application
get_wsgi_application()
from celery import Celery, shared_task
app = Celery("shop")
@shared_task
def resize(): pass
thread = threading.Thread(target=lambda: print(resize.app.main))
thread.start()
thread.join()
"""


def config() -> Any:
    return apps.get_app_config("epica_mail")


def receivers() -> dict[str, int]:
    """Return the number of receivers of each signal that the app connects to."""
    connected = {
        "migrated": post_migrate,
        "tracked": tracking,
        "moved": signals.email_moved,
        "tripped": signals.transport_tripped,
        "recovered": signals.transport_recovered,
    }
    return {name: len(signal.receivers) for name, signal in connected.items()}


def run(script: str) -> str:
    """Return what a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # pytest added to it
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def test_a_process_that_only_sets_up_django_has_the_tasks() -> None:
    names = json.loads(run(INSTALLED))
    assert {entry["task"] for entry in schedule.SCHEDULE.values()} <= set(names)
    assert "django_epica_mail.tasks.deliver_emails" in names


def test_a_celery_app_made_after_the_start_is_still_that_of_all_threads() -> None:
    assert run(MADE_LATE).strip() == "shop", "the site's own tasks go to its own broker"


def test_receivers_are_connected_once_however_often_the_app_is_ready() -> None:
    before = receivers()
    assert before["migrated"] >= 1
    assert before["tracked"] >= 1
    config().ready()
    assert receivers() == before


def test_the_app_works_without_anymail(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "anymail.signals", None)
    config().ready()


def test_migrate_offers_the_schedule(db, monkeypatch) -> None:
    offered: list[str] = []

    def note(sender: AppConfig, **_: Any) -> None:
        offered.append(sender.label)

    post_migrate.disconnect(dispatch_uid="django_epica_mail.schedule")
    monkeypatch.setattr(schedule, "offer", note)
    config().ready()
    try:
        call_command("migrate", "epica_mail", verbosity=0)
    finally:
        post_migrate.disconnect(dispatch_uid="django_epica_mail.schedule")
        monkeypatch.undo()
        config().ready()
    assert "epica_mail" in offered


def test_the_checks_of_the_app_are_run(settings) -> None:
    settings.EPICA_MAIL = {"BATCH_SIZE": 0}
    assert "epica_mail.E001" in {found.id for found in run_checks(tags=["mail"], databases=[])}


def test_the_name_of_the_app_is_translated() -> None:
    assert str(config().verbose_name) == "E-mail queue"
    with translation.override("tr"):
        assert str(config().verbose_name) != "E-mail queue"


@pytest.mark.django_db
def test_tables_begin_with_the_label_of_the_app() -> None:
    tables = {model._meta.db_table for model in config().get_models(include_auto_created=True)}
    assert tables
    assert all(table.startswith("epica_mail_") for table in tables)
