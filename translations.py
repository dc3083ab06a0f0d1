"""Brings the translations into step with the sources, and tells what is left to translate.

    python translations.py       # after strings were added or changed: update, list, compile
    python translations.py de    # the same, and begin German

Needs gettext (``xgettext``, ``msgmerge``, ``msgfmt``), Django and polib, as ``tox run -e messages``
has them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polib
from django.core.management import BaseCommand, CommandError, call_command
from django.core.management.commands import makemessages

PACKAGE = Path(__file__).parent / "src" / "django_epica_mail"


class _Messages(makemessages.Command):
    """Django's own, but that no new string gets the translation of one that looks like it."""

    msgmerge_options: Sequence[str] = [
        *makemessages.Command.msgmerge_options,
        "--no-fuzzy-matching",
    ]


def languages(package: Path = PACKAGE) -> list[str]:
    """Return the languages that the package is translated into."""
    return sorted(path.parents[1].name for path in package.glob("locale/*/LC_MESSAGES/django.po"))


def catalogue(language: str, package: Path = PACKAGE) -> Path:
    """Return the path of a language's catalogue."""
    return package / "locale" / language / "LC_MESSAGES" / "django.po"


def update(names: Sequence[str], package: Path = PACKAGE) -> None:
    """Write the strings of the sources into the catalogues of languages; drop what is gone.

    Raises ``CommandError`` if gettext is not installed.
    """
    _run(_Messages(), names, package, no_wrap=True, add_location="file", no_obsolete=True)
    for name in names:
        path = catalogue(name, package)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # The hour of each run would make a difference where there is none.
        kept = (line for line in lines if not line.startswith('"POT-Creation-Date:'))
        path.write_text("".join(kept), encoding="utf-8")


def _run(
    command: str | BaseCommand, names: Sequence[str], package: Path = PACKAGE, **options: Any
) -> None:
    before = Path.cwd()
    os.chdir(package)  # which both commands take for the place of the sources
    try:
        call_command(command, locale=list(names), verbosity=0, **options)
    finally:
        os.chdir(before)


def unfinished(entries: polib.POFile) -> Iterator[polib.POEntry]:
    """Yield the entries that are not translated, or by a guess."""
    yield from (entry for entry in entries if not entry.translated())


def main(begun: Sequence[str]) -> int:
    """Update and compile every language, those ``begun`` too; return 1 if anything is missing."""
    names = sorted({*languages(), *begun})
    update(names)
    _run("compilemessages", names)
    missing = 0
    for name in names:
        entries = polib.pofile(str(catalogue(name)), wrapwidth=0)
        for entry in unfinished(entries):
            missing += 1
            places = ", ".join(path for path, _line in entry.occurrences)
            print(f"{name}: {entry.msgid!r} ({places})")
    print(f"Not translated: {missing}.")
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CommandError as error:  # such as a translation that lacks a placeholder
        sys.exit(str(error))
