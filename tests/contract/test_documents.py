"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from django_epica_mail import lifecycle

ROOT = Path(__file__).parents[2]


def test_the_diagram_of_the_life_of_an_email_shows_every_move_and_no_other() -> None:
    page = (ROOT / "docs" / "explanation" / "life-of-an-email.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+): ([\w ]+)$", page, re.MULTILINE))
    legal = {
        (source.value, move.target.value, move.name)
        for move in lifecycle.MOVES
        for source in move.sources
    }
    assert drawn == legal


def test_every_setting_is_in_the_reference_and_no_other() -> None:
    from dataclasses import fields

    from django_epica_mail.conf import Settings

    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert documented == {field.name.upper() for field in fields(Settings)}


def test_every_system_check_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    source = (ROOT / "src" / "django_epica_mail" / "checks.py").read_text(encoding="utf-8")
    used = set(re.findall(r'id="(epica_mail\.\w+)"', source))
    assert used == set(re.findall(r"`(epica_mail\.[EW]\d+)`", page))


def test_every_test_that_the_threat_model_relies_on_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).is_file()} == set()
