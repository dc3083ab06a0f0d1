"""Run a site's web server, and Flower, in processes of their own."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, ClassVar
from urllib.request import urlopen

from devservers.process import ManagedProcess, free_port
from devservers.worker import celery_command, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class WebProcess(ManagedProcess):
    """A process that serves HTTP on 127.0.0.1, ready once ``ready_path`` answers without an error.

    Subclasses set ``port`` before they call ``__init__``.
    """

    ready_path: ClassVar[str]
    port: int

    def __init__(
        self,
        command: Sequence[str | Path],
        project_dir: Path,
        env: Mapping[str, str],
        *,
        folder: Path,
        name: str,
    ) -> None:
        log = folder / f"{name}.log"
        super().__init__(command, log=log, cwd=project_dir, env=environment(env))

    def url(self, path: str = "") -> str:
        """Return the URL of a path, which starts with a slash."""
        return f"http://127.0.0.1:{self.port}{path}"

    def is_ready(self) -> bool:
        """Return whether ``ready_path`` answers without an error."""
        with (
            contextlib.suppress(OSError),
            urlopen(self.url(self.ready_path), timeout=5),  # noqa: S310 - ours
        ):
            return True
        return False


class Web(WebProcess):
    """Django's development server for the project in the folder ``project_dir``.

    ``env`` is added to this process's environment. ``insecure`` serves static files although
    DEBUG is off. The log is ``folder/<name>.log``.
    """

    ready_path = "/"

    def __init__(
        self,
        project_dir: Path,
        env: Mapping[str, str],
        *,
        folder: Path,
        name: str = "web",
        insecure: bool = False,
    ) -> None:
        self.port = free_port()
        command = [
            *(sys.executable, "manage.py", "runserver", "--noreload"),
            *(["--insecure"] if insecure else []),
            f"127.0.0.1:{self.port}",
        ]
        super().__init__(command, project_dir, env, folder=folder, name=name)


class Flower(WebProcess):
    """Flower for ``app`` (as in ``celery -A app``).

    ``basic_auth`` is ``user:password``; without it, anyone who can reach the port may use the API.
    """

    ready_path = "/healthcheck"

    def __init__(
        self,
        project_dir: Path,
        app: str,
        env: Mapping[str, str],
        *,
        folder: Path,
        basic_auth: str = "",
    ) -> None:
        self.port = free_port()
        options = ["--address=127.0.0.1", f"--port={self.port}"]
        # Flower's own deprecation warnings are not the site's concern.
        env = {**env, "PYTHONWARNINGS": ""}
        if basic_auth:
            options.append(f"--basic-auth={basic_auth}")
        else:
            env["FLOWER_UNAUTHENTICATED_API"] = "true"
        command = celery_command(app, "flower", *options)
        super().__init__(command, project_dir, env, folder=folder, name="flower")
