"""Going through many things a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter; reads no further ahead.

    As ``itertools.batched`` does, which Python has from 3.12 on.
    """
    iterator = iter(items)
    while portion := list(islice(iterator, size)):
        yield portion
