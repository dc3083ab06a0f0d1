"""The actions of ``manage.py epica_mail`` and their arguments."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django_epica_mail.management.importers.base import SOURCES


def add_actions(parser: ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, help: str) -> Any:  # noqa: A002 - argparse's own word
        added = actions.add_parser(name, help=help)
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    action("status", "count mail by queue and status, and show what holds mail back")
    check = action("doctor", "find what is wrong, and say what to do")
    check.add_argument("--open", action="store_true", help="connect to every transport")
    check.add_argument(
        "--dns",
        nargs="*",
        metavar="DOMAIN",
        help="compare the DNS of every From domain, and of these, with what senders need",
    )
    check.add_argument("--nameserver", metavar="IP[:PORT]", help="with --dns: ask this one")
    check.add_argument("--explain", metavar="ADDRESS", help="show where mail to it would go")
    check.add_argument("--category", default="", help="with --explain: the mail's category")
    check.add_argument("--bulk", action="store_true", help="with --explain: bulk mail")
    lint = action("lint", "find what is wrong with the templates in PREVIEWS, in every language")
    lint.add_argument("templates", nargs="*", metavar="TEMPLATE", help="default: all")
    lint.add_argument("--language", action="append", metavar="CODE", help="default: all")
    lint.add_argument("--ignore", action="append", default=[], metavar="RULE")
    lint.add_argument("--format", choices=("text", "json"), default="text", help="json is --json")
    test = action("send-test", "queue a test e-mail")
    test.add_argument("address")
    test.add_argument("--transport", help="an alias (default: as routed)")
    test.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait for its outcome"
    )
    action("dispatch", "run the sweep once; for sites without beat")
    retry = action("retry", "queue failed mail again")
    retry.add_argument("ids", nargs="*", type=UUID, help="default: what failed temporarily")
    cancel = action("cancel", "cancel mail that no worker has claimed")
    cancel.add_argument("ids", nargs="*", type=UUID)
    cancel.add_argument("--transport", metavar="ALIAS", help="all mail that waits for it")
    move = action("move", "give all mail that waits for one transport to another")
    move.add_argument("--transport", metavar="ALIAS", required=True, help="waited for now")
    move.add_argument("--to", metavar="ALIAS", required=True, help="a configured transport")
    purge = action("purge", "delete finished mail")
    purge.add_argument("--days", type=int, help="older than this (default: KEEP_DAYS)")
    listed = action("suppressions", "import or export the suppression list as CSV")
    listed.add_argument("direction", choices=("import", "export"))
    listed.add_argument("file", help="a path; - for standard input or output")
    came_back = action("bounces", "record what came back by mail")
    came_back.add_argument("--file", help="one message; - for standard input (a pipe)")
    came_back.add_argument("--to", default="", help="with --file: the envelope's recipient")
    action("reencrypt", "encrypt stored content with the first of ENCRYPTION_KEYS")
    exported = action("export", "print what is stored about a person, as JSON")
    person = action("erase", "erase a person from the queue, the log and the admin's log")
    for one in (exported, person):
        one.add_argument("address")
        one.add_argument(
            "--tagged", action="store_true", help="also ann+tag@... of ann@...: one mailbox"
        )
    person.add_argument("--dry-run", action="store_true", help="only show what would be erased")
    person.add_argument("--noinput", action="store_true", help="do not ask for confirmation")
    moving = action("import", "move mail out of the tables of another package")
    moving.add_argument("--from", dest="source", choices=SOURCES, required=True)
    moving.add_argument("--yes", action="store_true", help="move it; otherwise a dry run")
    moving.add_argument("--days", type=int, help="of finished mail (default: KEEP_DAYS)")
    moving.add_argument("--transport", help="for mail that names no transport of this site")
    moving.add_argument(
        "--trust-pickles",
        action="store_true",
        help="mailer only: confirm that nobody else wrote to its tables",
    )
    for name in ("pause", "resume"):
        added = action(name, f"{name} a queue, a transport or a category")
        target = added.add_mutually_exclusive_group(required=True)
        target.add_argument("--queue")
        target.add_argument("--transport")
        target.add_argument("--category", help="its bulk mail")
        if name == "pause":
            added.add_argument("--note", default="", help="why; the admin shows it")
        else:
            target.add_argument("--domain", help="of recipients: no longer slowed down")
