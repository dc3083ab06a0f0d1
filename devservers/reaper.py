"""Kill started processes once the process that started them has ended, even by SIGKILL.

``PR_SET_PDEATHSIG`` cannot do this: it is bound to the thread that started the child, it is lost
when the child changes its user, and it needs code between fork and exec. Instead, one small
process reads from a pipe: when the write end closes, its owner has ended, and the reader kills
every process group still on its list.
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
    """The list of process groups to kill once this process has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._popen: subprocess.Popen[str] | None = None

    def watch(self, group: int) -> None:
        """Add a process group to the list."""
        self._write(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Remove a process group from the list."""
        self._write(f"-{group}\n")

    def close(self) -> None:
        """End the reading process, which kills what is still on its list."""
        with self._lock:
            if self._popen is not None and self._owner == os.getpid():
                self._pipe(self._popen).close()
                self._popen.wait()
            self._popen = None

    def _write(self, line: str) -> None:
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
