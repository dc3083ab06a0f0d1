"""Conduct the server's side of one SMTP dialogue (RFC 5321)."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Protocol

from devservers.smtp_actions import Drop, Hang, Reply
from devservers.smtp_wire import ConnectionEnded, Wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from devservers.smtp_actions import Action, Stage

_XOAUTH2 = re.compile(r"user=(?P<user>[^\x01]*)\x01auth=Bearer (?P<token>[^\x01]+)\x01\x01")
_OAUTHBEARER = re.compile(
    r"n,a=(?P<user>[^,\x01]*),\x01(?:host=[^\x01]+\x01port=\d+\x01)?"
    r"auth=Bearer (?P<token>[^\x01]+)\x01\x01"
)
_PATH = re.compile(r'(?:FROM|TO):\s*<((?:"(?:\\.|[^"\\])*"|[^<>"])*)>(.*)', re.IGNORECASE)


class Host(Protocol):
    """What a session needs from its server."""

    credentials: dict[str, str]
    accepts_token: Callable[[str, str], bool] | None
    mechanisms: tuple[str, ...]
    max_size: int
    smtputf8: bool
    pipelining: bool

    def judge(self, stage: Stage, session: Session) -> Action | None:
        """Return the action that the rules demand at this stage, after any delay."""

    def count(self, verb: str) -> None:
        """Count a command."""

    def keep(self, session: Session) -> None:
        """Record the session's message as accepted."""


class Session:
    """One connection: the dialogue, and the state that rules may read.

    ``number`` counts connections from 1. ``options`` are the parameters of MAIL, ``recipient`` is
    the address of the current RCPT command, ``recipients`` are the accepted addresses, ``content``
    is the message once its final dot has arrived, and ``accepted`` is the number of messages
    accepted on this connection so far.
    """

    sender: str | None
    options: tuple[str, ...]
    recipient: str
    recipients: list[str]
    content: bytes

    def __init__(self, number: int, connection: socket.socket, host: Host) -> None:
        self.number = number
        self.helo: str | None = None
        self.user: str | None = None
        self.accepted = 0
        self._host = host
        self._wire = Wire(connection)
        self._forget_mail()
        self._steps: dict[str, Callable[[str], None]] = {
            "EHLO": self._ehlo,
            "HELO": self._helo,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
            "VRFY": self._vrfy,
            "QUIT": self._quit,
        }

    def talk(self) -> None:
        """Conduct the dialogue until either side ends it; the caller closes the socket."""
        try:
            if self._agree("connect", 220, "smtp.test ESMTP ready"):
                while True:
                    self._obey(self._wire.line())
        except (ConnectionEnded, OSError):
            return

    def _obey(self, line: str) -> None:
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        self._host.count(verb)
        if step := self._steps.get(verb):
            step(argument.strip())
        else:
            self._wire.say(500, "5.5.2 Command not known")

    def _agree(self, stage: Stage, code: int, *texts: str, keep: bool = False) -> bool:
        """Send this reply, or the one the rules demand; return whether it was positive.

        With ``keep``, the message is recorded as accepted before a positive reply is sent.
        """
        refusal = self._apply_rules(stage)
        if refusal is not None:
            code, texts = refusal.code, (refusal.text,)
        agreed = code // 100 == (3 if stage == "data" else 2)  # RFC 5321, section 4.2.1
        if agreed and keep:
            self._keep()
        self._wire.say(code, *texts)
        if code == 421:
            raise ConnectionEnded
        return agreed

    def _apply_rules(self, stage: Stage) -> Reply | None:
        """Take the action that the rules demand; return the reply that replaces ours, if any."""
        match self._host.judge(stage, self):
            case Drop(accepted=accepted, reset=reset):
                if accepted and stage == "content":
                    self._keep()
                if reset:
                    self._wire.reset()
                raise ConnectionEnded
            case Hang():
                self._wire.ignore()
                raise ConnectionEnded
            case Reply() as reply:
                return reply
        return None

    def _helo(self, name: str) -> None:
        if self._agree("ehlo", 250, "smtp.test"):
            self._forget_mail()
            self.helo = name

    def _ehlo(self, name: str) -> None:
        extensions = ["8BITMIME", "ENHANCEDSTATUSCODES"]
        if self._host.pipelining:
            extensions.append("PIPELINING")
        extensions.append(f"SIZE {self._host.max_size}")
        if self._host.smtputf8:
            extensions.append("SMTPUTF8")
        mechanisms = ["PLAIN", "LOGIN"] if self._host.credentials else []
        if self._host.accepts_token is not None:
            mechanisms += self._host.mechanisms
        if mechanisms:
            extensions.append(f"AUTH {' '.join(mechanisms)}")
        if self._agree("ehlo", 250, "smtp.test", *extensions):
            self._forget_mail()
            self.helo = name

    def _auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if self._host.accepts_token is not None and mechanism.upper() in self._host.mechanisms:
            self._auth_with_token(mechanism.upper(), initial)
            return
        try:
            match mechanism.upper():
                case "PLAIN":
                    response = _decode(initial) if initial else self._ask("")
                    _, user, password = response.split("\0")
                case "LOGIN":
                    user = _decode(initial) if initial else self._ask("Username:")
                    password = self._ask("Password:")
                case _:
                    self._wire.say(504, "5.5.4 Mechanism not supported")
                    return
        except ValueError:
            self._wire.say(501, "5.5.2 Response cannot be decoded")
            return
        if self._host.credentials.get(user) != password:
            self._wire.say(535, "5.7.8 Credentials refused")
        elif self._agree("auth", 235, "2.7.0 Authenticated"):
            self.user = user

    def _auth_with_token(self, mechanism: str, initial: str) -> None:
        """Check an access token (XOAUTH2 of Google and Microsoft; OAUTHBEARER, RFC 7628)."""
        assert self._host.accepts_token is not None  # noqa: S101 - for the type checker
        try:
            response = _decode(initial) if initial else self._ask("")
        except ValueError:
            self._wire.say(501, "5.5.2 Response cannot be decoded")
            return
        form = _XOAUTH2 if mechanism == "XOAUTH2" else _OAUTHBEARER
        parts = form.fullmatch(response)
        if parts is None:
            self._wire.say(501, "5.5.2 Syntax of the response")
        elif self._host.accepts_token(parts["user"], parts["token"]):
            if self._agree("auth", 235, "2.7.0 Authenticated"):
                self.user = parts["user"]
        else:
            answer = self._ask('{"status":"401","schemes":"bearer"}')
            expected = "" if mechanism == "XOAUTH2" else "\x01"
            code = 535 if answer == expected else 501
            self._wire.say(code, "5.7.8 Token refused" if code == 535 else "5.5.2 Empty expected")

    def _ask(self, prompt: str) -> str:
        self._wire.say(334, base64.b64encode(prompt.encode()).decode())
        return _decode(self._wire.line())

    def _mail(self, argument: str) -> None:
        path = _PATH.fullmatch(argument)
        if self.helo is None or self.sender is not None:
            self._wire.say(503, "5.5.1 EHLO first, then one MAIL at a time")
        elif self.user is None and (self._host.credentials or self._host.accepts_token):
            self._wire.say(530, "5.7.0 Authentication required")
        elif path is None:
            self._wire.say(501, "5.5.4 Syntax: MAIL FROM:<address>")
        else:
            self.options = tuple(path[2].upper().split())
            problem = self._option_problem() or self._address_problem(path[1])
            if problem:
                self._wire.say(problem.code, problem.text)
            else:
                self.sender = path[1]
                if self._agree("mail", 250, "2.1.0 Sender ok"):
                    return
            self._forget_mail()

    def _rcpt(self, argument: str) -> None:
        path = _PATH.fullmatch(argument)
        if self.sender is None:
            self._wire.say(503, "5.5.1 MAIL first")
        elif path is None or not path[1]:
            self._wire.say(501, "5.5.4 Syntax: RCPT TO:<address>")
        elif problem := self._address_problem(path[1]):
            self._wire.say(problem.code, problem.text)
        else:
            self.recipient = path[1]
            if self._agree("rcpt", 250, "2.1.5 Recipient ok"):
                self.recipients.append(path[1])

    def _option_problem(self) -> Reply | None:
        for option in self.options:
            name, _, value = option.partition("=")
            if name == "SIZE" and value.isdecimal():
                if int(value) > self._host.max_size:
                    return Reply(552, "5.3.4 Message too big")
            elif option == "SMTPUTF8" and self._host.smtputf8:
                continue
            elif option not in ("BODY=7BIT", "BODY=8BITMIME"):
                return Reply(555, f"5.5.4 Parameter {name} not supported")
        return None

    def _address_problem(self, address: str) -> Reply | None:
        if address.isascii() or "SMTPUTF8" in self.options:
            return None
        return Reply(553, "5.6.7 Address needs SMTPUTF8")

    def _data(self, argument: str) -> None:
        if not self.recipients:
            self._wire.say(503, "5.5.1 No valid recipients")
            return
        if not self._agree("data", 354, "End data with <CR><LF>.<CR><LF>"):
            return
        self._apply_rules("body")
        self.content = self._wire.content()
        if len(self.content) > self._host.max_size:
            self._wire.say(552, "5.3.4 Message too big")
        else:
            self._agree("content", 250, "2.0.0 Accepted", keep=True)
        self._forget_mail()

    def _rset(self, argument: str) -> None:
        if self._agree("rset", 250, "2.0.0 Ok"):
            self._forget_mail()

    def _noop(self, argument: str) -> None:
        self._agree("noop", 250, "2.0.0 Ok")

    def _vrfy(self, argument: str) -> None:
        self._wire.say(252, "2.5.0 Cannot verify, but will take the message")

    def _quit(self, argument: str) -> None:
        self._agree("quit", 221, "2.0.0 Bye")
        raise ConnectionEnded

    def _keep(self) -> None:
        self.accepted += 1
        self._host.keep(self)

    def _forget_mail(self) -> None:
        self.sender = None
        self.options = ()
        self.recipient = ""
        self.recipients = []
        self.content = b""


def _decode(text: str) -> str:
    """Decode a response to AUTH; raise ``ValueError`` if it is invalid, such as "*" (cancel)."""
    return base64.b64decode(text, validate=True).decode()
