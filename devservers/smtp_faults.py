"""Say what the SMTP server does wrong, at which stage of the dialogue, and how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from devservers.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from devservers.smtp_session import Session

# The moments at which the server asks its rules. "connect" is before the greeting, "body" after
# the reply 354 and before the content is read, "content" after the final dot and before its reply;
# the others are before the reply to the command of that name.
Stage: TypeAlias = Literal[
    "connect", "ehlo", "auth", "mail", "rcpt", "data", "body", "content", "rset", "noop", "quit"
]


@dataclass(frozen=True)
class Reply:
    """Answer with this code and text; 4xx and 5xx refuse, others let the dialogue go on.

    The connection is closed after a 421 (RFC 5321, section 3.8) and after a refusal at "connect".
    """

    code: int
    text: str


@dataclass(frozen=True)
class Drop:
    """Close the connection without a reply.

    At "content", ``accepted`` says whether the server keeps the message all the same.
    ``reset`` sends RST instead of FIN.
    """

    accepted: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Hang:
    """Never speak again on this connection; it stays open until the client or the server ends."""


@dataclass(frozen=True)
class Delay:
    """Wait so many seconds, then ask the rules that follow."""

    seconds: float


Action: TypeAlias = Reply | Drop | Hang | Delay
# Asked at each stage of each connection, from that connection's thread; None: nothing to object.
Behaviour: TypeAlias = "Callable[[Stage, Session], Action | None]"


@dataclass(eq=False)
class Rule:
    """Take ``action`` at ``stage`` (None: at every one) when ``when`` holds, ``times`` times.

    ``hits`` counts how often it was taken. A rule is a :data:`Behaviour`.
    """

    stage: Stage | None
    action: Action
    when: Callable[[Session], bool] | None = None
    times: int | None = None
    hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Return the action if the rule applies now, and count it."""
        with self._lock:
            if self.stage not in (None, stage) or self.hits == self.times:
                return None
            if self.when is not None and not self.when(session):
                return None
            self.hits += 1
            return self.action


class Hold:
    """Keep clients waiting at ``stage`` until released, then let them go on, or take ``then``."""

    def __init__(
        self,
        stage: Stage,
        *,
        when: Callable[[Session], bool] | None = None,
        times: int | None = None,
        then: Action | None = None,
    ) -> None:
        self._rule = Rule(stage, Delay(0), when, times)
        self._then = then
        self._released = threading.Event()

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Wait if the rule applies now and is not yet released."""
        if self._released.is_set() or self._rule(stage, session) is None:
            return None
        self._released.wait()
        return self._then

    @property
    def held(self) -> int:
        """Return how many times a client has reached the stage before the release."""
        return self._rule.hits

    def wait_until_held(self, timeout: float = 10.0, *, count: int = 1) -> None:
        """Wait until ``count`` clients have reached the stage.

        Raises:
            TimeoutError: when they have not after ``timeout`` seconds.
        """
        wait_until(
            lambda: self.held >= count,
            timeout=timeout,
            what=f"{count} SMTP client(s) held at {self._rule.stage!r}",
            details=lambda: f"{self.held} got there.",
        )

    def release(self) -> None:
        """Let all waiting clients go on; from now on nobody is held."""
        self._released.set()


def refuse(
    stage: Stage,
    code: int = 550,
    text: str = "5.7.1 Refused",
    *,
    recipient: Callable[[str], bool] | None = None,
    times: int | None = None,
) -> Rule:
    """Make a rule that refuses at ``stage``; with ``recipient``, only the addresses it is true of.

    At "rcpt" the address is the one of the command; at later stages any accepted one will do.
    """

    def concerned(session: Session) -> bool:
        assert recipient is not None  # noqa: S101 - only used with one
        addresses = [session.recipient] if stage == "rcpt" else session.recipients
        return any(recipient(address) for address in addresses)

    return Rule(stage, Reply(code, text), concerned if recipient else None, times)


def drop(
    stage: Stage, *, accepted: bool = False, reset: bool = False, times: int | None = None
) -> Rule:
    """Make a rule that closes the connection at ``stage`` without a reply."""
    return Rule(stage, Drop(accepted, reset), times=times)


def hang(stage: Stage = "connect", *, times: int | None = None) -> Rule:
    """Make a rule that never speaks again from ``stage`` on."""
    return Rule(stage, Hang(), times=times)


def delay(seconds: float, stage: Stage | None = None, *, times: int | None = None) -> Rule:
    """Make a rule that waits before every reply, or before those at ``stage``."""
    return Rule(stage, Delay(seconds), times=times)


def throttle(after: int, text: str = "4.7.0 Too many messages, slow down") -> Rule:
    """Make a rule that answers 421 to the next MAIL after so many messages per connection."""
    return Rule("mail", Reply(421, text), lambda session: session.accepted >= after)
