"""Run one function inside the example project, in this process.

    python -m tests.acceptance.inside FUNCTION ARGUMENTS RESULT

Sets up Django, calls the function with the dotted path FUNCTION, and writes its result as JSON to
the file RESULT. ARGUMENTS is a JSON array of an array of positional arguments and an object of
keyword arguments.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Call ``work`` with 0 to ``count`` - 1, each in its own forked process, all at once.

    Raises:
        RuntimeError: if one of them fails; its traceback is in the log.
    """
    connections.close_all()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_run_child, args=(work, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = sum(process.exitcode != 0 for process in processes)
    if failed:
        raise RuntimeError(f"{failed} of {count} processes failed: see the log.")


def _run_child(work: Callable[[int], None], number: int) -> None:
    try:
        work(number)
    finally:
        connections.close_all()


def main(path: str, arguments: str, result: str) -> None:
    """Set up Django, call the function, and store its result."""
    django.setup()
    module, _, name = path.rpartition(".")
    args, kwargs = json.loads(arguments)
    returned = getattr(import_module(module), name)(*args, **kwargs)
    Path(result).write_text(json.dumps(returned))
    connections.close_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
