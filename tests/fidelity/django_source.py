"""Fetch Django's own tests of mail backends, which only its source distribution contains."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import django


def backend_tests() -> ModuleType:
    """Download the source of the installed Django, and import its tests of mail backends."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        version = django.get_version()
        subprocess.run(
            [*command, "--no-binary", "Django", "--dest", folder, f"Django=={version}"], check=True
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            within = f"{archive.name.removesuffix('.tar.gz')}/tests/"
            members = [m for m in source if m.name.startswith(f"{within}mail/") and m.isfile()]
            source.extractall(folder, members, filter="data")
        sys.path.insert(0, str(Path(folder) / within))
        try:
            return import_module("mail.test_backends" if django.VERSION >= (6, 1) else "mail.tests")
        finally:
            sys.path.pop(0)
