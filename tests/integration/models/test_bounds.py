"""Columns that are bounded: what is read of times and numbers that the package never writes."""

from __future__ import annotations

import importlib
import math
from datetime import datetime, timedelta, timezone
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import DataError, IntegrityError, connection, models, transaction
from django.db.migrations.state import ProjectState
from django.utils import timezone as django_timezone
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.models import DeliveryGate, EmailLog, EmailTotal, ReputationDay, bounds
from django_epica_mail.models.bounds import (
    EARLIEST,
    LATEST,
    MOST_BIG,
    MOST_SMALL,
    Moment,
    ReadableTimes,
    increased,
    total,
)

OWN = apps.get_app_config("epica_mail").get_models()
TIMES = [
    (it._meta.db_table, field.column)
    for it in OWN
    for field in it._meta.local_fields
    if isinstance(field, models.DateTimeField)
]
"""Every column of times: the table and the column."""
BERLIN = ZoneInfo("Europe/Berlin")
ON_POSTGRESQL = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="no other database stores such times"
)


def write(statement: str, *params: object) -> None:
    """Write as somebody does who may write to the database."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_every_time_is_read_as_one_that_leaves_room(at: datetime) -> None:
    read = Moment().from_db_value(at, None, connection)
    assert EARLIEST <= read <= LATEST
    assert read == at or not EARLIEST <= at <= LATEST
    assert (read - timedelta(days=366 * 300)).year < (read + timedelta(days=364)).year
    assert django_timezone.localtime(read)


def test_times_of_a_connection_with_a_zone_are_told_apart_when_its_clocks_are_set_back() -> None:
    before, after = (
        Moment().from_db_value(
            datetime(2026, 10, 25, hour, 30, tzinfo=timezone.utc).astimezone(BERLIN),
            None,
            connection,
        )
        for hour in (0, 1)
    )
    assert before < after
    assert after - before == timedelta(hours=1)
    assert after.hour == 1


@given(st.floats() | st.integers() | st.text(), st.sampled_from([MOST_SMALL, MOST_BIG]))
def test_every_number_is_read_as_a_finite_one_in_bounds(value: Any, most: int) -> None:
    read = bounds.bounded(value, most)
    assert 0 <= read <= most
    assert math.isfinite(read)


def test_null_stays_null(db, queue_mail) -> None:
    log = queue_mail()
    assert EmailLog.objects.get(pk=log.pk).finished_at is None
    assert EmailLog.objects.filter(pk=log.pk).aggregate(it=models.Max("finished_at"))["it"] is None
    assert EmailLog.objects.none().aggregate(it=models.Max("due_at"))["it"] is None


@pytest.mark.skipif(connection.vendor != "mysql", reason="the day zero of MariaDB's calendar")
def test_the_day_zero_is_read_as_a_time(db, queue_mail) -> None:
    log = queue_mail()
    write("SET SESSION sql_mode = ''")
    write("UPDATE epica_mail_emaillog SET due_at = '0000-00-00 00:00:00'")
    assert EmailLog.objects.get(pk=log.pk).due_at == EARLIEST


@pytest.mark.parametrize("value", ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"])
def test_the_edges_of_the_calendar_are_read_as_the_nearest_bound(db, queue_mail, value) -> None:
    if connection.vendor == "postgresql":
        pytest.skip("the constraint refuses them")
    log = queue_mail()
    write(f"UPDATE epica_mail_emaillog SET due_at = '{value}'")
    read = EARLIEST if value < "1900" else LATEST
    assert EmailLog.objects.get(pk=log.pk).due_at == read
    assert EmailLog.objects.values_list("due_at", flat=True).get() == read
    assert EmailLog.objects.aggregate(it=models.Max("due_at"))["it"] == read


def test_a_full_column_is_not_increased_beyond_its_size(db, queue_mail) -> None:
    log = queue_mail()
    EmailLog.objects.update(attempts=32_767)
    rows = EmailLog.objects.filter(pk=log.pk)
    for _ in range(2):
        rows.update(attempts=increased("attempts", 1, MOST_SMALL))
    assert EmailLog.objects.values_list("attempts", flat=True).get() == MOST_SMALL
    with connection.cursor() as cursor:
        cursor.execute("SELECT attempts FROM epica_mail_emaillog")
        assert cursor.fetchone() == (32_767,)
    EmailLog.objects.update(attempts=3)
    rows.update(attempts=increased("attempts", 2, MOST_SMALL))
    assert EmailLog.objects.values_list("attempts", flat=True).get() == 5


def test_sums_of_full_columns_do_not_overflow(db) -> None:
    day = django_timezone.now().date()
    for domain in ("a.example", "b.example", "c.example"):
        ReputationDay.objects.create(day=day, domain=domain, mails=2**63 - 1)
    assert ReputationDay.objects.aggregate(it=total("mails"))["it"] == 3 * MOST_BIG


def test_numbers_of_64_bits_are_whole_where_parameters_travel_beside_the_statement(
    db, monkeypatch
) -> None:
    """As with the option ``server_side_binding`` of a site's ``DATABASES``."""
    base = pytest.importorskip("django.db.backends.postgresql.base")
    if connection.vendor != "postgresql" or not hasattr(base, "ServerBindingCursor"):
        pytest.skip("only psycopg 3 has such cursors")
    row = ReputationDay.objects.create(day="2026-11-30", mails=4)
    monkeypatch.setattr(connection.connection, "cursor_factory", base.ServerBindingCursor)
    ReputationDay.objects.update(mails=increased("mails", 3, MOST_BIG))
    row.refresh_from_db()
    assert row.mails == 7
    assert ReputationDay.objects.aggregate(it=total("mails"))["it"] == 7


def test_migrations_know_the_columns_as_djangos(db) -> None:
    for model in (EmailLog, EmailTotal, DeliveryGate):
        for field in model._meta.local_fields:
            path = field.deconstruct()[1]
            assert path.startswith("django.db.models."), path


@pytest.mark.parametrize(("table", "column"), TIMES)
def test_every_time_is_a_bounded_one_that_a_constraint_guards(table: str, column: str) -> None:
    (model,) = (
        it for it in apps.get_app_config("epica_mail").get_models() if it._meta.db_table == table
    )
    guarded = [
        name
        for it in model._meta.constraints
        if isinstance(it, ReadableTimes)
        for name in it.fields
    ]
    assert isinstance(model._meta.get_field(column), Moment)
    assert guarded.count(column) == 1


@ON_POSTGRESQL
@pytest.mark.parametrize("value", ["infinity", "-infinity", "4000-01-01 BC", "12000-01-01"])
def test_postgresql_refuses_times_that_its_driver_cannot_read(db, queue_mail, value) -> None:
    queue_mail()
    DeliveryGate.objects.create(scope="queue", name="elsewhere")
    for statement in (
        *(f"UPDATE epica_mail_emaillog SET {it} = %s" for it in ("due_at", "lease_until")),
        *(f"UPDATE epica_mail_deliverygate SET {it} = %s" for it in ("open_until", "paused_at")),
        "INSERT INTO epica_mail_countingmark (counted_until) VALUES (%s)",
    ):
        with pytest.raises(IntegrityError, match="times"), transaction.atomic():
            write(statement, value)


@ON_POSTGRESQL
@pytest.mark.django_db(transaction=True)
def test_the_migration_mends_what_is_stored_and_can_be_repeated(queue_mail) -> None:
    log, other = queue_mail(), queue_mail()
    migration = importlib.import_module("django_epica_mail.migrations.0008_readable_times")
    (operation,) = (it for it in migration.Migration.operations if it.model_name == "emaillog")
    state = ProjectState.from_apps(apps)

    def migrate(direction: str) -> None:
        with connection.schema_editor(atomic=False) as editor:
            getattr(operation, f"database_{direction}")("epica_mail", editor, state, state)

    migrate("backwards")
    try:
        write(
            "UPDATE epica_mail_emaillog SET due_at = 'infinity', expires_at = '-infinity' "
            "WHERE id = %s",
            log.pk,
        )
        with pytest.raises(DataError):
            list(EmailLog.objects.all())
    finally:
        migrate("forwards")
    migrate("forwards")
    row = EmailLog.objects.get(pk=log.pk)
    assert (row.due_at, row.expires_at, row.finished_at) == (LATEST, EARLIEST, None)
    assert EmailLog.objects.get(pk=other.pk).due_at == EmailLog.objects.get(pk=other.pk).created_at
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT convalidated FROM pg_constraint WHERE conname = 'epica_mail_mail_times'"
        )
        assert cursor.fetchone() == (True,)


@pytest.fixture(scope="module")
def statements(django_db_setup: None, django_db_blocker: Any) -> str:
    """Return the SQL of the migration."""
    output = StringIO()
    with django_db_blocker.unblock():
        call_command("sqlmigrate", "epica_mail", "0008", stdout=output, no_color=True)
    return output.getvalue()


def test_no_table_is_read_under_a_lock_by_the_migration(statements) -> None:
    executed = [it for it in statements.splitlines() if it and not it.startswith("--")]
    if connection.vendor != "postgresql":
        assert executed == []
        return
    added = [it for it in executed if "ADD CONSTRAINT" in it]
    assert len(added) == 10
    assert all(it.endswith("NOT VALID;") for it in added)
    assert sum("VALIDATE CONSTRAINT" in it for it in executed) == 10
    assert "BEGIN" not in statements
