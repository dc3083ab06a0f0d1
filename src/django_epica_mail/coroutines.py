"""Turns functions into coroutine functions, named with the prefix ``a`` as in Django."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
T = TypeVar("T")


def coroutine_of(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return a coroutine function that runs ``function`` in the thread of Django's async queries.

    The call therefore takes part in that thread's transaction.
    """

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await sync_to_async(function, thread_sensitive=True)(*args, **kwargs)

    call.__name__ = f"a{function.__name__}"
    call.__qualname__ = call.__name__
    call.__doc__ = f"Await ``{function.__name__}`` and return its result."
    return call
