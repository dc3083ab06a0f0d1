"""Name the folders of this repository."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE_PROJECT = REPOSITORY / "example_project"
