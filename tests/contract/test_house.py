"""The house rules of the source tree: sizes, names, and a test file for each module."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "django_epica_mail"

MOST_MODULES = {"admin": 16}
"""Modules in a folder; 9 in any other."""

MOST_LINES = {"models/emails.py": 600}
"""Lines of a module; 400 in any other."""

FORBIDDEN = frozenset(
    {
        *("utils", "util", "helpers", "common", "misc"),
        *("lanes", "pulse", "portions", "patience", "machines", "additions", "guards", "persons"),
        *("contents", "reading", "storing", "inserting", "drafting", "sending"),
    }
)
"""Names that say nothing of what a module is for, or say it in a metaphor."""

WHOLE = PurePosixPath("tests/integration/whole")
"""The folder of the tests that concern the package as a whole."""


def modules() -> list[PurePosixPath]:
    """Return the modules of the package, without faces of folders and migrations."""
    found = (PurePosixPath(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
    return sorted(it for it in found if it.name != "__init__.py" and it.parts[0] != "migrations")


def test_files() -> list[PurePosixPath]:
    """Return the files of tests that mirror the package."""
    found = [
        PurePosixPath(path.relative_to(ROOT))
        for folder in ("unit", "integration")
        for path in (ROOT / "tests" / folder).rglob("test_*.py")
    ]
    return sorted(it for it in found if WHOLE not in it.parents)


test_files.__test__ = False  # type: ignore[attr-defined]


def test_no_folder_holds_more_modules_than_a_reader_can_survey() -> None:
    sizes = Counter(str(it.parent) for it in modules() if it.parent.name)
    too_large = {name: n for name, n in sizes.items() if n > MOST_MODULES.get(name, 9)}
    assert too_large == {}


def test_the_package_has_few_rooms() -> None:
    rooms = {it.parts[0] for it in modules()}
    assert len(rooms) <= 37


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_module_is_too_long(module: PurePosixPath) -> None:
    lines = (PACKAGE / module).read_text("utf-8").count("\n")
    assert lines <= MOST_LINES.get(str(module), 400)


@pytest.mark.parametrize("module", modules(), ids=str)
def test_each_module_says_what_it_is_for(module: PurePosixPath) -> None:
    assert module.stem not in FORBIDDEN
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text("utf-8")))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_each_module_has_a_test_file_of_its_name(module: PurePosixPath) -> None:
    name = f"test_{module.stem.lstrip('_')}.py"
    places = [ROOT / "tests" / folder / module.parent / name for folder in ("unit", "integration")]
    if module.parent.name == "importers":  # run with the packages that they import from
        places.append(ROOT / "tests" / "peers" / name)
    assert any(place.is_file() for place in places), f"no {name} in {module.parent}"


@pytest.mark.parametrize("file", test_files(), ids=str)
def test_each_test_file_is_named_for_a_module(file: PurePosixPath) -> None:
    folder = PurePosixPath(*file.parts[2:-1])
    stems = {it.stem.lstrip("_") for it in modules() if it.parent == folder}
    named = file.stem.removeprefix("test_")
    assert any(named == stem or named.startswith(f"{stem}_") for stem in stems)


def test_the_import_contract_is_short() -> None:
    text = (ROOT / ".importlinter").read_text("utf-8")
    layers = re.findall(r"^layers =\n((?:    .+\n)+)", text, re.MULTILINE)[0].splitlines()
    assert len(layers) <= 16
    assert ":" not in "".join(layers)  # which would allow siblings to import each other
