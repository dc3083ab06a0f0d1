"""What the command does for one person: hand out what is stored about them, and erase it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from django_epica_mail import erasure, personal_data
from django_epica_mail.management import progress, tables
from django_epica_mail.persons import Person


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
        advance = progress.bar(self.stderr, "searching")
        return personal_data.export(_person(options["address"]), advance=advance), True

    def erase(self, options: dict[str, Any]) -> tuple[Any, bool]:
        """Erase a person, after saying what that means."""
        person, advance = _person(options["address"]), progress.bar(self.stderr, "searching")
        if not options["dry_run"] and not options["noinput"]:
            self._confirm(erasure.erase(person, dry_run=True, advance=advance))
        done = erasure.erase(person, dry_run=options["dry_run"], advance=advance)
        return done, not (done["left"] or done["unreadable"])

    def _confirm(self, planned: dict[str, Any]) -> None:
        for line in tables.pairs(planned):
            self.stderr.write(line)
        if input("This cannot be undone. Erase it? Type yes: ").strip().lower() != "yes":
            raise CommandError("Nothing was erased.")


def _person(address: str) -> Person:
    try:
        return Person(address)
    except ValueError as error:
        raise CommandError(str(error)) from None
