"""A thin layer over Django's SMTP backend that records each dialogue and keeps it to a deadline.

It notes how far the dialogue about a mail came and which recipients were refused. smtplib's own
time-outs count per read; the deadline here limits the whole dialogue. Where a server offers
pipelining (RFC 2920), the envelope is sent in one write.

The first digit of a reply decides whether the dialogue continues (RFC 5321, section 4.2.1). smtplib
compares whole codes, so it is given the code that it expects, and the record keeps the server's.
"""

from __future__ import annotations

import inspect
import io
import math
import re
import smtplib
import time
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend

from django_epica_mail import replies
from django_epica_mail.messages import addresses
from django_epica_mail.messages.raw import builds_itself
from django_epica_mail.replies import is_positive
from django_epica_mail.retry import Stage
from django_epica_mail.transports import oauth, wire
from django_epica_mail.transports.oauth import TokenSource

if django.VERSION < (6, 0):
    from django.core.mail.message import sanitize_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.mail import EmailMessage

    from django_epica_mail.transports.dkim import Signer

    Reply = tuple[int, bytes]

_CHUNK_BYTES = 1 << 16
_LINE_END = re.compile(r"\r\n|\r|\n")
_MAX_GREETING_BYTES = 1 << 16  # of all replies before the first mail: smtplib joins them slowly
_MAX_HEARD_BYTES = 1 << 24  # of all replies about one mail, lest they fill the memory
_MAX_ANSWERS = 5  # to challenges; after one more, smtplib raises an error that quotes the server
_MAX_PIPELINED_RECIPIENTS = 100
"""With more recipients, client and server might each wait for the other to read."""


@cache
def recording_backend(backend_class: type[EmailBackend]) -> type[EmailBackend]:
    """Return a recording subclass of an SMTP backend class, Django's or a site's own.

    A class that cannot have such a subclass is returned as it is.
    """
    if backend_class is EmailBackend:
        return _FastRecordingBackend
    try:
        recording: type[RecordingBackend] = type(
            "RecordingBackend", (RecordingBackend, backend_class), {}
        )
    except TypeError:  # its metaclass or layout forbids it
        return backend_class
    return recording


def client_of(backend: BaseEmailBackend | None) -> RecordingClient | None:
    """Return the client that records a backend's dialogue; ``None`` if none does."""
    client = getattr(backend, "connection", None) if isinstance(backend, EmailBackend) else None
    return client if isinstance(client, RecordingClient) else None


def opens_itself(backend_class: type[BaseEmailBackend]) -> bool:
    """Return whether an SMTP backend class makes its own connection, which is not recorded."""
    if not issubclass(backend_class, EmailBackend) or backend_class.open is EmailBackend.open:
        return False
    code = getattr(inspect.unwrap(backend_class.open), "__code__", None)
    return not {"super", "connection_class"} & set(getattr(code, "co_names", ()))


@cache
def _recording_client(client_class: type[smtplib.SMTP]) -> type[RecordingClient]:
    recording: type[RecordingClient] = type("RecordingClient", (RecordingClient, client_class), {})
    return recording


class RecordingBackend(EmailBackend):
    """Django's SMTP backend with a ``RecordingClient``; sends one mail at a time."""

    deadline = 0.0
    tokens: TokenSource | None = None
    """Where it gets access tokens, if it logs in with OAuth."""
    signer: Signer | None = None
    """What signs its mail, if it uses DKIM."""

    @property
    def connection_class(self) -> Callable[..., smtplib.SMTP]:  # type: ignore[override]
        """The client's class, bound to this backend and the deadline of the current mail."""
        client_class: Any = super().connection_class
        if not (isinstance(client_class, type) and issubclass(client_class, smtplib.SMTP)):
            return client_class  # type: ignore[no-any-return]
        recording: Any = _recording_client
        return partial(
            recording(client_class),
            deadline=self.deadline,
            tokens=self.tokens,
            signer=self.signer,
        )

    def begin(self, deadline: float) -> None:
        """Start a new mail: connect and greet if necessary, before ``deadline``.

        A connection that a site's own ``open()`` made is used as it is, without a record. Raises
        what smtplib raises; the connection is then closed.
        """
        self.deadline = deadline
        self.open()
        if self.connection is None:  # open() fails silently only if configured to
            raise smtplib.SMTPServerDisconnected("The transport did not connect.")
        client = client_of(self)
        if client is not None:
            client.ehlo_or_helo_if_needed()
            client.begin(deadline)


class _FastRecordingBackend(RecordingBackend):
    """Django's own SMTP backend, but with ``wire`` building the mail; not for subclasses."""

    def _send(self, email_message: EmailMessage) -> bool:
        """Send a message as Django does; Django itself sends one that builds its own MIME."""
        if builds_itself(email_message):
            return bool(super()._send(email_message))  # type: ignore[misc]
        sender, *recipients = (
            self._envelope_address(address, email_message)
            for address in (email_message.from_email, *email_message.recipients())
        )
        if recipients and self.connection is not None:
            self.connection.sendmail(sender, recipients, wire.build(email_message))
        return bool(recipients)

    def _envelope_address(self, address: str, message: EmailMessage) -> str:
        """Return an address as the envelope gives it. Raises ``ValueError`` if it is invalid."""
        if addresses.is_plain_and_bare(address):
            return address
        if django.VERSION >= (6, 0):
            return self.prep_address(address)
        return sanitize_address(address, message.encoding or settings.DEFAULT_CHARSET)


class RecordingClient(smtplib.SMTP):
    """An ``smtplib.SMTP`` that records the dialogue about the current mail."""

    def __init__(
        self,
        *args: Any,
        deadline: float,
        tokens: TokenSource | None = None,
        signer: Signer | None = None,
        timeout: float = math.inf,
        **kwargs: Any,
    ) -> None:
        self.tokens = tokens
        self.signer = signer
        self.timeout = timeout
        self.begin(deadline)
        self.stage = Stage.CONNECT
        self._secrets: set[bytes] = set()
        self._is_asked = False  # by challenges
        kwargs["timeout"] = self.seconds_left()
        super().__init__(*args, **kwargs)
        self.timeout = timeout

    def begin(self, deadline: float) -> None:
        """Start the record of a new mail, which must end by ``deadline`` (monotonic seconds)."""
        self.deadline, self.heard = deadline, 0
        self.stage = Stage.ENVELOPE
        self.recipient_replies: list[Reply] = []
        self.content_reply: Reply | None = None
        self.envelope_from = ""
        self._content_is_next = False
        self._pipelined_recipients: Sequence[str] = ()
        self._collected_commands: list[str] | None = None
        self._early_replies: deque[Reply] = deque()

    def seconds_left(self) -> float:
        """Return how long the next operation may take. Raises ``TimeoutError`` if no time is left.

        That is the backend's own time-out or the time left for this mail, whichever is less.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time allowed for this mail (SEND_TIMEOUT) has run out")
        return min(left, self.timeout)

    def login(self, user: str, password: str, *, initial_response_ok: bool = True) -> Reply:
        """Log in, with an access token if the transport has one; raise as ``oauth.log_in`` does."""
        if self.tokens is None:
            return super().login(user, password, initial_response_ok=initial_response_ok)
        return oauth.log_in(self, self.tokens, self.seconds_left)

    def connect(self, *args: Any, **kwargs: Any) -> Reply:
        """Connect, and return the greeting."""
        return _as_expected(super().connect(*args, **kwargs), 220)

    def docmd(self, cmd: str, args: str = "") -> Reply:
        """Send a command and return the reply."""
        reply = super().docmd(cmd, args)
        return _as_expected(reply, 220) if cmd.upper() == "STARTTLS" else reply

    def auth(self, mechanism: str, authobject: Callable[..., str | None], **kwargs: Any) -> Reply:
        """Authenticate, and return the reply. Raises ``SMTPAuthenticationError`` if refused.

        What the client sends here is removed from every reply that repeats it.
        """
        left = iter(range(_MAX_ANSWERS))

        def respond(*challenge: bytes) -> str | None:
            if next(left, None) is None:
                raise smtplib.SMTPException("the server's challenges do not end")
            response = authobject(*challenge)
            self._secrets |= replies.secrets_in(response or "")
            return response

        self._is_asked = True
        try:
            return super().auth(mechanism, respond, **kwargs)  # type: ignore[arg-type]
        except smtplib.SMTPAuthenticationError as error:
            if not is_positive(error.smtp_code):
                raise
            words = error.smtp_error
            return 235, words.encode() if isinstance(words, str) else words
        finally:
            self._is_asked = False

    def sendmail(
        self,
        from_addr: str,
        to_addrs: Any,
        msg: Any,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Send one mail, its whole envelope in one write if the server offers pipelining.

        MAIL, RCPT and DATA are then sent together and their replies read together (RFC 2920).
        smtplib still goes through them one by one. A signer signs the bytes that are sent.
        """
        if self.signer is not None:
            content = _LINE_END.sub("\r\n", msg).encode("ascii") if isinstance(msg, str) else msg
            msg = self.signer.sign(content)
        sender = self.envelope_from or from_addr
        recipients = [to_addrs] if isinstance(to_addrs, str) else to_addrs
        is_long = len(recipients) > _MAX_PIPELINED_RECIPIENTS
        pipelines = self.has_extn("pipelining") and not (is_long or mail_options or rcpt_options)
        self._pipelined_recipients = recipients if pipelines else ()
        return super().sendmail(sender, recipients, msg, mail_options, rcpt_options)

    def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """Send MAIL or, when pipelining, the whole envelope; return the reply to MAIL."""
        if self._pipelined_recipients:
            commands = self._envelope_commands(sender, options)
            self.send("".join(commands))
            self._early_replies = self._read_replies(len(commands))
            return _as_expected(self.getreply(), 250)
        return _as_expected(super().mail(sender, options), 250)

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """Send RCPT for one recipient and record the reply by position."""
        reply = self.getreply() if self._early_replies else super().rcpt(recip, options)
        self.recipient_replies.append(reply)
        return _as_expected(reply, 250)

    def data(self, msg: Any) -> Reply:
        """Send the content, fit for the wire, and record the server's reply to it."""
        reply = super().data(wire.cleaned(msg) if isinstance(msg, bytes) else msg)
        self.stage = Stage.ANSWERED
        self._content_is_next = False
        self.content_reply = reply
        return _as_expected(reply, 250)

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command unless it was pipelined; what is sent after DATA is the content."""
        self._content_is_next = False
        if self._early_replies and cmd != "data":
            self._discard_early_replies()
        if not self._early_replies:
            super().putcmd(cmd, args)
        self._content_is_next = cmd == "data" and self._collected_commands is None

    def send(self, s: Any) -> None:
        """Send before the deadline, and record when the last chunk of the content goes out.

        Until then the server has not seen the final dot and cannot have accepted the mail.
        """
        if self._collected_commands is not None:
            self._collected_commands.append(s)
            return
        data = s.encode(self.command_encoding) if isinstance(s, str) else s
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            if self.sock is not None:
                try:
                    self.sock.settimeout(self.seconds_left())
                except TimeoutError as error:
                    self.close()
                    raise smtplib.SMTPServerDisconnected(str(error)) from error
            if self._content_is_next and start + _CHUNK_BYTES >= len(view):
                self.stage = Stage.CONTENT
            super().send(view[start : start + _CHUNK_BYTES])

    def getreply(self) -> Reply:
        """Return the next reply, already received or read before the deadline."""
        awaits_go_ahead = self._content_is_next and self.stage is Stage.ENVELOPE
        if self._early_replies:
            reply = self._early_replies.popleft()
        else:
            if self.file is None:
                self.file = io.BufferedReader(_DeadlineReader(self))
            code, words = super().getreply()
            is_challenge = code == 334 and self._is_asked  # has to be answered as it came
            reply = code, words if is_challenge else replies.without_secrets(words, self._secrets)
        return _as_expected(reply, 354) if awaits_go_ahead else reply

    def _envelope_commands(self, sender: str, options: Sequence[str]) -> list[str]:
        """Return the commands from MAIL to DATA."""
        commands: list[str] = []
        self._collected_commands = commands
        try:
            self.putcmd("mail", " ".join([f"FROM:{_quote_address(sender)}", *options]))
            for recipient in self._pipelined_recipients:
                self.putcmd("rcpt", f"TO:{_quote_address(recipient)}")
            self.putcmd("data")
        finally:
            self._collected_commands = None
        return commands

    def _read_replies(self, count: int) -> deque[Reply]:
        """Read ``count`` replies, or as many as arrive before the server disconnects."""
        replies: deque[Reply] = deque()
        while len(replies) < count:
            try:
                replies.append(self.getreply())
            except smtplib.SMTPServerDisconnected:
                if not replies:
                    raise
                break  # the replies before it, such as a refusal, are the answer
            if replies[-1][0] == 421:  # RFC 5321, section 3.8: the server disconnects
                break
        return replies

    def _discard_early_replies(self) -> None:
        """Discard the replies to an envelope that smtplib abandoned.

        If the server nevertheless waits for the content, the connection is closed without sending
        the final dot.
        """
        waits_for_content = any(code // 100 == 3 for code, _ in self._early_replies)
        self._early_replies.clear()
        if waits_for_content:
            self.close()


def _as_expected(reply: Reply, code: int) -> Reply:
    """Return a reply with the code that smtplib expects if the first digit is the same."""
    return (code, reply[1]) if reply[0] // 100 == code // 100 else reply


class _DeadlineReader(io.RawIOBase):
    """Reads from a client's socket, never past the client's deadline."""

    def __init__(self, client: RecordingClient) -> None:
        self._client = client

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (sock := self._client.sock) is None:
            return 0
        sock.settimeout(self._client.seconds_left())
        self._client.heard += (count := sock.recv_into(buffer))
        is_greeting = self._client.stage is Stage.CONNECT
        if self._client.heard > (_MAX_GREETING_BYTES if is_greeting else _MAX_HEARD_BYTES):
            raise OSError("the server's replies about this mail do not end")
        return count


def _quote_address(address: str) -> str:
    """Return an address as an SMTP command gives it."""
    if addresses.is_plain_and_bare(address):
        return f"<{address}>"
    return smtplib.quoteaddr(address)
