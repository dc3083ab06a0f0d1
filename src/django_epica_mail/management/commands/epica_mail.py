"""``manage.py epica_mail``: inspect and operate the queue from a shell."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from keyword import iskeyword
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, no_translations
from django.db import DatabaseError, router

from django_epica_mail import conf, lifecycle, maintenance, outbox, suppression
from django_epica_mail._compat import batched
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.exceptions import MailboxError, MissingExtra
from django_epica_mail.lifecycle import Status
from django_epica_mail.management import arguments, importers, output
from django_epica_mail.models import EmailLog, SlowedDomain, Suppression
from django_epica_mail.models import checks as database_checks
from django_epica_mail.monitoring import backlog, celery_findings, doctor
from django_epica_mail.monitoring.dns import sender_records
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.export import export
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import names
from django_epica_mail.rules import LEVELS, MOST_DAYS
from django_epica_mail.tasks import send_email_async
from django_epica_mail.tracking.bounces import mailbox, reports

_CHUNK = 500

_ALL_ENCRYPTED = (
    "All stored content is encrypted. Once every process of the site runs with these keys, set "
    "EPICA_MAIL['ENCRYPTION_REQUIRED']."
)


class Command(BaseCommand):
    """Runs one of the actions named in its help.

    Exits with 1 if ``doctor`` finds an error or ``lint`` anything, an e-mail was too late for
    ``cancel``, a test e-mail was not sent, content could not be decrypted, or ``import`` or
    ``erase`` left something behind.
    """

    help = "Inspects and operates the e-mail queue."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the actions and their arguments."""
        arguments.add_actions(parser)

    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, print its report, and exit with its code."""
        name = options["action"].replace("-", "_")
        action = getattr(self, f"{name}_" if iskeyword(name) else name)
        try:
            report, is_well = action(options)
        except CommandError as error:
            raise CommandError(output.clean(error), returncode=error.returncode) from None
        except DatabaseError:
            missing = database_checks.missing_migrations(router.db_for_write(EmailLog))
            if not missing:
                raise
            raise CommandError(f"{missing}: run manage.py migrate.") from None
        if report is None:
            pass  # the action has written its own output
        elif options["json"] or options.get("format") == "json" or name == "export":
            form = report.as_dict() if isinstance(report, backlog.StatusReport) else report
            # JSON escapes every other character that a terminal would act on.
            self.stdout.write(json.dumps(form, default=str).replace("\x7f", "\\u007f"))
        else:
            for line in self._lines(options["action"], report):
                self.stdout.write(line)
        if not is_well:
            sys.exit(1)

    def status(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report the status of every queue."""
        return backlog.status(), True

    def doctor(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report what is wrong, or where an e-mail would go."""
        if options["explain"]:
            address, category = options["explain"], options["category"]
            return asdict(doctor.explain(address, category=category, bulk=options["bulk"])), True
        found = doctor.examine(open_transports=options["open"])
        report = {"findings": [asdict(finding) for finding in found]}
        if options["dns"] is not None:
            try:
                records = sender_records.examine(options["dns"], options["nameserver"])
            except (ImproperlyConfigured, MissingExtra) as error:
                raise CommandError(str(error)) from None
            report["dns"] = [asdict(record) for record in records]
        errors = [it for part in report.values() for it in part if it["level"] == "error"]
        return report, not errors

    def lint(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Report what is wrong with the templates in ``PREVIEWS``, in every language."""
        from django_epica_mail.testing import lint  # which imports Django's own tools for tests

        try:
            found = lint.lint_templates(
                options["templates"], options["language"], ignore=options["ignore"]
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        return {"findings": [asdict(it) for it in found]}, not found

    def send_test(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue a test e-mail, and wait for its outcome if asked to."""
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
        report: dict[str, Any] = {
            "id": str(log.pk),
            "queue": log.queue,
            "transport": log.transport,
            "status": log.status,
            "reply": log.reply,
        }
        if not is_over:
            report["held_back"] = _held_back(log, ask_workers=bool(options["wait"]))
        was_awaited = is_over or options["wait"]
        return report, log.status == Status.SENT or not was_awaited

    def dispatch(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Run the sweep once."""
        return maintenance.dispatch(), True

    def retry(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Queue failed mail again."""
        advance = output.progress(self.stderr, "queued again")
        ids = options["ids"]
        if not ids:
            return {"queued": maintenance.retry_failed(advance=advance)}, True
        count = 0
        for portion in batched(ids, _CHUNK):
            count += outbox.requeue(portion)
            advance(count)
        return {"queued": count}, True

    def cancel(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Cancel mail."""
        ids, alias = options["ids"], options["transport"]
        if bool(ids) == (alias is not None):
            raise CommandError("Give the ids of e-mails, or --transport.")
        if alias is not None:
            ids = _waiting_for(alias)
        report: dict[str, list[str]] = {"cancelled": [], "too_late": []}
        for portion in batched(ids, _CHUNK):
            done = outbox.cancel(portion)
            report["cancelled"] += map(str, done.cancelled)
            report["too_late"] += map(str, done.too_late)
        return report, not report["too_late"]

    def move(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Give the waiting mail of one transport to another."""
        _require_transport(options["to"])
        _waiting_for(options["transport"])
        return {"moved": outbox.move(options["transport"], to=options["to"])}, True

    def purge(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Delete old mail."""
        _check_days(options["days"], least=1)
        advance = output.progress(self.stderr, "deleted")
        return {"deleted": maintenance.cleanup(options["days"], advance=advance)}, True

    def suppressions(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Import the suppression list from a file, or export it to one."""
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
                    if path == "-" and self.stdout.isatty():
                        file = output.CleanLines(self.stdout)
                    advance = output.progress(self.stderr, "written")
                    count = suppression.write_csv(file, rows, advance=advance)
                    return (None if path == "-" else {"written": count}), True
                advance = output.progress(self.stderr, "lines read")
                done = suppression.read_csv(file, advance=advance)
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from None
        return asdict(done), not done.refused

    def bounces(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Record what came back to the mailbox, or one message from a file or a pipe.

        Exits with 75 (``EX_TEMPFAIL``) if a message cannot be stored now: mail servers then keep
        it, and try again.
        """
        path = options["file"]
        if path is None:
            if conf.get().bounce_mailbox is None:
                raise CommandError("Set EPICA_MAIL['BOUNCE_MAILBOX'], or give --file.")
            try:
                return mailbox.read(), True
            except (ImproperlyConfigured, MissingExtra, MailboxError) as error:
                raise CommandError(str(error)) from None
        try:
            with contextlib.ExitStack() as stack:
                file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
                content = file.read(reports.MAX_BYTES)
                while path == "-" and file.read(1 << 16):
                    pass  # a server whose pipe is not read to the end counts that as a failure
            received = mailbox.receive(content, envelope_to=options["to"])
        except DatabaseError as error:
            raise CommandError(f"It cannot be stored: {error}", returncode=os.EX_TEMPFAIL) from None
        except OSError as error:
            raise CommandError(str(error)) from None
        return {"received": received.value}, True

    def reencrypt(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Encrypt stored content with the first key."""
        try:
            done = reencrypt(advance=output.progress(self.stderr, "re-encrypting"))
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        settings = conf.get()
        if not (done["unreadable"] or settings.encryption_required or options["json"]):
            self.stdout.write(_ALL_ENCRYPTED)
        return done, not done["unreadable"]

    def export(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Collect what is stored about a person."""
        advance = output.progress(self.stderr, "searching")
        person = _person(options["address"], tagged=options["tagged"])
        return export(person, advance=advance), True

    def erase(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Erase a person, after a confirmation that shows what will be erased."""
        person = _person(options["address"], tagged=options["tagged"])
        advance = output.progress(self.stderr, "searching")
        if not options["dry_run"] and not options["noinput"]:
            self._confirm(erase(person, dry_run=True, advance=advance))
        done = erase(person, dry_run=options["dry_run"], advance=advance)
        if options["dry_run"] and not options["json"]:
            self.stdout.write(
                "This was a dry run: nothing was erased. Without --dry-run, it would be:"
            )
        is_well = not (done["left"] or done["unreadable"] or done["remains"])
        return {**done, "dry_run": options["dry_run"]}, is_well

    def import_(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Move another package's mail, or report what would be moved."""
        _require_transport(options["transport"])
        _check_days(options["days"], least=0)
        own = {"trust_pickles": options["trust_pickles"]} if options["source"] == "mailer" else {}
        try:
            report = importers.move(
                importers.find(options["source"], **own),
                dry_run=not options["yes"],
                days=conf.get().keep_days if options["days"] is None else options["days"],
                transport=options["transport"],
                advance=output.progress(self.stderr, "moving"),
            )
        except importers.CannotImport as error:
            raise CommandError(str(error)) from None
        if not options["yes"] and not options["json"]:
            self.stdout.write(
                "This was a dry run: nothing has changed. Add --yes to move the mail."
            )
        return {**report.as_dict(), "dry_run": not options["yes"]}, not report.refused

    def pause(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Pause a queue, a transport or bulk mail of a category."""
        _require_transport(options["transport"])
        queue = options["queue"]
        if queue is not None and not names.is_known_queue(queue):
            raise CommandError(f"{names.unknown(queue)}. Nothing was paused.")
        outbox.pause(**_target(options), note=output.clean(" ".join(options["note"].split())))
        return _paused(options, True), True

    def resume(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Resume a queue, a transport or bulk mail of a category; set a slowed domain free."""
        if (domain := options["domain"]) is not None:
            count = slowed_domains.set_free(domain, router.db_for_write(SlowedDomain))
            if not count:
                raise CommandError(f"{domain!r} is not slowed down.")
            return {"domain": domain, "slowed": False}, True
        [(_, name)] = _target(options).items()
        if not gates.is_held(**_target(options)):
            raise CommandError(f"{name!r} is not paused.")
        outbox.resume(**_target(options))
        return _paused(options, False), True

    def _confirm(self, planned: dict[str, Any]) -> None:
        for line in output.pair_lines(planned):
            self.stderr.write(line)
        if input("This cannot be undone. Erase it? Type yes: ").strip().lower() != "yes":
            raise CommandError("Nothing was erased.")

    def _lines(self, action: str, report: Any) -> Iterable[str]:
        """Return a report as lines for people."""
        if action == "status":
            return output.status_lines(report)
        if action == "doctor":
            return output.doctor_lines(report, self.style)
        if action == "lint":
            return output.lint_lines(report["findings"])
        return output.import_lines(report) if action == "import" else output.pair_lines(report)


def _held_back(log: EmailLog, *, ask_workers: bool) -> list[str]:
    """Return why a mail is not sent: what holds it back or, if nothing does, missing workers."""
    using = router.db_for_write(EmailLog)
    reasons = gates.Gates(using).reasons()
    names_of_gates = (f"queue {log.queue}", f"transport {log.transport}")
    held = [f"{name}: {reasons[name]}" for name in names_of_gates if name in reasons]
    if held or not ask_workers:
        return held
    return [it.text for it in celery_findings.of_workers(using) if it.level == "error"]


def _person(address: str, *, tagged: bool) -> Person:
    try:
        return Person(address, tagged=tagged)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _waiting_for(alias: str) -> list[UUID]:
    """Return the ids of the mail that waits for a transport, which need not be configured.

    Raises ``CommandError`` if there is none.
    """
    rows = EmailLog.objects.using(router.db_for_write(EmailLog)).order_by()
    waiting = rows.filter(transport=alias, pending__in=LEVELS)
    ids = list(waiting.filter(status__in=lifecycle.CLAIMABLE).values_list("pk", flat=True))
    if not ids:
        raise CommandError(f"No mail waits for a transport {alias!r}.")
    return ids


def _check_days(days: int | None, *, least: int) -> None:
    if days is not None and not least <= days <= MOST_DAYS:
        raise CommandError(f"--days must be {least} to {MOST_DAYS}; it is {days}.")


def _paused(options: dict[str, Any], paused: bool) -> dict[str, Any]:
    return {**_target(options), "paused": paused}


def _target(options: dict[str, Any]) -> dict[str, str]:
    """Return the one gate that is named, by its scope."""
    scopes = ("queue", "transport", "category")
    return {scope: options[scope] for scope in scopes if options[scope] is not None}


def _require_transport(alias: str | None) -> None:
    """Raise ``CommandError`` for an unknown transport: a misspelt name would hold nothing back."""
    if alias is not None:
        try:
            names.check_transport(alias)
        except ValueError as error:
            raise CommandError(str(error)) from None
