"""Make rules for the SMTP server: what it does wrong, at which stage of the dialogue, how often."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from devservers.process import wait_until
from devservers.smtp_actions import Action, Delay, Drop, Hang, Reply, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from devservers.smtp_session import Session

__all__ = [
    "Action",
    "Behaviour",
    "Delay",
    "DomainLimit",
    "Drop",
    "Hang",
    "Hold",
    "Reply",
    "Rule",
    "Stage",
    "delay",
    "drop",
    "hang",
    "refuse",
    "throttle",
]

# Called at each stage of each connection, in that connection's thread; None: no objection.
Behaviour: TypeAlias = "Callable[[Stage, Session], Action | None]"


@dataclass(eq=False)
class Rule:
    """A :data:`Behaviour` that takes ``action`` at ``stage`` (None: at every stage).

    It applies if ``when`` is true of the session, at most ``times`` times. ``hits`` counts how
    often it has applied.
    """

    stage: Stage | None
    action: Action
    when: Callable[[Session], bool] | None = None
    times: int | None = None
    hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Return the action and count it if the rule applies now."""
        with self._lock:
            if self.stage not in (None, stage) or self.hits == self.times:
                return None
            if self.when is not None and not self.when(session):
                return None
            self.hits += 1
            return self.action


class Hold:
    """A behaviour that holds clients at ``stage`` until released, then takes ``then``, if given."""

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
        """Wait for the release if the rule applies now."""
        if self._released.is_set() or self._rule(stage, session) is None:
            return None
        self._released.wait()
        return self._then

    @property
    def held(self) -> int:
        """How many times a client has reached the stage before the release."""
        return self._rule.hits

    def wait_until_held(self, timeout: float = 10.0, *, count: int = 1) -> None:
        """Wait until ``count`` clients have reached the stage.

        Raises:
            TimeoutError: if fewer have after ``timeout`` seconds.
        """
        wait_until(
            lambda: self.held >= count,
            timeout=timeout,
            what=f"{count} SMTP client(s) to be held at {self._rule.stage!r}",
            details=lambda: f"Held so far: {self.held}.",
        )

    def release(self) -> None:
        """Release all waiting clients; from now on no client is held."""
        self._released.set()


class DomainLimit:
    """A behaviour that takes ``most`` recipients of a domain in any second, and refuses the rest.

    ``taken`` and ``refused`` are the monotonic seconds at which it did.
    """

    def __init__(
        self, domain: str, most: int, text: str = "4.7.1 Rate limited: too many messages"
    ) -> None:
        self._ending = f"@{domain}"
        self._most = most
        self._reply = Reply(451, text)
        self._lock = threading.Lock()
        self.taken: list[float] = []
        self.refused: list[float] = []

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Return the refusal if the second is full."""
        if stage != "rcpt" or not session.recipient.endswith(self._ending):
            return None
        with self._lock:
            now = time.monotonic()
            if sum(now - it < 1.0 for it in self.taken[-self._most :]) >= self._most:
                self.refused.append(now)
                return self._reply
            self.taken.append(now)
            return None


def refuse(
    stage: Stage,
    code: int = 550,
    text: str = "5.7.1 Refused",
    *,
    recipient: Callable[[str], bool] | None = None,
    times: int | None = None,
) -> Rule:
    """Make a rule that refuses at ``stage``; with ``recipient``, only if it is true of an address.

    At "rcpt" that is the address of the command; at later stages, any accepted address.
    """

    def applies(session: Session) -> bool:
        assert recipient is not None  # noqa: S101 - only used with a recipient
        addresses = [session.recipient] if stage == "rcpt" else session.recipients
        return any(recipient(address) for address in addresses)

    return Rule(stage, Reply(code, text), applies if recipient else None, times)


def drop(
    stage: Stage, *, accepted: bool = False, reset: bool = False, times: int | None = None
) -> Rule:
    """Make a rule that closes the connection at ``stage`` without a reply."""
    return Rule(stage, Drop(accepted, reset), times=times)


def hang(stage: Stage = "connect", *, times: int | None = None) -> Rule:
    """Make a rule that stops replying at ``stage``."""
    return Rule(stage, Hang(), times=times)


def delay(seconds: float, stage: Stage | None = None, *, times: int | None = None) -> Rule:
    """Make a rule that waits before every reply, or only before those at ``stage``."""
    return Rule(stage, Delay(seconds), times=times)


def throttle(after: int, text: str = "4.7.0 Too many messages, slow down") -> Rule:
    """Make a rule that answers MAIL with 421 after ``after`` messages on a connection."""
    return Rule("mail", Reply(421, text), lambda session: session.accepted >= after)
