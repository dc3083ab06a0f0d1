"""Name the stages of an SMTP dialogue, and what a server may do at each instead of going on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# When the server asks its rules: "connect" is before the greeting, "body" after the reply 354 and
# before the content is read, "content" after the final dot and before its reply; the others are
# before the reply to the command of that name.
Stage: TypeAlias = Literal[
    "connect", "ehlo", "auth", "mail", "rcpt", "data", "body", "content", "rset", "noop", "quit"
]


@dataclass(frozen=True)
class Reply:
    """Answer with this code and text; only 2xx (3xx at "data") continues the dialogue.

    The connection is closed after a 421 (RFC 5321, section 3.8) and after a refusal at "connect".
    """

    code: int
    text: str


@dataclass(frozen=True)
class Drop:
    """Close the connection without a reply.

    ``accepted`` (at "content" only) accepts the message nevertheless. ``reset`` sends RST instead
    of FIN.
    """

    accepted: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Hang:
    """Stop replying on this connection; it stays open until the client or the server closes it."""


@dataclass(frozen=True)
class Delay:
    """Wait ``seconds``, then ask the rules that follow."""

    seconds: float


Action: TypeAlias = Reply | Drop | Hang | Delay
