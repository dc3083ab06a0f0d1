"""Define how everything in this package is started, stopped and used in a ``with`` block."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from types import TracebackType

    from typing_extensions import Self


class Service:
    """Anything that runs between ``start`` and ``stop``.

    As a context manager it starts on entry; on exit it stops and then closes.
    """

    def start(self) -> None:
        """Start, and return once it is ready for use."""
        raise NotImplementedError

    def stop(self) -> object:
        """Stop, and return once it has ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what outlives ``stop``; nothing by default."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self.close()


def stop_listening(listener: socket.socket, thread: threading.Thread) -> None:
    """End a thread that accepts connections, and close its socket."""
    # A thread that waits in accept() is woken by a connection, but not by close().
    with contextlib.suppress(OSError), socket.create_connection(listener.getsockname(), 5):
        thread.join()
    listener.close()
