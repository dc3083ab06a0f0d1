"""Test that erasure clears every table, including those of the admin and the result backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection

from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_email_async

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite

ADDRESS = "ann@example.org"


# -- run in the site


def leave_traces() -> str:
    from django.contrib.admin.models import CHANGE, LogEntry
    from django_celery_results.models import TaskResult

    user = User.objects.create_user("ann", ADDRESS, "password-of-ann")
    sent = send_email_async("Hello", "Body", None, [ADDRESS])
    ours, others = (ContentType.objects.get_for_model(it) for it in (EmailLog, User))
    for content_type in (ours, others):
        LogEntry.objects.create(
            user=user,
            content_type=content_type,
            object_id="1",
            object_repr=f"To {ADDRESS}",
            action_flag=CHANGE,
            change_message=f'[{{"changed": {{"object": "{ADDRESS}"}}}}]',
        )
    TaskResult.objects.create(
        task_id="by-name",
        task_name="django_epica_mail.tasks.send_bulk_emails_task",
        task_args=f"\"[[{{'recipient_list': ['{ADDRESS}'], 'message': 'x\\n{ADDRESS}'}}]]\"",
        result=f'{{"refused": [{{"reason": "no list: {ADDRESS}"}}]}}',
    )
    return sent.id


def rows_with_address() -> dict[str, int]:
    """Return the number of rows that contain the address, by table."""
    found = {}
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            rows = sum(ADDRESS in str(row) for row in cursor.fetchall())
            if rows:
                found[table] = rows
    return found


# -- the test


def test_erasure_includes_results_and_the_admin_log(open_site: OpenSite) -> None:
    site = open_site()
    site.env["SHOP_RESULT_BACKEND"] = "django-db"
    mail = site.call(leave_traces)
    site.start_worker()
    site.wait_for(sent=1)
    before = site.call(rows_with_address)
    assert before["django_admin_log"] == 2
    assert before["django_celery_results_taskresult"] == 1
    assert before["epica_mail_emailrecipient"] == 1

    exported: dict[str, Any] = site.command("export", ADDRESS)
    assert [it["id"] for it in exported["mails"]] == [mail]
    assert {it["task_id"] for it in exported["results"]} >= {"by-name"}
    assert len(exported["admin_log"]) == 1

    planned = site.command("erase", ADDRESS, "--dry-run")
    assert site.call(rows_with_address) == before
    done = site.command("erase", ADDRESS, "--noinput")
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert done == planned
    assert {name: count for name, count in done.items() if count} == {
        "deleted": 1,
        "results": 1,
        "admin_log": 1,
    }
    # The site must erase its own data itself: the user and the log entry about the user.
    assert site.call(rows_with_address) == {"auth_user": 1, "django_admin_log": 1}
