"""During a deploy, an older version runs on the new schema, beside the new version."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import django_epica_mail
from devservers.worker import Worker
from tests.acceptance.databases import Databases
from tests.acceptance.places import EXAMPLE_PROJECT, REPOSITORY
from tests.acceptance.site import Site
from tests.outside.packages import Packages
from tests.outside.work import place, send

# The repository of a source distribution or a shallow clone lacks the commit.
pytestmark = pytest.mark.not_in_ci

OLD = os.environ.get("OUTSIDE_OLD_COMMIT", "df16be5")
"""The last commit with migration 0001 only, or another one that must run beside this version."""

MAILS = 20


@pytest.fixture(scope="module")
def old(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the old commit: its files, and its package installed in the folder ``installed``."""
    folder = tmp_path_factory.mktemp("old")
    git = ["git", "-C", str(REPOSITORY), "archive", "--format=tar", OLD]
    archive = subprocess.run(git, check=False, capture_output=True)
    if archive.returncode:
        pytest.fail(
            f"This clone does not have the commit {OLD} ({archive.stderr.decode().strip()}): "
            "get its history (git fetch --unshallow), or name another in OUTSIDE_OLD_COMMIT."
        )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    packages.install(folder / "installed", "--no-deps", folder)
    return folder


@pytest.fixture
def site(databases: Databases, tmp_path: Path) -> Iterator[Site]:
    """Provide a site of this version, with its schema."""
    paths = [str(REPOSITORY), str(EXAMPLE_PROJECT)]
    env = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    site = Site(databases, "postgresql", tmp_path, {}, env)
    yield site
    site.close()


def test_both_versions_send_the_mail_of_both(site: Site, old: Path) -> None:
    paths = [str(it) for it in (old / "installed", old / "example_project", REPOSITORY)]
    env = {"PYTHONPATH": os.pathsep.join(paths)}
    assert site.start_at(env, place).result() == str(old / "installed" / "django_epica_mail")
    assert site.call(place) == str(Path(django_epica_mail.__file__).parent)

    older = start_old_worker(site, old, env)
    site.call(send, MAILS)
    site.wait_for(sent=MAILS)
    newer = site.start_worker()
    older.stop()
    site.start_at(env, send, MAILS).result()
    site.wait_for(sent=2 * MAILS)
    older = start_old_worker(site, old, env)
    calls = [site.start_at(env, send, MAILS), site.start(send, MAILS)]
    for call in calls:
        call.result()
    site.wait_for(sent=4 * MAILS)
    site.require_each_arrived_once(4 * MAILS)
    assert site.fetch("SELECT count(*) FROM epica_mail_deliveryattempt") == [(4 * MAILS,)]
    for worker in (older, newer):
        worker.stop()
        assert "Traceback" not in worker.log_text()


def start_old_worker(site: Site, old: Path, env: Mapping[str, str]) -> Worker:
    """Start a worker of the old commit's package and example project."""
    project = old / "example_project"
    worker = Worker(project, "shopsite", {**site.env, **env}, folder=site.folder)
    site.celery.append(worker)
    worker.start()
    return worker
