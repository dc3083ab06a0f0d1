"""Test that the distributions are complete, and that the wheel alone can run the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
DIST = Path(os.environ["EPICA_DIST"])
PACKAGE = "django_epica_mail"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GENERATED = {"__pycache__", ".pytest_cache", ".hypothesis", "_build"}


def only(pattern: str) -> Path:
    (found,) = DIST.glob(pattern)
    return found


def files(folder: Path, base: Path) -> set[str]:
    """Return the files of a folder, except those that running code in it creates."""
    return {
        path.relative_to(base).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and not GENERATED & set(path.parts)
        and ".sqlite3" not in path.name
        and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    return zipfile.ZipFile(only("*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the source distribution."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(only("*.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def test_the_wheel_contains_exactly_the_package(wheel: zipfile.ZipFile) -> None:
    contained = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contained == files(ROOT / "src" / PACKAGE, ROOT / "src")
    for kind in ("py.typed", ".mo", "_initial.py", ".html", "_subject.txt"):
        assert any(name.endswith(kind) for name in contained), kind


@pytest.mark.parametrize(
    "folder", ["src", "tests", "devservers", "example_project", "docs", "benchmarks", ".ci"]
)
def test_the_source_distribution_is_complete(source: Path, folder: str) -> None:
    assert files(source / folder, source) == files(ROOT / folder, ROOT)
    assert {path.name for path in ROOT.glob("*.md")} <= {path.name for path in source.iterdir()}


def test_the_metadata_are_complete(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_bytes(wheel.read(name))
    assert (metadata["Name"], metadata["License-Expression"]) == ("django-epica-mail", "MIT")
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier") or []
    for version in ("5.2", "6.0", "6.1"):
        assert f"Framework :: Django :: {version}" in classifiers
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert set(metadata.get_all("Provides-Extra") or ()) >= {"all", "beat", "rates", "results"}
    of_all = [it for it in metadata.get_all("Requires-Dist") or () if "extra == 'all'" in it]
    assert of_all
    assert not [it for it in of_all if "beat" in it], "django-celery-beat refuses Django 6.1"
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert wheel.read(entry).decode().split() == [
        "[pytest11]",
        "epica_mail",
        "=",
        f"{PACKAGE}.pytest_plugin",
    ]


def test_the_wheel_alone_runs_the_demo(source: Path, tmp_path: Path) -> None:
    """The wheel has no extras; the example project is that of the source distribution."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    needed = PROJECT["dependency-groups"]["demo"]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, only("*.whl"), *needed], check=True)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join(map(str, (source, source / "example_project"))),
    }
    project = source / "example_project"
    code = "import django_epica_mail, importlib.util as it; print(django_epica_mail.__file__)"
    code += "; assert not any(map(it.find_spec, ('limits', 'css_inline', 'django_celery_beat')))"
    location = subprocess.run([python, "-c", code], env=env, cwd=project, capture_output=True)
    assert location.returncode == 0, location.stderr.decode()
    assert "site-packages" in location.stdout.decode()
    demo = subprocess.run(
        [python, "-m", "demo", "--once"], env=env, cwd=project, capture_output=True, timeout=240
    )
    assert demo.returncode == 0, (demo.stdout + demo.stderr).decode()


def test_this_interpreter_does_not_have_the_package() -> None:
    """Otherwise the environment could supply what the wheel lacks."""
    code = f"import importlib.util; print(importlib.util.find_spec('{PACKAGE}'))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "None"
