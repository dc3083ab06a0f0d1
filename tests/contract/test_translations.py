"""Test that every translatable string is translated into every supported language."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import django
import polib
import pytest
from django.utils import translation

import translations
from django_epica_mail.lifecycle import Status
from django_epica_mail.monitoring.health import spoken

REMEDY = "Run `tox run -e messages`, translate the strings it lists in {}, and run it again."
FORMATS = re.compile(r"%(?:\(\w+\))?[sdf%]|\{\w*\}")
"""Placeholders: ``%(name)s``, ``%s``, ``{name}``."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=translations.languages())
def language(request: pytest.FixtureRequest) -> str:
    """Return each language in turn."""
    return str(request.param)


def entries(language: str, package: Path = translations.PACKAGE) -> polib.POFile:
    """Return the catalogue of a language."""
    return polib.pofile(str(translations.catalogue(language, package)))


def texts(entry: polib.POEntry) -> list[str]:
    """Return an entry's translations, one for each plural form."""
    return list(entry.msgstr_plural.values()) or [entry.msgstr]


def keys(catalogue: polib.POFile) -> set[tuple[str | None, str, str]]:
    """Return the strings in a catalogue."""
    return {(entry.msgctxt, entry.msgid, entry.msgid_plural) for entry in catalogue}


def remedy(language: str) -> str:
    """Return how to fix a catalogue."""
    return REMEDY.format(translations.catalogue(language).relative_to(ROOT))


def test_the_catalogue_has_exactly_the_strings_of_the_sources(language, tmp_path) -> None:
    copy = tmp_path / "django_epica_mail"
    shutil.copytree(translations.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    translations.update([language], copy)
    there, wanted = (
        keys(entries(language)),
        keys(polib.pofile(translations.catalogue(language, copy))),
    )
    assert wanted == there, remedy(language)


def test_every_string_is_translated_and_none_is_fuzzy(language) -> None:
    catalogue = entries(language)
    missing = [entry.msgid for entry in translations.unfinished(catalogue)]
    assert not missing, remedy(language)
    assert not [entry.msgid for entry in catalogue.obsolete_entries()], remedy(language)


def test_placeholders_are_the_same_in_both_languages(language) -> None:
    for entry in entries(language):
        wanted = sorted(FORMATS.findall(entry.msgid_plural or entry.msgid))
        for text in texts(entry):
            assert sorted(FORMATS.findall(text)) == wanted, entry.msgid


def test_a_translation_ends_with_the_same_punctuation(language) -> None:
    for entry in entries(language):
        for text in texts(entry):
            for mark in ".:?!,":
                assert text.endswith(mark) == entry.msgid.endswith(mark), (entry.msgid, text)
            assert text == text.strip(), entry.msgid


def test_the_compiled_catalogue_is_up_to_date(language) -> None:
    path = translations.catalogue(language)
    written = {(entry.msgctxt, entry.msgid): texts(entry) for entry in polib.pofile(str(path))}
    compiled = polib.mofile(str(path.with_suffix(".mo")))
    assert {(entry.msgctxt, entry.msgid): texts(entry) for entry in compiled} == written, remedy(
        language
    )


def test_strings_of_django_are_translated_as_by_django(language) -> None:
    """All apps share one catalogue: a different translation would change the admin's own pages."""
    ours = {(entry.msgctxt, entry.msgid): texts(entry) for entry in entries(language)}
    for key, text in of_django(language):
        assert ours.get(key, text) == text, key


def of_django(language: str) -> Iterator[tuple[tuple[str | None, str], list[str]]]:
    """Yield the translations of Django, its admin and its authentication."""
    root = Path(django.__file__).parent
    for place in ("conf", "contrib/admin", "contrib/auth"):
        path = root / place / "locale" / language / "LC_MESSAGES" / "django.po"
        for entry in polib.pofile(str(path)):
            yield (entry.msgctxt, entry.msgid), texts(entry)


def test_no_turkish_string_begins_with_a_lower_case_i() -> None:
    """Django's ``capfirst`` turns i into I, so strings that begin with i must use İ."""
    assert not [text for entry in entries("tr") for text in texts(entry) if text.startswith("i")]


def test_a_turkish_site_is_translated() -> None:
    one, more = "%(label)s: %(count)s e-mail.", "%(label)s: %(count)s e-mails."
    with translation.override("tr"):
        assert Status.QUEUED.label == "kuyrukta"
        assert Status.CANCELLED.label == "gönderimi iptal edildi"
        assert spoken(9000) == "2,5 sa"
        assert translation.ngettext(one, more, 2) == "%(label)s: %(count)s e-posta."
