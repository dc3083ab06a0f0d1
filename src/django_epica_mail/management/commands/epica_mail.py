"""``manage.py epica_mail``: look at the queue and take care of it from a shell."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db import router

from django_epica_mail import doctor, lifecycle, maintenance, outbox
from django_epica_mail.models import EmailLog
from django_epica_mail.status import status
from django_epica_mail.tasks import send_email_async


class Command(BaseCommand):
    """Runs one of the actions named in its help.

    Ends with 1 where the answer is no: something wrong for ``doctor``, a mail too late for
    ``cancel``, a test mail not sent.
    """

    help = "Looks at the e-mail queue, and takes care of it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the actions and what each takes."""
        actions = parser.add_subparsers(dest="action", required=True)

        def action(name: str, help: str) -> Any:  # noqa: A002 - argparse's own word
            added = actions.add_parser(name, help=help)
            added.add_argument("--json", action="store_true", help="print JSON")
            return added

        action("status", "counts of mail by queue and status, and what holds mail back")
        check = action("doctor", "what is wrong, and what to do")
        check.add_argument("--open", action="store_true", help="connect to every transport")
        check.add_argument("--explain", metavar="ADDRESS", help="where a mail to it would go")
        check.add_argument("--category", default="")
        check.add_argument("--bulk", action="store_true")
        test = action("send-test", "queue a mail to see whether it arrives")
        test.add_argument("address")
        test.add_argument("--transport")
        test.add_argument("--wait", type=float, default=0, metavar="SECONDS")
        action("dispatch", "rescue and ring once, as the sweep does; for sites without beat")
        retry = action("retry", "queue failed mail again")
        retry.add_argument("ids", nargs="*", type=UUID, help="default: what failed for a while")
        cancel = action("cancel", "call mail back that no worker has claimed")
        cancel.add_argument("ids", nargs="+", type=UUID)
        purge = action("purge", "delete finished mail")
        purge.add_argument("--days", type=int, help="older than this (default: KEEP_DAYS)")
        for name in ("pause", "resume"):
            target = action(name, f"{name} a queue or a transport").add_mutually_exclusive_group(
                required=True
            )
            target.add_argument("--queue")
            target.add_argument("--transport")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, print what came of it, and end with its exit code."""
        action = getattr(self, options["action"].replace("-", "_"))
        report, is_well = action(options)
        if options["json"]:
            self.stdout.write(json.dumps(report, default=str))
        else:
            self._print(report)
        if not is_well:
            sys.exit(1)

    def status(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report how the queue stands."""
        return status(), True

    def doctor(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report what is wrong, or where a mail would go."""
        if options["explain"]:
            address, category = options["explain"], options["category"]
            return doctor.explain(address, category=category, bulk=options["bulk"]), True
        found = doctor.examine(open_transports=options["open"])
        errors = sum(finding.level == "error" for finding in found)
        return {"findings": [asdict(finding) for finding in found]}, not errors

    def send_test(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue a test mail, and wait for its end if asked to."""
        result = send_email_async(
            subject="Test of the e-mail queue",
            message="This mail went through the queue.",
            from_email=None,
            recipient_list=[options["address"]],
            category="test",
            transport=options["transport"],
        )
        give_up_at = time.monotonic() + options["wait"]
        logs = EmailLog.objects.using(router.db_for_write(EmailLog))
        while True:
            log = logs.get(pk=result.id)
            if log.status in lifecycle.FINAL or time.monotonic() >= give_up_at:
                break
            time.sleep(0.2)
        report = {"id": str(log.pk), "status": log.status, "reply": log.reply}
        return report, not options["wait"] or log.status == lifecycle.Status.SENT

    def dispatch(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Sweep once."""
        return maintenance.dispatch(), True

    def retry(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue failed mail again."""
        ids = options["ids"]
        return {"queued": outbox.requeue(ids) if ids else maintenance.retry_failed()}, True

    def cancel(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Call mail back."""
        done = outbox.cancel(options["ids"])
        report = {
            "cancelled": [str(pk) for pk in done.cancelled],
            "too late": [str(pk) for pk in done.too_late],
        }
        return report, not done.too_late

    def purge(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Delete what is old, and show how far it is where a person looks on."""
        if options["days"] is not None and options["days"] < 1:
            raise CommandError(f"--days must be 1 or more; it is {options['days']}.")
        return {"deleted": maintenance.cleanup(options["days"], advance=self._show_progress)}, True

    def pause(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Pause a queue or a transport."""
        outbox.pause(queue=options["queue"], transport=options["transport"])
        return {}, True

    def resume(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Resume a queue or a transport."""
        outbox.resume(queue=options["queue"], transport=options["transport"])
        return {}, True

    def _show_progress(self, count: int) -> None:
        if self.stderr.isatty():
            self.stderr.write(f"\r{count} deleted so far", ending="")

    def _print(self, report: dict[str, Any], indent: str = "") -> None:
        for name, value in report.items():
            if isinstance(value, dict):
                self.stdout.write(f"{indent}{name}")
                self._print(value, indent + "  ")
            elif name == "findings":
                self._print_findings(value)
            else:
                shown = ", ".join(map(str, value)) if isinstance(value, list) else value
                self.stdout.write(f"{indent}{name:<20} {shown}")

    def _print_findings(self, findings: list[dict[str, str]]) -> None:
        styles = {"error": self.style.ERROR, "warning": self.style.WARNING}
        for finding in findings:
            style = styles.get(finding["level"], self.style.NOTICE)
            self.stdout.write(style(f"{finding['level']:<8} {finding['text']}"))
            self.stdout.write(f"{'':<8} {finding['remedy']}")
        if not findings:
            self.stdout.write("Nothing is wrong.")
