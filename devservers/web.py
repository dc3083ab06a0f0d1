"""Run a site's web server, and Flower, as processes of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from devservers.process import ManagedProcess, free_port
from devservers.worker import environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class _WebProcess(ManagedProcess):
    port: int
    path: str

    def url(self, path: str = "") -> str:
        """Return the URL of a path, which begins with a slash."""
        return f"http://127.0.0.1:{self.port}{path}"

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with urlopen(self.url(self.path), timeout=5):  # noqa: S310 - ours
                return True
        except HTTPError:
            return True
        except (URLError, OSError):
            return False


class Web(_WebProcess):
    """Django's own web server of the project in the folder ``project_dir``."""

    path = "/"

    def __init__(self, project_dir: Path, env: Mapping[str, str], *, folder: Path) -> None:
        self.port = free_port()
        super().__init__(
            [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}"],
            log=folder / "web.log",
            cwd=project_dir,
            env=environment(env),
        )


class Flower(_WebProcess):
    """Flower for ``app`` (as in ``celery -A app``), its API open to everyone who finds the port."""

    path = "/api/workers"

    def __init__(
        self, project_dir: Path, app: str, env: Mapping[str, str], *, folder: Path
    ) -> None:
        self.port = free_port()
        super().__init__(
            [
                *(sys.executable, "-m", "celery", "-A", app, "flower"),
                *("--address=127.0.0.1", f"--port={self.port}"),
            ],
            log=folder / "flower.log",
            cwd=project_dir,
            env=environment(
                # Deprecations of Flower's own are not the site's.
                {**env, "FLOWER_UNAUTHENTICATED_API": "true", "PYTHONWARNINGS": ""}
            ),
        )
