"""A thin layer on Django's SMTP backend: it notes how far each dialogue came and what was refused.

Django's backend builds the mail and speaks; this layer watches, and keeps the whole dialogue
about one mail inside one deadline, which smtplib's own time-outs, counted per read, do not.
"""

from __future__ import annotations

import io
import math
import smtplib
import time
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.mail.backends.smtp import EmailBackend
from django.core.mail.message import sanitize_address

from django_epica_mail.messages import addresses
from django_epica_mail.messages.raw import builds_itself
from django_epica_mail.retry import Stage
from django_epica_mail.transports import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.mail import EmailMessage


if django.VERSION < (6, 0):
    from django.core.mail.message import sanitize_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.mail import EmailMessage

    Reply = tuple[int, bytes]

_CHUNK = 1 << 16
_PIPELINED = 100
"""With more recipients, both sides might wait for the other to read."""


class _DeadlineReader(io.RawIOBase):
    """Read from a client's socket, never past the client's deadline."""

    def __init__(self, client: RecordingClient) -> None:
        self._client = client

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        sock = self._client.sock
        if sock is None:
            return 0
        sock.settimeout(self._client.seconds_left())
        return sock.recv_into(buffer)


class RecordingClient(smtplib.SMTP):
    """An ``smtplib.SMTP`` that remembers the dialogue about the present mail."""

    def __init__(
        self, *args: Any, deadline: float, timeout: float = math.inf, **kwargs: Any
    ) -> None:
        self.timeout = timeout
        self.begin(deadline)
        self.stage = Stage.CONNECT
        kwargs["timeout"] = self.seconds_left()
        super().__init__(*args, **kwargs)
        self.timeout = timeout

    def begin(self, deadline: float) -> None:
        """Start the record of a new mail, to be done with by ``deadline`` (monotonic seconds)."""
        self.deadline = deadline
        self.stage = Stage.ENVELOPE
        self.recipient_replies: list[Reply] = []
        self.content_reply: Reply | None = None
        self._content_next = False
        self._recipients: Sequence[str] = ()
        self._gathered: list[str] | None = None
        self._ahead: deque[Reply] = deque()

    def seconds_left(self) -> float:
        """Return how long the next operation may take; raise ``TimeoutError`` if no time is left.

        That is the backend's own time-out or what remains for this mail, whichever is less.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this mail (SEND_TIMEOUT) is over")
        return min(left, self.timeout)

    def sendmail(
        self,
        from_addr: str,
        to_addrs: Any,
        msg: Any,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Send one mail, its whole envelope in one write where the server offers to take it so.

        RFC 2920: MAIL, RCPT and DATA travel together, and their replies come together. smtplib
        goes through them one after the other as ever, and decides what they mean.
        """
        recipients = [to_addrs] if isinstance(to_addrs, str) else to_addrs
        has_options = mail_options or rcpt_options
        together = self.has_extn("pipelining") and not has_options
        self._recipients = recipients if together and len(recipients) <= _PIPELINED else ()
        return super().sendmail(from_addr, recipients, msg, mail_options, rcpt_options)

    def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """Name the sender; where the server takes commands ahead, send all of the envelope."""
        if self._recipients:
            commands = self._envelope(sender, options)
            self.send("".join(commands))
            self._ahead = self._replies(len(commands))
            return self.getreply()
        return super().mail(sender, options)

    def _envelope(self, sender: str, options: Sequence[str]) -> list[str]:
        """Return the commands from MAIL to DATA."""
        commands: list[str] = []
        self._gathered = commands
        try:
            self.putcmd("mail", " ".join([f"FROM:{_quoted(sender)}", *options]))
            for recipient in self._recipients:
                self.putcmd("rcpt", f"TO:{_quoted(recipient)}")
            self.putcmd("data")
        finally:
            self._gathered = None
        return commands

    def _replies(self, number: int) -> deque[Reply]:
        """Read so many replies, or as many as come before the server hangs up."""
        replies: deque[Reply] = deque()
        while len(replies) < number:
            try:
                replies.append(self.getreply())
            except smtplib.SMTPServerDisconnected:
                if not replies:
                    raise
                break  # what it said before, a refusal for instance, is its answer
            if replies[-1][0] == 421:  # RFC 5321, section 3.8: the server hangs up
                break
        return replies

    def getreply(self) -> Reply:
        """Read one reply within the deadline, unless it came ahead."""
        if self._ahead:
            return self._ahead.popleft()
        if self.file is None:
            self.file = io.BufferedReader(_DeadlineReader(self))
        return super().getreply()

    def send(self, s: Any) -> None:
        """Send within the deadline, noting when the end of the content sets off.

        Until then the server has not seen the final dot, and cannot have accepted the mail.
        """
        if self._gathered is not None:
            self._gathered.append(s)
            return
        data = s.encode(self.command_encoding) if isinstance(s, str) else s
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            if self.sock is not None:
                try:
                    self.sock.settimeout(self.seconds_left())
                except TimeoutError as error:
                    self.close()
                    raise smtplib.SMTPServerDisconnected(str(error)) from error
            if self._content_next and start + _CHUNK >= len(view):
                self.stage = Stage.CONTENT
            super().send(view[start : start + _CHUNK])

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """Name one recipient, noting the reply by position."""
        reply = self.getreply() if self._ahead else super().rcpt(recip, options)
        self.recipient_replies.append(reply)
        return reply

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send one command, unless it went ahead; what is sent after DATA is the content."""
        self._content_next = False
        if self._ahead and cmd != "data":
            self._drop_what_came_ahead()
        if not self._ahead:
            super().putcmd(cmd, args)
        self._content_next = cmd == "data" and self._gathered is None

    def _drop_what_came_ahead(self) -> None:
        """Forget the replies to an envelope that smtplib gave up.

        A server that waits for the content nevertheless is not given the dot that would end it.
        """
        waits_for_content = any(code == 354 for code, _ in self._ahead)
        self._ahead.clear()
        if waits_for_content:
            self.close()

    def data(self, msg: Any) -> Reply:
        """Send the content, noting the server's reply to it."""
        reply = super().data(msg)
        self.stage = Stage.ANSWERED
        self._content_next = False
        self.content_reply = reply
        return reply


def _quoted(address: str) -> str:
    """Return an address as a command names it."""
    if addresses.is_plain_and_bare(address):
        return f"<{address}>"
    return smtplib.quoteaddr(address)


class RecordingBackend(EmailBackend):
    """Django's SMTP backend with a client that records; meant for one mail at a time."""

    deadline = 0.0
    connection: RecordingClient | None

    @property
    def connection_class(self) -> Callable[..., RecordingClient]:  # type: ignore[override]
        """The client's class, which starts with this mail's deadline."""
        client_class: Any = super().connection_class
        return partial(_recording_client(client_class), deadline=self.deadline)

    def begin(self, deadline: float) -> None:
        """Start a new mail: connect and greet where needed, within ``deadline``.

        Raises what smtplib raises; the connection is then closed.
        """
        self.deadline = deadline
        self.open()
        if self.connection is None:  # open() is silent about failing only when told to be
            raise smtplib.SMTPServerDisconnected("The transport did not connect.")
        self.connection.ehlo_or_helo_if_needed()
        self.connection.begin(deadline)


class _DjangosBackend(RecordingBackend):
    """Django's own SMTP backend, not one that a site made of it, with less ado."""

    def _send(self, email_message: EmailMessage) -> bool:
        """Send a message that Django builds as Django does; any other is left to it."""
        if builds_itself(email_message):
            return bool(super()._send(email_message))  # type: ignore[misc]
        sender, *recipients = (
            self._prepared(address, email_message)
            for address in (email_message.from_email, *email_message.recipients())
        )
        if recipients and self.connection is not None:
            self.connection.sendmail(sender, recipients, wire.build(email_message))
        return bool(recipients)

    def _prepared(self, address: str, message: EmailMessage) -> str:
        """Return an address as the envelope has it; raise ``ValueError`` for what is none."""
        if addresses.is_plain_and_bare(address):
            return address
        if django.VERSION >= (6, 0):
            return self.prep_address(address)
        return sanitize_address(address, message.encoding or settings.DEFAULT_CHARSET)


@cache
def _recording_client(client_class: type[smtplib.SMTP]) -> type[RecordingClient]:
    recording: type[RecordingClient] = type("RecordingClient", (RecordingClient, client_class), {})
    return recording


@cache
def recording_backend(backend_class: type[EmailBackend]) -> type[RecordingBackend]:
    """Return a subclass of an SMTP backend class, Django's or a site's own, that records."""
    if backend_class is EmailBackend:
        return _DjangosBackend
    recording: type[RecordingBackend] = type(
        "RecordingBackend", (RecordingBackend, backend_class), {}
    )
    return recording
