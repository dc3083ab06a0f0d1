"""The index of waiting mail: partial where the database has partial indexes, whole elsewhere."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection

from django_epica_mail.models import EmailLog
from django_epica_mail.models.indexes import WaitingIndex


def test_the_index_leaves_out_what_does_not_wait(db) -> None:
    index = next(it for it in EmailLog._meta.indexes if isinstance(it, WaitingIndex))
    editor = connection.schema_editor(collect_sql=True)  # not begun: nothing is executed
    statement = str(index.create_sql(EmailLog, editor))
    is_partial = connection.features.supports_partial_indexes
    assert ("IS NOT NULL" in statement) is is_partial


def test_the_database_has_it_and_django_warns_of_nothing(db, capsys) -> None:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, EmailLog._meta.db_table)
    wanted = ["domain", "queue", "transport", "pending", "due_at"]
    assert found["epica_mail_domain"]["columns"] == wanted
    call_command("check", databases=["default"])
    assert "W037" not in "".join(capsys.readouterr())


def test_migrations_see_the_class(db) -> None:
    index = WaitingIndex(fields=["domain"], name="name")
    path, args, options = index.deconstruct()
    assert (path, args) == ("django_epica_mail.models.indexes.WaitingIndex", ())
    assert options == {"fields": ["domain"], "name": "name"}


@pytest.mark.skipif(connection.vendor == "mysql", reason="MariaDB has no partial indexes")
def test_mail_of_a_slowed_domain_is_found_by_it(db) -> None:
    rows = EmailLog.objects.filter(domain="a.example", queue="q", transport="t", pending=5)
    plan = rows.order_by("due_at").explain()
    if connection.vendor == "sqlite":
        assert "epica_mail_domain" in plan
