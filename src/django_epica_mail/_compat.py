"""Substitutes for what older versions of Python and some platforms lack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar


def run_after_fork(function: Callable[[], object]) -> None:
    """Call a function in every process that this one forks, on platforms that can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last may be shorter. Reads one list at a time.

    Like ``itertools.batched``, which is new in Python 3.12.
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
