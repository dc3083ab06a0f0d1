"""Rows of a statement of our own: the same instances as ``QuerySet.raw`` makes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError
from django.utils import timezone

from django_epica_mail import outbox
from django_epica_mail.models import EmailLog
from django_epica_mail.queueing.rows import instances

pytestmark = pytest.mark.django_db

TABLE = EmailLog._meta.db_table


def test_instances_equal_those_of_raw_in_every_field() -> None:
    message = EmailMessage("Subject", "Body", None, ["to@example.com"])
    outbox.enqueue(message, retry=[60, 300], category="receipts")
    outbox.enqueue(message, send_at=timezone.now() + timedelta(hours=1))
    statement = f"SELECT * FROM {TABLE} ORDER BY id LIMIT %s"
    found = instances.read(EmailLog, statement, [2], "default")
    expected = list(EmailLog.objects.raw(statement, [2]))
    assert len(found) == 2
    assert [values(it) for it in found] == [values(it) for it in expected]
    assert not any(it.get_deferred_fields() or it._state.adding for it in found)
    assert {it._state.db for it in found} == {"default"}


def test_the_order_of_columns_does_not_matter_and_others_become_attributes() -> None:
    outbox.enqueue(EmailMessage("Subject", "Body", None, ["to@example.com"]))
    columns = ", ".join(reversed([it.column for it in EmailLog._meta.concrete_fields]))
    statement = f"SELECT 7 AS position, {columns}, 'more' AS added_later FROM {TABLE}"
    [found] = instances.read(EmailLog, statement, [], "default")
    assert (found.position, found.added_later) == (7, "more")
    assert values(found) == values(EmailLog.objects.get())


def test_a_row_without_values_is_an_instance_without_a_key() -> None:
    statement = (
        f"SELECT 5 AS settled, mail.* FROM (SELECT 1) AS one LEFT JOIN {TABLE} AS mail ON 1 = 1"
    )
    [found] = instances.read(EmailLog, statement, [], "default")
    assert (found.pk, found.settled) == (None, 5)


def test_what_the_database_refuses_is_an_error_of_django() -> None:
    with pytest.raises(DatabaseError):
        instances.read(EmailLog, "SELECT nothing FROM nowhere", [], "default")


def values(mail: EmailLog) -> dict[str, object]:
    return {it.attname: getattr(mail, it.attname) for it in EmailLog._meta.concrete_fields}
