"""Run an HTTP server in threads of this process."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from devservers.service import Service

if TYPE_CHECKING:
    import ssl
    from http.server import BaseHTTPRequestHandler

_POLL_SECONDS = 0.05
"""How often the server checks whether it is being stopped."""


class HTTPService(Service):
    """An HTTP server on a free port of 127.0.0.1; each request runs in its own thread.

    With ``tls`` it speaks HTTPS.
    """

    def __init__(
        self, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
    ) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=[_POLL_SECONDS],
            name="http server",
            daemon=True,
        )
        self.port = self._server.server_port

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering requests, and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
