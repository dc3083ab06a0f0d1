"""Run the web server of a third party who wants to know who reads mail."""

from __future__ import annotations

from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from devservers.http_service import HTTPService


@dataclass(frozen=True)
class Hit:
    """One request to the third party's server."""

    path: str
    cookie: str
    referrer: str


_PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


class Stranger(HTTPService):
    """A web server of another origin that records every request."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.page = ""
        """The HTML served at the path ``/page``."""
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

        super().__init__(Handler)
        # Another host name, so that the browser treats it as another site.
        self.url = f"http://localhost:{self.port}"
