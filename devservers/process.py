"""Run a program in a process that can be stopped, killed and paused, and never outlives us."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import socket
import subprocess
import time
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING, ClassVar, TypeVar

from devservers import process_tree
from devservers.reaper import Reaper
from devservers.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import psutil

T = TypeVar("T")

# Below the ranges from which Linux (from 32768) and macOS (from 49152) take the ports of outgoing
# connections: while a server is down nothing else gets its port, and a client that tries to reach
# it cannot connect to itself (TCP simultaneous open).
_PORTS = range(20_000, 32_000)
_handed_out: set[int] = set()
_reaper = Reaper()
_owner = os.getpid()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is not in use, never the same one twice.

    Raises:
        RuntimeError: if a hundred random ports between 20000 and 32000 are all taken.
    """
    for port in random.sample(_PORTS, 100):
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise RuntimeError(
        f"No free port among 100 tried between {_PORTS.start} and {_PORTS.stop}: "
        "stop the servers left over from earlier runs."
    )


def wait_until(
    condition: Callable[[], T],
    *,
    timeout: float,
    what: str,
    details: Callable[[], str] | None = None,
    interval: float = 0.02,
) -> T:
    """Poll ``condition`` every ``interval`` seconds until it is true, and return its value.

    The error message is "Timed out after 5 s waiting for {what}." and what ``details`` returns, for
    instance the end of a log.

    Raises:
        TimeoutError: if ``condition`` is still false after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            explanation = f"\n{details()}" if details else ""
            raise TimeoutError(f"Timed out after {timeout:g} s waiting for {what}.{explanation}")
        time.sleep(interval)
    return value


class ManagedProcess(Service):
    """A process that runs ``command`` in its own session and appends its output to ``log``.

    After it has ended it can be started again. Whatever is still running when this Python process
    ends, even by SIGKILL, is killed.

    ``env`` is the whole environment (default: this process's). ``user`` is the name of the user
    to run as; only root may choose one. The process is ready once its log contains
    ``ready_line``; subclasses may override ``is_ready`` instead.
    """

    stop_signal: ClassVar[Signals] = SIGTERM
    running: ClassVar[set[ManagedProcess]] = set()

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        ready_line: str = "",
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.cwd = cwd
        self.env = env
        self.user = user
        self.ready_line = ready_line
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.log.stem}>"

    def is_ready(self) -> bool:
        """Return whether the started process can do its work."""
        return self.ready_line in self.log_text(since_start=True)

    def start(self, timeout: float = 30.0) -> None:
        """Start the process and wait at most ``timeout`` seconds until it is ready.

        Raises:
            RuntimeError: if it is already running, or ends before it is ready (the message
                contains the end of its log).
            TimeoutError: if it is not ready in time; it is then killed.
        """
        if self.is_alive():
            raise RuntimeError(f"{self!r} is already running: stop it before starting it again.")
        self.kill()
        self._spawn()
        try:
            wait_until(
                lambda: not self.is_alive() or self.is_ready(),
                timeout=timeout,
                what=f"{self!r} to be ready",
                details=self.log_tail,
            )
            if not self.is_alive():
                assert self._popen is not None  # noqa: S101 - spawned above
                raise RuntimeError(
                    f"{self!r} ended at its start with code {self._popen.returncode}: "
                    f"{' '.join(self.command)}\n{self.log_tail()}"
                )
        except BaseException:
            self.kill()
            raise

    def stop(self, signal: Signals | None = None, timeout: float = 15.0) -> int | None:
        """Ask the process to end with ``signal`` (default: ``stop_signal``), and wait for it.

        Returns its exit code (negative: the signal that ended it), or None if it was not started.

        Raises:
            TimeoutError: if it does not end within ``timeout`` seconds; it is then killed.
        """
        popen = self._popen
        if popen is None:
            return None
        family = _family(popen)
        if popen.poll() is None:
            # A paused process would not act on the signal until it is resumed.
            process_tree.send(SIGCONT, group=popen.pid, processes=family)
            popen.send_signal(signal or self.stop_signal)
            try:
                popen.wait(timeout)
            except subprocess.TimeoutExpired:
                tail = self.log_tail()
                self._clear_up(popen, _family(popen))
                raise TimeoutError(
                    f"{self!r} did not end within {timeout:g} s and was killed.\n{tail}"
                ) from None
        return self._clear_up(popen, family)

    def kill(self) -> int | None:
        """Kill the process and all its descendants with SIGKILL, and wait until they are gone."""
        popen = self._popen
        return None if popen is None else self._clear_up(popen, _family(popen))

    def close(self) -> None:
        """Kill the process if it is running."""
        self.kill()

    def pause(self) -> None:
        """Freeze the process and all its descendants with SIGSTOP: it neither works nor ends."""
        self._signal(SIGSTOP)

    def resume(self) -> None:
        """Resume a paused process and all its descendants."""
        self._signal(SIGCONT)

    def is_alive(self) -> bool:
        """Return whether the process was started and has not ended (a paused one is alive)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id; raise ``RuntimeError`` if it is not running."""
        if self._popen is None or self._popen.poll() is not None:
            raise RuntimeError(f"{self!r} is not running: start it first.")
        return self._popen.pid

    def children(self) -> list[int]:
        """Return the process ids of its live direct children, in ascending order."""
        return process_tree.children(self.pid)

    def log_text(self, *, since_start: bool = False) -> str:
        """Return what it wrote to stdout and stderr, in all runs or since the last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._log_start if since_start else 0)
            return file.read().decode(errors="replace")

    def log_tail(self, lines: int = 40) -> str:
        """Return the last ``lines`` lines of the log under a heading, for an error message."""
        tail = "\n".join(self.log_text(since_start=True).splitlines()[-lines:])
        return f"--- end of {self.log} ---\n{tail or '(empty)'}"

    def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                env=self.env,
                start_new_session=True,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
            )
        self.running.add(self)
        _reaper.watch(self._popen.pid)

    def _signal(self, number: Signals) -> None:
        process_tree.send(number, group=self.pid, processes=process_tree.tree(self.pid))

    def _clear_up(self, popen: subprocess.Popen[bytes], family: list[psutil.Process]) -> int:
        """Kill what is left of the process and its ``family``; return its exit code."""
        process_tree.send(SIGKILL, group=popen.pid, processes=family)
        code = popen.wait()
        wait_until(
            lambda: all(process_tree.is_gone(process) for process in family),
            timeout=10,
            what=f"the processes of {self!r} to be gone",
        )
        _reaper.forget(popen.pid)
        # Another thread may have killed it in the meantime and started it again.
        if self._popen is popen:
            self._popen = None
            self.running.discard(self)
        return code


def _family(popen: subprocess.Popen[bytes]) -> list[psutil.Process]:
    # Once it has ended, its process id may belong to another process.
    return process_tree.tree(popen.pid) if popen.poll() is None else []


@atexit.register
def _kill_everything() -> None:
    # A forked child inherits the list but must not act on it when it exits.
    if os.getpid() == _owner:
        for process in list(ManagedProcess.running):
            process.kill()
        _reaper.close()
