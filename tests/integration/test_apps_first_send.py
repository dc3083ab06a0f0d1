"""What the first mail of a process imports: nothing, if the process serves requests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from devservers.redis import RedisServer


def first_send(broker: str, *imported_before: str) -> dict[str, Any]:
    """Return what a new process reports that has imported these modules before its apps."""
    command = [sys.executable, "-m", "tests.integration.whole.first_send", broker, *imported_before]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("handler", ["django.core.wsgi", "django.core.asgi"])
def test_the_first_mail_of_a_serving_process_imports_nothing(tmp_path, handler) -> None:
    with RedisServer(tmp_path) as redis:
        report = first_send(redis.url(), handler)
        with redis.client() as client:
            assert client.llen("emails") >= 1, "the ring was published within the call"
    assert report["has_transport"]
    assert report["imported"] == [[], []]
    assert not report["is_finalized"], "making the app's tasks would take longer than all the rest"


def test_a_command_imports_no_transport_when_it_starts(tmp_path) -> None:
    with RedisServer(tmp_path) as redis:
        report = first_send(redis.url())
    assert not report["has_transport"]
    assert "kombu.transport.redis" in report["imported"][0]
