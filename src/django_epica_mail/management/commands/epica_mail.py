"""``manage.py epica_mail``: look at the queue and take care of it from a shell."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import router
from django.db.models import Count, Min

from django_epica_mail import gates, lifecycle, maintenance, outbox
from django_epica_mail.models import EmailLog


class Command(BaseCommand):
    """Runs one of the actions named in its help."""

    help = "Looks at the e-mail queue, and takes care of it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the actions and what each takes."""
        actions = parser.add_subparsers(dest="action", required=True)
        status = actions.add_parser("status", help="counts of mail by queue and status")
        dispatch = actions.add_parser(
            "dispatch", help="rescue and ring once, as the sweep does; for sites without beat"
        )
        purge = actions.add_parser("purge", help="delete finished mail")
        purge.add_argument("--days", type=int, help="older than this (default: KEEP_DAYS)")
        for action in (status, dispatch, purge):
            action.add_argument("--json", action="store_true", help="print JSON")
        for name in ("pause", "resume"):
            action = actions.add_parser(name, help=f"{name} a queue or a transport")
            target = action.add_mutually_exclusive_group(required=True)
            target.add_argument("--queue")
            target.add_argument("--transport")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action and print what came of it."""
        action = options["action"]
        if action in ("pause", "resume"):
            change = outbox.pause if action == "pause" else outbox.resume
            change(queue=options["queue"], transport=options["transport"])
            return
        if action == "status":
            report = _status()
        elif action == "dispatch":
            report = maintenance.dispatch()
        else:
            report = {"deleted": maintenance.cleanup(options["days"])}
        if options["json"]:
            self.stdout.write(json.dumps(report, default=str))
        else:
            self._print(report)

    def _print(self, report: dict[str, Any], indent: str = "") -> None:
        for name, value in report.items():
            if isinstance(value, dict):
                self.stdout.write(f"{indent}{name}")
                self._print(value, indent + "  ")
            else:
                self.stdout.write(f"{indent}{name:<20} {value}")


def _status() -> dict[str, Any]:
    """Return the counts by queue and status, the oldest mail waiting, and what holds mail back."""
    using = router.db_for_read(EmailLog)
    counted = EmailLog.objects.using(using).values("queue", "status").order_by("queue", "status")
    report: dict[str, Any] = {}
    for row in counted.annotate(count=Count("pk")):
        report.setdefault(row["queue"], {})[row["status"]] = row["count"]
    waiting = EmailLog.objects.using(using).filter(status__in=lifecycle.CLAIMABLE)
    oldest = waiting.order_by().values("queue").annotate(due=Min("due_at"))
    for queue, due in oldest.values_list("queue", "due"):
        report.setdefault(queue, {})["oldest due"] = due
    return {"queues": report, "held back": gates.Gates(using).reasons()}
