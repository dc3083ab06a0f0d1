"""The substitutes behave like what newer versions of Python and other platforms have."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from django_epica_mail import _compat


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_batches_are_full_except_the_last(count) -> None:
    batches = list(_compat.batched(range(count), 3))
    assert [len(batch) for batch in batches[:-1]] == [3] * max(0, len(batches) - 1)
    assert [it for batch in batches for it in batch] == list(range(count))
    assert [] not in batches
    if sys.version_info >= (3, 12):
        assert batches == [list(batch) for batch in itertools.batched(range(count), 3)]


def test_one_batch_is_read_at_a_time() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(7):
            read.append(number)
            yield number

    batches = _compat.batched(numbers(), 3)
    assert read == []
    assert next(batches) == [0, 1, 2]
    assert read == [0, 1, 2]
    assert list(batches) == [[3, 4, 5], [6]]


FORK = """
import os
from django_epica_mail import _compat

calls = []
_compat.run_after_fork(lambda: calls.append(os.getpid()))
if child := os.fork():
    _, status = os.waitpid(child, 0)
    assert status == 0 and calls == []
else:
    os._exit(calls != [os.getpid()])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_function_is_called_once_in_a_forked_process_only() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


def test_nothing_is_registered_where_there_is_no_fork(monkeypatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    called: list[int] = []
    _compat.run_after_fork(lambda: called.append(1))
    assert called == []
