"""Update the translations from the sources, and list what is not translated.

    python translations.py       # after adding or changing strings: update, compile, list
    python translations.py de    # the same, and start German

Needs gettext (``xgettext``, ``msgmerge``, ``msgfmt``), Django and polib; ``tox run -e messages``
installs the latter two.
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
    """Django's ``makemessages``, without guessing translations from similar strings."""

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
    """Write the strings of the sources to the catalogues of ``names``; drop obsolete ones.

    Raises ``CommandError`` if gettext is not installed.
    """
    _run(_Messages(), names, package, no_wrap=True, add_location="file", no_obsolete=True)
    for name in names:
        path = catalogue(name, package)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # The creation date would differ after each run, even if no string changed.
        kept = (line for line in lines if not line.startswith('"POT-Creation-Date:'))
        path.write_text("".join(kept), encoding="utf-8")


def _run(
    command: str | BaseCommand, names: Sequence[str], package: Path = PACKAGE, **options: Any
) -> None:
    before = Path.cwd()
    os.chdir(package)  # both commands look for the sources in the current folder
    try:
        call_command(command, locale=list(names), verbosity=0, **options)
    finally:
        os.chdir(before)


def unfinished(entries: polib.POFile) -> Iterator[polib.POEntry]:
    """Yield the entries that are untranslated or fuzzy."""
    yield from (entry for entry in entries if not entry.translated())


def main(new: Sequence[str]) -> int:
    """Update and compile all languages, including ``new`` ones; return 1 if a string is missing."""
    names = sorted({*languages(), *new})
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
    except CommandError as error:  # for instance if a translation lacks a placeholder
        sys.exit(str(error))
