"""Kill started processes when the process that started them is gone, however it ended.

``PR_SET_PDEATHSIG`` is no way to do it: it is bound to the thread that started the child, it is
lost when the child changes its user, and it would need code between fork and exec. So one small
process holds the reading end of a pipe: when the writing end closes, its owner has ended (even by
SIGKILL), and every process group still on the list is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import IO

_PROGRAM = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Reaper:
    """Watch over process groups on behalf of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._popen: subprocess.Popen[str] | None = None

    def watch(self, group: int) -> None:
        """Have the process group with this id killed once this process is gone."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Take the process group with this id off the list."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End the watching process; what is still on its list is killed."""
        with self._lock:
            if self._popen is not None and self._owner == os.getpid():
                self._pipe(self._popen).close()
                self._popen.wait()
            self._popen = None

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._popen is None or self._owner != os.getpid():
                self._owner = os.getpid()
                self._popen = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                    cwd="/",
                )
            pipe = self._pipe(self._popen)
            pipe.write(line)
            pipe.flush()

    @staticmethod
    def _pipe(popen: subprocess.Popen[str]) -> IO[str]:
        assert popen.stdin is not None  # noqa: S101 - opened with stdin=PIPE
        return popen.stdin
