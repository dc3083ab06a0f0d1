"""What the processes of a small site are asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import current_app
from django.core.mail import send_mail
from django.db import connection, transaction

import django_epica_mail
from django_epica_mail.tasks import send_email_async


def send(number: int) -> None:
    """Send mail in each of the two ways, each in a transaction of its own."""
    for index in range(number):
        with transaction.atomic():
            if index % 2:
                send_email_async("Subject", "Text", None, ["to@example.com"])
            else:
                send_mail("Subject", "Text", None, ["to@example.com"])


def place() -> str:
    """Return the folder of the package that is in use."""
    return str(Path(django_epica_mail.__file__).parent)


def facts() -> Mapping[str, Any]:
    """Return what is particular about this site, as it is in force."""
    conf = current_app.conf
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        (isolation,) = cursor.fetchone()
        cursor.execute("SHOW port")
        (port,) = cursor.fetchone()
    keys = ("task_acks_late", "task_time_limit", "task_serializer", "worker_max_tasks_per_child")
    return {
        "pool": connection.pool is not None,
        "isolation": isolation,
        "is_behind_a_proxy": port != str(connection.settings_dict["PORT"]),
        "key_prefix": conf.broker_transport_options.get("global_keyprefix", ""),
        **{key: conf[key] for key in keys},
    }
