"""Connections and locks are one process's own: what is to be done in each that is forked."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_each_child(function: Callable[[], object]) -> None:
    """Call a function in every process that this one forks; on Windows there is none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
