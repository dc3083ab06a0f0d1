"""``manage.py epica_mail``: look at the queue and take care of it from a shell."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from dataclasses import asdict
from keyword import iskeyword
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import router

from django_epica_mail import conf, lifecycle, maintenance, outbox, suppression
from django_epica_mail._compat import batched
from django_epica_mail.lifecycle import Status
from django_epica_mail.management import importers, output
from django_epica_mail.management.importers.base import SOURCES
from django_epica_mail.models import EmailLog, Suppression
from django_epica_mail.monitoring import doctor as monitoring_doctor
from django_epica_mail.monitoring.backlog import status
from django_epica_mail.privacy import erase as erasure
from django_epica_mail.privacy import export as personal_data
from django_epica_mail.privacy import reencrypt as reencryption
from django_epica_mail.privacy.person import Person
from django_epica_mail.tasks import send_email_async
from django_epica_mail.transports import config as transports


class PersonalData(BaseCommand):
    """The actions ``export`` and ``erase``."""

    def add_personal_data(self, action: Any) -> None:
        """Declare them; ``action`` adds one by name and help."""
        export = action("export", "print what is stored about a person, as JSON")
        export.add_argument("address")
        erase = action("erase", "erase a person from the queue, the log and the admin's log")
        erase.add_argument("address")
        erase.add_argument("--dry-run", action="store_true", help="only say what would be erased")
        erase.add_argument("--noinput", action="store_true", help="do not ask")

    def export(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Collect what is stored about a person."""
        advance = output.progress_bar(self.stderr, "searching")
        return personal_data.export(_person(options["address"]), advance=advance), True

    def erase(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Erase a person, after saying what that means."""
        person, advance = _person(options["address"]), output.progress_bar(self.stderr, "searching")
        if not options["dry_run"] and not options["noinput"]:
            self._confirm(erasure.erase(person, dry_run=True, advance=advance))
        done = erasure.erase(person, dry_run=options["dry_run"], advance=advance)
        return done, not (done["left"] or done["unreadable"])

    def _confirm(self, planned: dict[str, Any]) -> None:
        for line in output.pair_lines(planned):
            self.stderr.write(line)
        if input("This cannot be undone. Erase it? Type yes: ").strip().lower() != "yes":
            raise CommandError("Nothing was erased.")


def _person(address: str) -> Person:
    try:
        return Person(address)
    except ValueError as error:
        raise CommandError(str(error)) from None


_CHUNK = 500


class Command(PersonalData, BaseCommand):
    """Runs one of the actions named in its help.

    Ends with 1 where the answer is no: something wrong for ``doctor``, a mail too late for
    ``cancel``, a test mail not sent, content that no key decrypts, a row that ``import`` cannot
    move, a mail that ``erase`` has to leave.
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
        check.add_argument("--category", default="", help="with --explain: of such a mail")
        check.add_argument("--bulk", action="store_true", help="with --explain: of bulk mail")
        test = action("send-test", "queue a mail to see whether it arrives")
        test.add_argument("address")
        test.add_argument("--transport", help="by this alias (default: as routed)")
        test.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="for its end")
        action("dispatch", "rescue and ring once, as the sweep does; for sites without beat")
        retry = action("retry", "queue failed mail again")
        retry.add_argument("ids", nargs="*", type=UUID, help="default: what failed for a while")
        cancel = action("cancel", "call mail back that no worker has claimed")
        cancel.add_argument("ids", nargs="+", type=UUID)
        purge = action("purge", "delete finished mail")
        purge.add_argument("--days", type=int, help="older than this (default: KEEP_DAYS)")
        listed = action("suppressions", "read or write the suppression list as CSV")
        listed.add_argument("direction", choices=("import", "export"))
        listed.add_argument("file", help="a path; - is the terminal's input or output")
        action("reencrypt", "encrypt stored content with the first of ENCRYPTION_KEYS")
        self.add_personal_data(action)
        moving = action("import", "move mail out of the tables of another package")
        moving.add_argument("--from", dest="source", choices=SOURCES, required=True)
        moving.add_argument("--yes", action="store_true", help="do it; otherwise a dry run")
        moving.add_argument("--days", type=int, help="of finished mail (default: KEEP_DAYS)")
        moving.add_argument("--transport", help="for mail that names none of this site's")
        moving.add_argument(
            "--trust-pickles",
            action="store_true",
            help="of mailer: nobody else wrote to its tables",
        )
        for name in ("pause", "resume"):
            target = action(name, f"{name} a queue or a transport").add_mutually_exclusive_group(
                required=True
            )
            target.add_argument("--queue")
            target.add_argument("--transport")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, print what came of it, and end with its exit code."""
        name = options["action"].replace("-", "_")
        action = getattr(self, f"{name}_" if iskeyword(name) else name)
        report, is_well = action(options)
        show = {
            "status": output.status_lines,
            "doctor": self._findings,
            "import": output.import_lines,
        }
        if report is None:
            pass  # it has written what there is to say
        elif options["json"] or name == "export":
            self.stdout.write(json.dumps(report, default=str))
        else:
            for line in show.get(options["action"], output.pair_lines)(report):
                self.stdout.write(line)
        if not is_well:
            sys.exit(1)

    def status(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report how the queue stands."""
        return status(), True

    def doctor(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report what is wrong, or where a mail would go."""
        if options["explain"]:
            address, category = options["explain"], options["category"]
            return monitoring_doctor.explain(address, category=category, bulk=options["bulk"]), True
        found = monitoring_doctor.examine(open_transports=options["open"])
        errors = sum(finding.level == "error" for finding in found)
        return {"findings": [asdict(finding) for finding in found]}, not errors

    def send_test(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue a test mail, and wait for its end if asked to."""
        _require_transport(options["transport"])
        try:
            result = send_email_async(
                subject="Test of the e-mail queue",
                message="This mail went through the queue.",
                from_email=None,
                recipient_list=[options["address"]],
                category="test",
                transport=options["transport"],
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        give_up_at = time.monotonic() + options["wait"]
        logs = EmailLog.objects.using(router.db_for_write(EmailLog))
        while True:
            log = logs.get(pk=result.id)
            is_over = log.status in lifecycle.FINAL or log.status == Status.UNKNOWN
            if is_over or time.monotonic() >= give_up_at:
                break
            time.sleep(0.2)
        report = {
            "id": str(log.pk),
            "queue": log.queue,
            "transport": log.transport,
            "status": log.status,
            "reply": log.reply,
        }
        is_lost = is_over or options["wait"]
        return report, log.status == Status.SENT or not is_lost

    def dispatch(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Sweep once."""
        return maintenance.dispatch(), True

    def retry(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue failed mail again."""
        advance = self._progress("queued again")
        ids = options["ids"]
        if not ids:
            return {"queued": maintenance.retry_failed(advance=advance)}, True
        count = 0
        for portion in batched(ids, _CHUNK):
            count += outbox.requeue(portion)
            advance(count)
        return {"queued": count}, True

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
        count = maintenance.cleanup(options["days"], advance=self._progress("deleted"))
        return {"deleted": count}, True

    def suppressions(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Read the suppression list from a file, or write it to one."""
        direction, path = options["direction"], options["file"]
        mode, usual = ("r", sys.stdin) if direction == "import" else ("w", self.stdout)
        try:
            with contextlib.ExitStack() as stack:
                file: Any = usual
                if path != "-":
                    opened = open(path, mode, newline="", encoding="utf-8")  # noqa: SIM115
                    file = stack.enter_context(opened)
                if direction == "export":
                    rows = Suppression.objects.using(router.db_for_write(Suppression))
                    advance = self._progress("written")
                    count = suppression.write_csv(file, rows, advance=advance)
                    return (None if path == "-" else {"written": count}), True
                done = suppression.read_csv(file, advance=self._progress("lines read"))
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        return asdict(done), not done.refused

    def reencrypt(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Encrypt what is stored with the first key."""
        try:
            done = reencryption.reencrypt(advance=output.progress_bar(self.stderr, "re-encrypting"))
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        return done, not done["unreadable"]

    def import_(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Move another package's mail, or say what would be moved."""
        _require_transport(options["transport"])
        if options["days"] is not None and options["days"] < 0:
            raise CommandError(f"--days must be 0 or more; it is {options['days']}.")
        own = {"trust_pickles": options["trust_pickles"]} if options["source"] == "mailer" else {}
        try:
            report = importers.move(
                importers.find(options["source"], **own),
                dry_run=not options["yes"],
                days=conf.get().keep_days if options["days"] is None else options["days"],
                transport=options["transport"],
                advance=self._bar,
            )
        except importers.CannotImport as error:
            raise CommandError(str(error)) from None
        if self.stderr.isatty():
            self.stderr.write("")  # the bar's line is over
        if not options["yes"] and not options["json"]:
            self.stdout.write("Nothing is changed: a dry run. With --yes it is done.")
        return {**report.as_dict(), "dry_run": not options["yes"]}, not report.refused

    def _bar(self, done: int, total: int) -> None:
        """Show how far work is whose end is known, where a person looks on."""
        if self.stderr.isatty():
            self.stderr.write(f"\r{output._old_bar(done, total)}", ending="")

    def pause(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Pause a queue or a transport."""
        _require_transport(options["transport"])
        outbox.pause(queue=options["queue"], transport=options["transport"])
        return _paused(options, True), True

    def resume(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Resume a queue or a transport."""
        outbox.resume(queue=options["queue"], transport=options["transport"])
        return _paused(options, False), True

    def _progress(self, done: str) -> Callable[[int], None]:
        """Return what notes, after each portion, how far long work is, where a person looks on."""

        def advance(count: int) -> None:
            if self.stderr.isatty():
                self.stderr.write(f"{count} {done} so far", self.style.NOTICE)

        return advance

    def _findings(self, report: dict[str, Any]) -> Iterable[str]:
        if "findings" not in report:
            yield from output.pair_lines(report)
        elif not report["findings"]:
            yield "Nothing is wrong."
        else:
            styles = {"error": self.style.ERROR, "warning": self.style.WARNING}
            for finding in report["findings"]:
                style = styles.get(finding["level"], self.style.NOTICE)
                yield style(f"{finding['level']:<8} {finding['text']} ({finding['id']})")
                yield f"{'':<8} {finding['remedy']}"


def _paused(options: dict[str, Any], paused: bool) -> dict[str, Any]:
    scope = "queue" if options["queue"] is not None else "transport"
    return {scope: options[scope], "paused": paused}


def _require_transport(alias: str | None) -> None:
    """Refuse a transport that a misspelt name stands for: it would hold nothing back."""
    known = transports.aliases()
    if alias is not None and alias not in known:
        raise CommandError(f"There is no transport {alias!r}. There are: {', '.join(known)}.")
