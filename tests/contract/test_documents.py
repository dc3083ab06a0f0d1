"""Test that the documents match the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib

from django_epica_mail import conf, lifecycle
from django_epica_mail.conf import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FRONT = sorted(ROOT.glob("*.md"))


def test_the_life_of_an_email_diagram_shows_exactly_the_moves() -> None:
    page = (ROOT / "docs" / "explanation" / "life-of-an-email.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+): ([\w ]+)$", page, re.MULTILINE))
    legal = {
        (source.value, move.target.value, move.name)
        for move in lifecycle.MOVES
        for source in move.sources
    }
    assert drawn == legal


def test_the_reference_lists_exactly_the_settings() -> None:
    from dataclasses import fields

    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert documented == {field.name.upper() for field in fields(Settings)}


def test_the_reference_lists_exactly_the_system_checks() -> None:
    page = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "django_epica_mail"
    source = "".join(path.read_text(encoding="utf-8") for path in package.rglob("checks.py"))
    used = set(re.findall(r'id="(epica_mail\.\w+)"', source))
    assert used == set(re.findall(r"`(epica_mail\.[EW]\d+)`", page))
    rows = re.findall(r"^\| `(epica_mail\.[EW]\d+)`", page, re.MULTILINE)
    assert rows == sorted(rows)


def test_every_test_file_in_the_threat_model_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", FRONT, ids=named)
def test_every_link_of_a_page_outside_the_docs_works(page: Path) -> None:
    """Links in the docs are checked when the site is built."""
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text("utf-8")
    ):
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE)
            assert anchor[1:] in {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """Return a heading's anchor on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def settings_in(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.search(r"^EPICA_MAIL\b", block, re.MULTILINE)]


@pytest.mark.parametrize("page", [page for page in PAGES if settings_in(page)], ids=named)
def test_the_settings_of_every_page_are_valid(page: Path) -> None:
    for block in settings_in(page):
        names: dict[str, Any] = {"INSTALLED_APPS": [], "DEBUG": False}
        exec(block, names)
        conf.parse(names["EPICA_MAIL"])


def test_troubleshooting_covers_every_problematic_status() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    covered = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    known = set(lifecycle.Status.values)
    assert known - {"cancelled", "suppressed"} <= covered & known


def outline(page: str) -> dict[str, list[str]]:
    """Return what both languages of a page share, such as heading levels, code and links."""
    text = (ROOT / page).read_text("utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    code = [re.sub(r"  # .*$", "", block, flags=re.MULTILINE) for _, block in blocks]
    tables = re.findall(r"^\|.*\|$", prose, re.MULTILINE)
    own = ("README", "docs/images/")  # each language has its own
    cells = [[cell.strip() for cell in line.strip("|").split("|")[1:]] for line in tables]
    return {
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "code": code,
        "commands": re.findall(r"^    (\S.*)$", prose, re.MULTILINE),
        "cells": [cell for row in cells for cell in row],
        "links": [it for it in re.findall(r"\]\(([^)]+)\)", prose) if not it.startswith(own)],
    }


@pytest.mark.parametrize("part", ["headings", "code", "commands", "cells", "links"])
def test_the_turkish_readme_matches_the_english_one(part: str) -> None:
    assert outline("README.tr.md")[part] == outline("README.md")[part]


def test_the_readme_says_what_the_wheel_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    [[pythons, djangos]] = re.findall(r"^Python (.*?) · Django (.*?) ·", readme, re.MULTILINE)
    versions = {
        name: [
            found.rpartition(" ")[2] for found in project["classifiers"] if re.search(kind, found)
        ]
        for name, kind in (("Python", r":: Python :: 3\.\d+$"), ("Django", r":: Django :: \d"))
    }
    assert pythons.split(" to ") == [versions["Python"][0], versions["Python"][-1]]
    assert djangos.split(", ") == versions["Django"]
    assert project["description"] in " ".join(readme.split())


def test_the_readme_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = re.findall(
        r"^\| .* \| (`.*`) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(project["optional-dependencies"])


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 140
    assert len(re.findall(r"(?<!!)\[[^]]*\]\(", readme)) <= 10


def test_a_page_that_the_code_names_has_that_title_and_section() -> None:
    pages = {page.read_text("utf-8").partition("\n")[0].lstrip("# "): page for page in PAGES}
    package = ROOT / "src" / "django_epica_mail"
    source = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    found = re.findall(
        r"see '([^']+)' on the page '([^']+)'", source.replace('"\n            "', "")
    )
    assert len(found) >= 3
    for section, title in found:
        assert f"\n## {section}\n" in pages[title].read_text("utf-8")
