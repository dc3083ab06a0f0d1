"""What newer versions of Python bring, and what platforms lack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar


def run_after_fork(function: Callable[[], object]) -> None:
    """Call a function in every process that this one forks; on Windows there is none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter; reads no further ahead.

    As ``itertools.batched`` does, which Python has from 3.12 on.
    """
    iterator = iter(items)
    while portion := list(islice(iterator, size)):
        yield portion
