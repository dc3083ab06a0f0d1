"""Inspect and signal a process together with all its descendants."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable
    from signal import Signals


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and its descendants, including those in other process groups."""
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    return []


def children(pid: int) -> list[int]:
    """Return the process ids of the live direct children, in ascending order."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return sorted(child.pid for child in psutil.Process(pid).children() if not is_gone(child))
    return []


def send(number: Signals, *, group: int, processes: Iterable[psutil.Process]) -> None:
    """Signal a process group and the given processes, if they still exist.

    The group includes children forked in the meantime; ``processes`` includes those that have left
    the group, as PostgreSQL's backends do.
    """
    # macOS answers "not permitted" for a group that contains only zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_gone(process: psutil.Process) -> bool:
    """Return whether the process has ended, even if its parent has not collected it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
