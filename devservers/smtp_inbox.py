"""Keep what an SMTP server accepted."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from email.parser import BytesHeaderParser


@dataclass(frozen=True)
class AcceptedMessage:
    """A message the server took responsibility for.

    ``content`` is exact but for dot-stuffing; ``options`` are the parameters of MAIL, in capitals;
    ``connection`` is the number of its connection; ``time`` is the wall clock, in seconds.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    message_id: str
    connection: int
    time: float
    options: tuple[str, ...] = ()

    def header(self, name: str) -> str:
        """Return the value of a header of the message, or "" if it has none of that name."""
        return read_header(self.content, name)


def read_header(content: bytes, name: str) -> str:
    """Return the value of a header of a message, or "" if it has none of that name."""
    head = content.partition(b"\r\n\r\n")[0]
    return str(BytesHeaderParser().parsebytes(head).get(name, "")).strip()


class Inbox:
    """The accepted messages and the commands of an SMTP server, safe to use from any thread."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._accepted: list[AcceptedMessage] = []
        self._commands: Counter[str] = Counter()

    @property
    def accepted(self) -> list[AcceptedMessage]:
        """Return the messages accepted so far, in their order."""
        with self._arrived:
            return list(self._accepted)

    @property
    def commands(self) -> Counter[str]:
        """Return how often each command came, by its verb in capitals."""
        with self._arrived:
            return self._commands.copy()

    def by_message_id(self) -> dict[str, list[AcceptedMessage]]:
        """Return the messages accepted so far, by their Message-ID ("" for those without)."""
        messages = defaultdict(list)
        for message in self.accepted:
            messages[message.message_id].append(message)
        return dict(messages)

    def wait_for(self, count: int, timeout: float = 15.0) -> list[AcceptedMessage]:
        """Wait until at least ``count`` messages are accepted, and return them all.

        Raises:
            TimeoutError: when there are fewer after ``timeout`` seconds.
        """
        with self._arrived:
            if self._arrived.wait_for(lambda: len(self._accepted) >= count, timeout):
                return list(self._accepted)
            raise TimeoutError(
                f"Waited {timeout:g} s in vain for {count} message(s) at the SMTP server: "
                f"{len(self._accepted)} accepted, commands {dict(self._commands)}."
            )

    def forget(self) -> None:
        """Forget the messages accepted so far, and the counts of commands."""
        with self._arrived:
            self._accepted.clear()
            self._commands.clear()

    def add(self, message: AcceptedMessage) -> None:
        """Record a message as accepted."""
        with self._arrived:
            self._accepted.append(message)
            self._arrived.notify_all()

    def count(self, verb: str) -> None:
        """Count a command."""
        with self._arrived:
            self._commands[verb] += 1
