"""Record what an SMTP server accepted."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from email.parser import BytesHeaderParser


@dataclass(frozen=True)
class AcceptedMessage:
    """A message the server took responsibility for.

    ``content`` is exact, with dot-stuffing removed; ``connection`` is the number of its
    connection; ``time`` is the wall-clock time in seconds; ``options`` are the parameters of MAIL
    in capitals.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    message_id: str
    connection: int
    time: float
    options: tuple[str, ...] = ()

    def header(self, name: str) -> str:
        """Return the value of a header of the message, or "" if it is missing."""
        return read_header(self.content, name)


def read_header(content: bytes, name: str) -> str:
    """Return the value of a header of a message, or "" if it is missing."""
    head = content.partition(b"\r\n\r\n")[0]
    return str(BytesHeaderParser().parsebytes(head).get(name, "")).strip()


class Inbox:
    """The messages and command counts of an SMTP server; safe to use from any thread."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._accepted: list[AcceptedMessage] = []
        self._commands: Counter[str] = Counter()

    @property
    def accepted(self) -> list[AcceptedMessage]:
        """The messages accepted so far, in order."""
        with self._arrived:
            return list(self._accepted)

    @property
    def commands(self) -> Counter[str]:
        """How often each command was received, by its verb in capitals."""
        with self._arrived:
            return self._commands.copy()

    def by_message_id(self) -> dict[str, list[AcceptedMessage]]:
        """Return the messages accepted so far, by Message-ID ("" if it is missing)."""
        messages = defaultdict(list)
        for message in self.accepted:
            messages[message.message_id].append(message)
        return dict(messages)

    def wait_for(self, count: int, timeout: float = 15.0) -> list[AcceptedMessage]:
        """Wait until at least ``count`` messages are accepted, and return all of them.

        Raises:
            TimeoutError: if there are fewer after ``timeout`` seconds.
        """
        with self._arrived:
            if self._arrived.wait_for(lambda: len(self._accepted) >= count, timeout):
                return list(self._accepted)
            raise TimeoutError(
                f"Timed out after {timeout:g} s waiting for {count} message(s) at the SMTP server: "
                f"{len(self._accepted)} accepted, commands {dict(self._commands)}."
            )

    def forget(self) -> None:
        """Forget the messages accepted so far and the command counts."""
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
