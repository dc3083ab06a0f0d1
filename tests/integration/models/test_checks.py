"""The system checks of the database that holds the mail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.core.checks import ERROR
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.delivery import worker
from django_epica_mail.models import EmailLog, checks


@pytest.fixture
def database_zone() -> Iterator[Callable[[str], None]]:
    """Set ``TIME_ZONE`` of the database, which Django reads once for each connection."""

    def forget() -> None:
        for name in ("timezone", "timezone_name"):
            connections["default"].__dict__.pop(name, None)

    def use(zone: str) -> None:
        connection.settings_dict["TIME_ZONE"] = zone
        forget()

    kept = connection.settings_dict["TIME_ZONE"]
    yield use
    connection.settings_dict["TIME_ZONE"] = kept
    forget()


@pytest.mark.parametrize("zone", ["Europe/Istanbul", "Europe/London"])
def test_a_database_whose_times_are_of_a_place_is_refused(db, database_zone, zone) -> None:
    database_zone(zone)
    found = [(it.id, it.level) for it in checks.check_database()]
    if connection.features.supports_timezones:
        assert found == []
    else:
        assert found == [("epica_mail.E008", ERROR)]


@pytest.mark.parametrize("zone", ["UTC", "Etc/UTC", "Africa/Abidjan"])
def test_a_database_in_utc_by_any_name_is_accepted(db, database_zone, zone) -> None:
    database_zone(zone)
    assert list(checks.check_database()) == []


@pytest.mark.skipif(connection.features.supports_timezones, reason="this database stores zones")
def test_why_such_a_database_is_refused(queue_mail, deliver, database_zone, smtp) -> None:
    """Mail for two hours later would be due at once west of Greenwich, by the database's clock."""
    database_zone("America/New_York")
    queue_mail(send_at=timezone.now() + timedelta(hours=2))
    assert deliver() == 1
    assert outbox.cancel(EmailLog.objects.values_list("pk", flat=True)).cancelled == []


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's own modes")
def test_w080_sqlite_whose_transactions_fail_beside_a_worker(db, monkeypatch) -> None:
    assert list(checks.check_locking()) == []  # in memory
    monkeypatch.setattr(connection, "is_in_memory_db", lambda: False)
    options = connection.settings_dict["OPTIONS"]
    monkeypatch.delitem(options, "transaction_mode", raising=False)
    (message,) = checks.check_locking()
    assert message.id == "epica_mail.W080"
    assert "'transaction_mode': 'IMMEDIATE'" in str(message.hint)
    monkeypatch.setitem(options, "transaction_mode", "immediate")
    assert list(checks.check_locking()) == []


APP = "django_epica_mail"


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"TENANT_APPS": ["shop", APP], "SHARED_APPS": ["customers"]}, "TENANT_APPS"),
        ({"TENANT_APPS": [APP], "SHARED_APPS": [APP]}, "TENANT_APPS"),
        ({"TENANT_APPS": (f"{APP}.apps.EpicaMailConfig",)}, "TENANT_APPS"),
        (
            {"TENANT_TYPES": {"public": {"APPS": [APP]}, "shop": {"APPS": [APP]}}},
            "TENANT_TYPES['shop']['APPS']",
        ),
        ({"TENANT_APPS": ["shop"], "SHARED_APPS": [APP]}, None),
        ({"TENANT_TYPES": {"public": {"APPS": [APP]}, "shop": {"APPS": ["shop"]}}}, None),
        ({"TENANT_APPS": [f"{APP}_of_another_author"]}, None),
    ],
)
def test_tables_in_the_schema_of_each_tenant_are_refused(db, settings, given, setting) -> None:
    for name, value in given.items():
        setattr(settings, name, value)
    found = list(checks.check_database())
    if setting is None:
        assert found == []
    else:
        (message,) = found
        assert (message.id, message.level) == ("epica_mail.E009", ERROR)
        assert message.msg.startswith(f"{setting} lists")
        assert "SHARED_APPS alone" in str(message.hint)


def test_a_database_that_commits_nothing_sends_nothing(smtp, queue_mail, monkeypatch) -> None:
    queue_mail()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    assert [it.id for it in checks.check_database()] == ["epica_mail.E010"]
    with pytest.raises(ImproperlyConfigured, match="AUTOCOMMIT"):
        worker.deliver("emails")
    with pytest.raises(ImproperlyConfigured, match="AUTOCOMMIT"):
        worker.deliver_one(EmailLog.objects.get().pk)
    assert smtp.accepted == []
