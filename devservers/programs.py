"""Find the programs of servers: on PATH, in given folders, or in an installed package."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def find_program(*names: str, folders: Iterable[str] = ()) -> Path | None:
    """Return the first program found on PATH or in ``folders``, or None if none is found."""
    path = os.pathsep.join(folders)
    for name in names:
        if found := shutil.which(name) or shutil.which(name, path=path):
            return Path(found)
    return None


def package_folders(name: str) -> list[Path]:
    """Return the folders of an installed package; none if it is not installed."""
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
