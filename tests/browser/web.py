"""The web server of the example project, and one of somebody who wants to know who reads mail."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

from devservers.process import ManagedProcess, free_port
from tests.acceptance.places import EXAMPLE_PROJECT

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class WebServer(ManagedProcess):
    """The example project, served by Django's own server."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        # --insecure serves the admin's CSS although DEBUG is off.
        command = [sys.executable, "manage.py", "runserver", "--noreload", "--insecure", address]
        super().__init__(command, log=folder / "web.log", cwd=EXAMPLE_PROJECT, env=env)

    def is_ready(self) -> bool:
        """Tell whether the page of the log-in answers."""
        with (
            contextlib.suppress(OSError, HTTPError),
            urlopen(f"{self.url}/admin/login/", timeout=5) as response,
        ):
            return bool(response.status == 200)
        return False


@dataclass(frozen=True)
class Hit:
    """One request that reached the stranger's server."""

    path: str
    cookie: str
    referrer: str


_PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


class Stranger:
    """A web server of another origin, which notes whatever is asked of it."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.page = ""
        """What is at the path ``/page``."""
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = self.headers
                stranger.hits.append(
                    Hit(self.path, headers.get("Cookie", ""), headers.get("Referer", ""))
                )
                self.send_response(200)
                kind = "text/html" if self.path == "/page" else "image/svg+xml"
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(stranger.page.encode() if self.path == "/page" else _PICTURE)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Another host name, so that it is another site to the browser too.
        self.url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
