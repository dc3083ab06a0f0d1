"""Functions as coroutines, named as Django names its own: with an ``a`` before."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
T = TypeVar("T")


def coroutine_of(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return a function as a coroutine function, run in the thread that has the request's database.

    As Django's own asynchronous queries are: so it takes part in the transaction of that thread.
    """

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await sync_to_async(function, thread_sensitive=True)(*args, **kwargs)

    call.__name__ = f"a{function.__name__}"
    call.__qualname__ = call.__name__
    call.__doc__ = f"Await what ``{function.__name__}`` does and returns."
    return call
