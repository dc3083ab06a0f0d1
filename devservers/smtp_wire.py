"""Read commands and content from an SMTP client, and write replies, byte for byte."""

from __future__ import annotations

import re
import socket
import struct

# The client doubles the dot at the start of a line (RFC 5321, section 4.5.2).
_STUFFED = re.compile(rb"(^|\r\n)\.")


class ConnectionEnded(Exception):  # noqa: N818 - an ordinary end, not an error
    """The connection has ended or must be closed."""


class Wire:
    """The bytes of one connection. Only CRLF ends a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = bytearray()

    def say(self, code: int, *texts: str) -> None:
        """Send one reply of one or more lines."""
        lines = [f"{code}-{text}\r\n" for text in texts[:-1]] + [f"{code} {texts[-1]}\r\n"]
        self._socket.sendall("".join(lines).encode())

    def line(self) -> str:
        """Return the next line without its CRLF; raise :exc:`ConnectionEnded` if there is none."""
        line = self._until(b"\r\n")
        return line[:-2].decode(errors="surrogateescape")

    def content(self) -> bytes:
        """Return a message without the line with the final dot, with dot-stuffing removed."""
        while len(self._received) < 3:
            self._receive()
        if self._received.startswith(b".\r\n"):
            del self._received[:3]
            return b""
        stuffed = self._until(b"\r\n.\r\n")[:-3]
        return _STUFFED.sub(rb"\1", stuffed)

    def ignore(self) -> None:
        """Discard input until the client, or the stopping server, ends the connection."""
        while self._socket.recv(65536):
            pass

    def reset(self) -> None:
        """Make the next close abrupt: RST instead of FIN."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _until(self, end: bytes) -> bytes:
        start = 0
        while (found := self._received.find(end, start)) < 0:
            start = max(0, len(self._received) - len(end) + 1)
            self._receive()
        stop = found + len(end)
        taken = bytes(self._received[:stop])
        del self._received[:stop]
        return taken

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionEnded
        self._received += received
