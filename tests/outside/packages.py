"""Fetch sources and versions of packages that the environment itself does not have."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path


class Packages:
    """Downloads into a folder, each kept for the whole run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def source(self, name: str) -> Path:
        """Return the unpacked source distribution of the installed version of a package."""
        version = metadata.version(name)
        folder = self._folder / f"source-{name}-{version}"
        if not folder.exists():
            options = ("--no-deps", "--no-binary", name, "--dest", folder)
            _pip("download", *options, f"{name}=={version}")
            (archive,) = folder.glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
            archive.unlink()
        (unpacked,) = folder.iterdir()
        return unpacked

    def overlay(self, *requirements: str) -> Mapping[str, str]:
        """Install packages into a folder of their own.

        Returns the environment variables in which they come before those of this environment.
        """
        if not requirements:
            return {}
        folder = self._folder / "-".join(["overlay", *(_plain(it) for it in requirements)])
        if not folder.exists():
            self.install(folder, *requirements)
        return {"PYTHONPATH": str(folder)}

    def install(self, folder: Path, *arguments: str | Path) -> None:
        """Install packages into a folder; ``arguments`` are those of ``pip install``."""
        _pip("install", "--target", folder, *arguments)


def _plain(requirement: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in requirement)


def _pip(command: str, *arguments: str | Path) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *quiet, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"pip {command} {arguments} failed:\n{done.stdout}")
