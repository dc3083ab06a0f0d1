"""A worker that is stopped or started under load: nothing twice, nothing late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from devservers.process import wait_until
from devservers.smtp_faults import delay
from django_epica_mail import outbox

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite

GRACE = 10.0
"""Seconds that Docker gives a container between SIGTERM and SIGKILL."""


def send(number: int) -> None:
    from django.core.mail import EmailMessage

    messages = (EmailMessage("", "Body", None, ["to@example.com"]) for _ in range(number))
    outbox.enqueue_many(messages, transport="smtp", queue="emails")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_stopped_worker_leaves_nothing_unknown(open_site: OpenSite, pool: str) -> None:
    """Each reply takes 0.2 s; a batch of 100 would take longer than the grace period."""
    site = open_site("postgresql")
    slowness = site.smtp.inject(delay(0.2, "content"))
    worker = site.start_worker(concurrency=1, pool=pool)
    site.call(send, 100)
    wait_until(lambda: site.smtp.accepted, timeout=30, what="the first mail")
    started = time.monotonic()
    worker.stop(timeout=GRACE)
    assert time.monotonic() - started < GRACE
    left = site.statuses()
    assert set(left) <= {"queued", "sent"}
    assert left["queued"] > 0
    site.smtp.withdraw(slowness)
    site.start_worker(pool=pool)  # rings for its queues; no beat runs
    site.wait_for(sent=100, timeout=30)
    site.require_each_arrived_once(100)
