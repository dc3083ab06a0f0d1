"""Test what happens to mail being sent when workers die or servers disappear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devservers.process import wait_until
from devservers.smtp_faults import Drop, Hold, delay
from django_epica_mail import outbox

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite

SHORT = {"SEND_TIMEOUT": 2, "RETRY_DELAY": 1, "BREAKER_SECONDS": 1}


def send(number: int, **options: str) -> None:
    from django.core.mail import EmailMessage
    from django.db import transaction

    with transaction.atomic():
        for count in range(number):
            message = EmailMessage(str(count), "Body", None, ["to@example.com"])
            outbox.enqueue(message, **options)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("then", "arrivals"), [(Drop(), 1), (None, 2)], ids=["not accepted", "accepted"]
)
def test_mail_is_sent_again_if_its_worker_is_killed_in_data(
    open_site: OpenSite, kind: str, then: Drop | None, arrivals: int
) -> None:
    site = open_site(kind, **SHORT)
    hold = site.smtp.inject(Hold("content", times=1, then=then))
    worker = site.start_worker(concurrency=1)
    site.call(send, 1)
    hold.wait_until_held()
    worker.kill()
    site.smtp.withdraw(hold)
    assert site.statuses() == {"sending": 1}
    site.start_worker()
    site.start_beat()
    site.wait_for(sent=1)
    # A receiver can recognise a second copy by its Message-ID.
    assert site.arrivals() == dict.fromkeys(site.message_ids(), arrivals)
    attempts = site.fetch("SELECT failure_kind FROM epica_mail_deliveryattempt ORDER BY number")
    assert attempts == [("worker_lost",), ("",)]


def test_possibly_accepted_mail_is_held_if_requested(
    open_site: OpenSite,
) -> None:
    site = open_site(**SHORT)
    hold = site.smtp.inject(Hold("content", times=1))
    worker = site.start_worker(concurrency=1)
    site.call(send, 1, on_unknown="hold")
    hold.wait_until_held()
    worker.kill()
    site.smtp.withdraw(hold)
    site.start_worker()
    site.start_beat()
    site.wait_for(unknown=1)
    site.sweep()
    assert site.statuses() == {"unknown": 1}
    site.require_each_arrived_once(1)


def test_a_killed_worker_leaves_at_most_what_it_claimed_unknown(
    open_site: OpenSite,
) -> None:
    site = open_site("postgresql", **SHORT, BATCH_SIZE=10)
    hold = site.smtp.inject(Hold("content", when=lambda session: session.accepted >= 40, times=1))
    worker = site.start_worker(concurrency=1)
    site.call(send, 80, on_unknown="hold")
    hold.wait_until_held()
    worker.kill()
    site.smtp.withdraw(hold)
    site.start_worker()
    site.start_beat()
    wait_until(
        lambda: set(site.statuses()) == {"sent", "unknown"},
        timeout=30,
        what="the rest to be sent",
        details=lambda: str(site.statuses()),
    )
    assert site.statuses()["unknown"] <= 10
    assert set(site.arrivals().values()) == {1}
    assert len(site.smtp.accepted) >= 80 - 10


def test_refused_connections_use_up_no_attempts(
    open_site: OpenSite,
) -> None:
    site = open_site("postgresql", **SHORT)
    site.smtp.refuse_connections()
    site.start_worker()
    site.start_beat()
    site.call(send, 30)
    wait_until(
        lambda: (
            site.fetch("SELECT outages FROM epica_mail_deliverygate WHERE scope = 'transport'")
            > [(1,)]
        ),
        timeout=30,
        what="a probe to fail",
    )
    assert site.fetch("SELECT max(tries) FROM epica_mail_emaillog") == [(0,)]
    assert site.fetch("SELECT count(*) FROM epica_mail_deliveryattempt") < [(10,)]
    site.smtp.listen_again()
    site.wait_for(sent=30)
    site.require_each_arrived_once(30)
    gate = "SELECT outages FROM epica_mail_deliverygate WHERE scope = 'transport'"
    assert site.fetch(gate) == [(0,)]


def test_a_stopping_worker_finishes_its_claimed_mail(open_site: OpenSite) -> None:
    site = open_site("postgresql", **SHORT, RUN_SECONDS=1)
    site.smtp.inject(delay(0.005))
    worker = site.start_worker(concurrency=2)
    site.call(send, 200)
    site.smtp.wait_for(20)
    worker.stop(timeout=60)
    assert set(site.statuses()) <= {"sent", "queued"}
    assert site.smtp.connections.open_now == 0
    site.start_worker()
    site.sweep()
    site.wait_for(sent=200, timeout=60)
    site.require_each_arrived_once(200)


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 2), ("threads", 3), ("solo", 1)])
def test_each_pool_uses_few_connections_and_closes_them(
    open_site: OpenSite, pool: str, concurrency: int
) -> None:
    # One connection for each task: other tests cover additional connections to a slow server, and
    # under load any server is slow.
    site = open_site("postgresql", BATCH_SIZE=10, CONNECTIONS=1)
    worker = site.start_worker(pool=pool, concurrency=concurrency)
    site.call(send, 60)
    site.wait_for(sent=60)
    site.require_each_arrived_once(60)
    assert site.smtp.connections.opened <= concurrency
    worker.stop(timeout=60)
    wait_until(
        lambda: site.smtp.connections.open_now == 0, timeout=5, what="the connections to be closed"
    )
