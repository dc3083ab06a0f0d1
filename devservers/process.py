"""Run a program in a process that can be stopped, killed and paused, and never stays behind."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import psutil
    from typing_extensions import Self

T = TypeVar("T")

# Below the ranges from which Linux (32768 on) and macOS (49152 on) take the ports of outgoing
# connections: while a server is down nobody else gets its port, and a client that tries to reach
# it cannot connect to itself (TCP simultaneous open).
_PORTS = range(20_000, 32_000)
_handed_out: set[int] = set()
_reaper = Reaper()
_owner = os.getpid()


def free_port() -> int:
    """Return a TCP port on which nothing listens on 127.0.0.1, never the same one twice.

    Raises:
        RuntimeError: when a hundred random ports between 20000 and 32000 are all taken.
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
        "stop servers left over from earlier runs."
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

    ``what`` names what is waited for, as in "the worker to be ready"; ``details`` is asked only
    on failure, for instance for the end of a log.

    Raises:
        TimeoutError: when ``condition`` is still false after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            explanation = f"\n{details()}" if details else ""
            raise TimeoutError(f"Waited {timeout:g} s in vain for {what}.{explanation}")
        time.sleep(interval)
    return value


class ManagedProcess:
    """Run ``command`` in a session of its own, its output appended to the file ``log``.

    Used as a context manager it is started on entry and stopped on exit. It can be started again
    after it ended. Whatever is running when this Python process ends, even by SIGKILL, is killed.

    ``env`` is the whole environment (default: this process's own). ``user`` is the name of the
    user to run as, which only root may choose.
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
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.cwd = cwd
        self.env = env
        self.user = user
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.log.stem}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def is_ready(self) -> bool:
        """Tell whether the started process can do its work; a server overrides this."""
        return True

    def start(self, timeout: float = 30.0) -> None:
        """Start the process and wait at most ``timeout`` seconds until it is ready.

        Raises:
            RuntimeError: when it is running already, or died at its start (with its log's end).
            TimeoutError: when it is not ready in time; it is killed then.
        """
        if self.is_alive():
            raise RuntimeError(f"{self!r} is running already: stop it before starting it again.")
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
        """Ask the process to end, with ``signal`` (default: ``stop_signal``), and wait for it.

        Returns its exit code (negative: the signal that ended it), or None if it was not started.

        Raises:
            TimeoutError: when it did not end within ``timeout`` seconds; it is killed then.
        """
        popen = self._popen
        if popen is None:
            return None
        family = _family(popen)
        if popen.poll() is None:
            # A paused process would hear the signal only once it goes on.
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

    def pause(self) -> None:
        """Freeze the process and all its descendants with SIGSTOP: it neither works nor ends."""
        self._signal(SIGSTOP)

    def resume(self) -> None:
        """Let a paused process and all its descendants go on."""
        self._signal(SIGCONT)

    def is_alive(self) -> bool:
        """Tell whether the process was started and has not ended (a paused one is alive)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id; raise RuntimeError when it is not running."""
        if self._popen is None or self._popen.poll() is not None:
            raise RuntimeError(f"{self!r} is not running: start it first.")
        return self._popen.pid

    def children(self) -> list[int]:
        """Return the process ids of its living direct children, in ascending order."""
        return process_tree.children(self.pid)

    def log_text(self, *, since_start: bool = False) -> str:
        """Return what it wrote, to stdout and stderr, in all its runs or in the last one."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._log_start if since_start else 0)
            return file.read().decode(errors="replace")

    def log_tail(self, lines: int = 40) -> str:
        """Return the last ``lines`` of the log under a heading, for an error message."""
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
        """Kill what is left of the process and its ``family``, and let go of it."""
        process_tree.send(SIGKILL, group=popen.pid, processes=family)
        code = popen.wait()
        wait_until(
            lambda: all(process_tree.is_gone(process) for process in family),
            timeout=10,
            what=f"the processes of {self!r} to be gone",
        )
        _reaper.forget(popen.pid)
        # Another thread may have killed it meanwhile, and started it again.
        if self._popen is popen:
            self._popen = None
            self.running.discard(self)
        return code


def _family(popen: subprocess.Popen[bytes]) -> list[psutil.Process]:
    # Once it has ended, its process id may be another's.
    return process_tree.tree(popen.pid) if popen.poll() is None else []


@atexit.register
def _kill_everything() -> None:
    # A forked child that exits has inherited the list, but not the right to act on it.
    if os.getpid() == _owner:
        for process in list(ManagedProcess.running):
            process.kill()
        _reaper.close()
