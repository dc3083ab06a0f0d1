"""Run an IMAP server with one user and one folder, for programs that read a mailbox."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, cast

from devservers.process import free_port
from devservers.service import Service, stop_listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ATOMS = re.compile(rb'"((?:[^"\\]|\\.)*)"|(\([^)]*\))|(\S+)')
_PARTIAL = re.compile(rb"BODY\.PEEK\[\]<(\d+)\.(\d+)>")


@dataclass
class StoredMessage:
    """A message of the mailbox; ``uid`` stays its own, ``flags`` are as IMAP writes them."""

    uid: int
    content: bytes
    flags: set[str] = field(default_factory=set)


class IMAPServer(Service):
    """An IMAP4rev1 server (RFC 3501) on 127.0.0.1, in threads of this process.

    It knows what readers of a mailbox need: LOGIN, AUTHENTICATE XOAUTH2, SELECT, UID SEARCH by
    sequence numbers and flags, UID FETCH of a part of the message, UID STORE, and UID EXPUNGE (RFC
    4315) unless ``uidplus`` is false. Capabilities are complete after the login only, as with many
    servers. With ``tls``, each connection begins with TLS.
    """

    def __init__(
        self,
        *,
        user: str = "bounces",
        password: str = "secret",  # noqa: S107 - of a server for tests
        accepts_token: Callable[[str], bool] | None = None,
        uidplus: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.user, self.password = user, password
        self.accepts_token = accepts_token
        self.uidplus = uidplus
        self.tls = tls
        self.folder = "INBOX"
        self.messages: list[StoredMessage] = []
        self.announces: int | None = None
        """How many messages it says that the mailbox has, if not the truth."""
        self.withheld: StoredMessage | None = None
        """A message that it cannot give, such as one that Exchange cannot convert."""
        self.commands: list[str] = []
        """The commands received, without their arguments."""
        self._lock = threading.RLock()
        self._next_uid = 1
        self._listener: tuple[socket.socket, threading.Thread] | None = None
        self._connections: set[socket.socket] = set()

    def deliver(self, content: bytes) -> StoredMessage:
        """Put a message into the mailbox."""
        with self._lock:
            message = StoredMessage(self._next_uid, content)
            self._next_uid += 1
            self.messages.append(message)
        return message

    def start(self) -> None:
        """Start listening."""
        listener = socket.create_server((self.host, self.port))
        thread = threading.Thread(target=self._serve, args=[listener], name="imap", daemon=True)
        self._listener = (listener, thread)
        thread.start()

    def stop(self) -> None:
        """Stop listening, and end all connections."""
        if self._listener is None:
            return
        listening, self._listener = self._listener, None
        stop_listening(*listening)
        with self._lock:
            open_now = list(self._connections)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            if self._listener is None or self._listener[0] is not listener:
                connection.close()
                return
            threading.Thread(target=self._talk, args=[connection], daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rwb") as stream:
                _Session(self, cast("BinaryIO", stream)).talk()
        except OSError:  # the client does not trust us, or has gone
            return
        finally:
            with self._lock:
                self._connections.discard(connection)


class _Session:
    def __init__(self, server: IMAPServer, stream: BinaryIO) -> None:
        self._server = server
        self._stream = stream
        self._is_known = False

    def talk(self) -> None:
        self._write(b"* OK ready")
        while line := self._stream.readline():
            tag, _, rest = line.rstrip(b"\r\n").partition(b" ")
            words = [b"".join(it) for it in _ATOMS.findall(rest)]
            name = words.pop(0).decode().upper() if words else ""
            if name == "UID" and words:
                name += f" {words.pop(0).decode().upper()}"
            self._server.commands.append(name)
            action = getattr(self, f"_{name.lower().replace(' ', '_')}", None)
            with self._server._lock:
                answer = action(words) if action else b"BAD unknown command"
            self._write(tag + b" " + answer)
            if name == "LOGOUT":
                return

    def _write(self, line: bytes) -> None:
        self._stream.write(line + b"\r\n")
        self._stream.flush()

    def _capability(self, _: list[bytes]) -> bytes:
        more = b""
        if self._is_known and self._server.uidplus:
            more = b" UIDPLUS"
        if not self._is_known and self._server.accepts_token:
            more = b" AUTH=XOAUTH2 SASL-IR"
        self._write(b"* CAPABILITY IMAP4rev1" + more)
        return b"OK done"

    def _login(self, words: list[bytes]) -> bytes:
        given = [it.decode() for it in words]
        self._is_known = given == [self._server.user, self._server.password]
        return b"OK done" if self._is_known else b"NO [AUTHENTICATIONFAILED] Invalid credentials"

    def _authenticate(self, words: list[bytes]) -> bytes:
        if words != [b"XOAUTH2"] or self._server.accepts_token is None:
            return b"NO unsupported mechanism"
        self._write(b"+ ")
        response = base64.b64decode(self._stream.readline()).decode()
        user, _, bearer = response.partition("\x01")
        token = bearer.removeprefix("auth=Bearer ").rstrip("\x01")
        if user == f"user={self._server.user}" and self._server.accepts_token(token):
            self._is_known = True
            return b"OK done"
        self._write(b"+ " + base64.b64encode(b'{"status":"400"}'))
        self._stream.readline()
        return b"NO [AUTHENTICATIONFAILED] the token is not valid"

    def _noop(self, _: list[bytes]) -> bytes:
        return b"OK done"

    def _logout(self, _: list[bytes]) -> bytes:
        self._write(b"* BYE")
        return b"OK done"

    def _select(self, words: list[bytes]) -> bytes:
        if not self._is_known or words != [self._server.folder.encode()]:
            return b"NO there is no such mailbox"
        number = self._server.announces or len(self._server.messages)
        self._write(b"* %d EXISTS" % number)
        return b"OK [READ-WRITE] selected"

    def _uid_search(self, words: list[bytes]) -> bytes:
        start, _, end = words[0].partition(b":")
        window = self._server.messages[int(start) - 1 : int(end)]
        without = {rb"\Seen" if it == b"UNSEEN" else rb"\Deleted" for it in words[1:]}
        found = [it for it in window if not {flag.decode() for flag in without} & it.flags]
        self._write(b" ".join([b"* SEARCH", *(b"%d" % it.uid for it in found)]))
        return b"OK done"

    def _uid_fetch(self, words: list[bytes]) -> bytes:
        partial = _PARTIAL.fullmatch(words[1].strip(b"()"))
        if partial is None:
            return b"BAD only part of a message"
        start, size = int(partial[1]), int(partial[2])
        for number, message in self._named(words[0]):
            if message is self._server.withheld:
                return b"NO it cannot be converted"
            content = message.content[start : start + size]
            head = b"* %d FETCH (UID %d BODY[]<%d> {%d}\r\n" % (
                *(number, message.uid, start, len(content)),
            )
            self._write(head + content + b")")
        return b"OK done"

    def _uid_store(self, words: list[bytes]) -> bytes:
        for _, message in self._named(words[0]):
            message.flags |= set(words[2].strip(b"()").decode().split())
        return b"OK done"

    def _uid_expunge(self, words: list[bytes]) -> bytes:
        gone = [(n, it) for n, it in self._named(words[0]) if r"\Deleted" in it.flags]
        for number, message in reversed(gone):
            self._server.messages.remove(message)
            self._write(b"* %d EXPUNGE" % number)
        return b"OK done"

    def _named(self, uids: bytes) -> Iterator[tuple[int, StoredMessage]]:
        wanted = {int(it) for it in uids.split(b",")}
        for number, message in enumerate(list(self._server.messages), 1):
            if message.uid in wanted:
                yield number, message
