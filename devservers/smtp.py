"""Run an SMTP server that records what it accepts and misbehaves on demand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from devservers.process import free_port
from devservers.service import Service, stop_listening
from devservers.smtp_actions import Delay
from devservers.smtp_faults import Hold
from devservers.smtp_inbox import AcceptedMessage, Inbox, read_header
from devservers.smtp_session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from devservers.smtp_actions import Action, Stage
    from devservers.smtp_faults import Behaviour

R = TypeVar("R", bound="Behaviour")


@dataclass(frozen=True)
class ConnectionCounts:
    """How many connections were opened, are open, and were open at the same time at most."""

    opened: int
    open_now: int
    most_at_once: int


class SMTPServer(Inbox, Service):
    """An SMTP server on 127.0.0.1, in threads of this process.

    Faults are rules that :meth:`inject` adds at any time (see ``smtp_faults``). At each stage the
    rules are asked in order until one objects. With ``credentials`` (user: password) the client
    must authenticate; with ``accepts_token``, which is asked about a user and an access token, by
    one of ``mechanisms``. ``max_size`` is the size limit of a message in bytes. With ``tls``, each
    connection begins with TLS.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        credentials: Mapping[str, str] | None = None,
        accepts_token: Callable[[str, str], bool] | None = None,
        mechanisms: tuple[str, ...] = ("XOAUTH2", "OAUTHBEARER"),
        max_size: int = 50_000_000,
        smtputf8: bool = True,
        pipelining: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.credentials = dict(credentials or {})
        self.accepts_token = accepts_token
        self.mechanisms = mechanisms
        self.max_size = max_size
        self.smtputf8 = smtputf8
        self.pipelining = pipelining
        self.tls = tls
        super().__init__()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._rules: list[Behaviour] = []
        self._open: dict[int, tuple[socket.socket, threading.Thread]] = {}
        self._opened = 0
        self._most_at_once = 0
        self._listener: tuple[socket.socket, threading.Thread] | None = None

    # -- listening

    def start(self) -> None:
        """Start listening."""
        self._stopping.clear()
        self.listen_again()

    def stop(self) -> None:
        """Stop listening, withdraw all rules, and end all connections."""
        self._stopping.set()
        self.refuse_connections()
        self.clear()
        with self._lock:
            threads = [thread for _, thread in self._open.values()]
        self.cut_connections()
        deadline = time.monotonic() + 10
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if stuck := [thread.name for thread in threads if thread.is_alive()]:
            raise TimeoutError(f"A rule blocks {', '.join(stuck)}: make it return when we stop.")

    def refuse_connections(self) -> None:
        """Stop listening, so that new connections are refused; open ones continue."""
        if self._listener is None:
            return
        listening, self._listener = self._listener, None
        stop_listening(*listening)

    def listen_again(self) -> None:
        """Listen on the same port again."""
        if self._listener is not None:
            return
        listener = socket.create_server((self.host, self.port), backlog=512)
        thread = threading.Thread(target=self._serve, args=[listener], name="smtp", daemon=True)
        self._listener = (listener, thread)
        thread.start()

    def cut_connections(self) -> int:
        """End all open connections, including those of held clients; return their number."""
        with self._lock:
            connections = [connection for connection, _ in self._open.values()]
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(connections)

    # -- faults

    def inject(self, rule: R) -> R:
        """Add a rule after the others, effective immediately, and return it."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def withdraw(self, rule: Behaviour) -> None:
        """Remove a rule, releasing a hold."""
        with self._lock:
            self._rules.remove(rule)
        if isinstance(rule, Hold):
            rule.release()

    def clear(self) -> None:
        """Remove all rules, releasing holds."""
        with self._lock:
            rules = list(self._rules)
        for rule in rules:
            self.withdraw(rule)

    @property
    def connections(self) -> ConnectionCounts:
        """The counts of connections."""
        with self._lock:
            return ConnectionCounts(self._opened, len(self._open), self._most_at_once)

    # -- called by sessions

    def judge(self, stage: Stage, session: Session) -> Action | None:
        """Ask the rules in order, wait for delays, and return the first other action."""
        with self._lock:
            rules = list(self._rules)
        for rule in rules:
            action = rule(stage, session)
            if isinstance(action, Delay):
                self._stopping.wait(action.seconds)
            elif action is not None:
                return action
        return None

    def keep(self, session: Session) -> None:
        """Record the session's message as accepted."""
        message = AcceptedMessage(
            sender=session.sender or "",
            recipients=tuple(session.recipients),
            content=session.content,
            message_id=read_header(session.content, "Message-ID"),
            connection=session.number,
            time=time.time(),
            options=session.options,
        )
        self.add(message)

    # -- threads

    def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            if self._listener is None or self._listener[0] is not listener:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._opened += 1
                number = self._opened
                thread = threading.Thread(
                    target=self._talk,
                    args=[number, connection],
                    name=f"smtp connection {number}",
                    daemon=True,
                )
                self._open[number] = (connection, thread)
                self._most_at_once = max(self._most_at_once, len(self._open))
                thread.start()

    def _talk(self, number: int, connection: socket.socket) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            Session(number, connection, self).talk()
        except ssl.SSLError:
            return  # the client does not trust us
        finally:
            connection.close()
            with self._lock:
                del self._open[number]
