"""The migrations match the models."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection

from django_epica_mail.models import EmailLog

pytestmark = pytest.mark.django_db


def test_every_change_of_the_models_has_a_migration() -> None:
    output = StringIO()
    call_command("makemigrations", "epica_mail", check=True, dry_run=True, stdout=output)
    assert "No changes detected" in output.getvalue()


def test_the_indexes_of_the_hot_paths_exist() -> None:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, EmailLog._meta.db_table)
    assert found["epica_mail_claim"]["columns"] == ["queue", "transport", "pending", "due_at", "id"]
    assert {"epica_mail_lease", "epica_mail_give_up", "epica_mail_finished"} <= set(found)
