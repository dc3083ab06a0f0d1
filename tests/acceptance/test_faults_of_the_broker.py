"""Redis is down, hangs, is full or forgets: nothing is lost, and nobody waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.inside import in_processes

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite
    from tests.acceptance.site import Site


def send_timed(number: int) -> list[float]:
    """Send so many mails; return the seconds that each call took."""
    from django.core.mail import send_mail

    took = []
    for count in range(number):
        started = time.perf_counter()
        send_mail(str(count), "Body", None, ["to@example.com"])
        took.append(time.perf_counter() - started)
    return took


def send_in_pairs(gaps: list[float]) -> None:
    """Commit pairs of mails so many seconds apart, each pair in a process of its own."""
    from django.core.mail import send_mail

    def work(number: int) -> None:
        send_mail("first", "Body", None, ["to@example.com"])
        time.sleep(gaps[number])  # the gap is what is tested
        send_mail("second", "Body", None, ["to@example.com"])

    for start in range(0, len(gaps), 5):
        chunk = gaps[start : start + 5]
        in_processes(len(chunk), lambda number, start=start: work(start + number))


def send_steadily(processes: int, seconds: int) -> float:
    """Send one mail a second from each process; return the wall time of the last commit."""
    from django.core.mail import send_mail

    def work(number: int) -> None:
        begin = time.monotonic() + number / processes
        for count in range(seconds):
            time.sleep(max(0.0, begin + count - time.monotonic()))  # the pace of the load
            send_mail(f"{number}.{count}", "Body", None, ["to@example.com"])

    in_processes(processes, work)
    return time.time()


def _fill(site: Site) -> None:
    with site.redis.client() as client:
        client.config_set("maxmemory", "1")


def _empty(site: Site) -> None:
    with site.redis.client() as client:
        client.config_set("maxmemory", "0")


FAULTS = {
    "refuses": (lambda site: site.redis.kill(), lambda site: site.redis.start()),
    "hangs": (lambda site: site.redis.pause(), lambda site: site.redis.resume()),
    "is full": (_fill, _empty),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_mail_sent_while_the_broker_is_out_of_order_waits_for_the_sweep(
    open_site: OpenSite, fault: str
) -> None:
    site = open_site()
    break_it, mend_it = FAULTS[fault]
    break_it(site)
    first, *others = site.call(send_timed, 21)
    mend_it(site)
    # The first call also imports what only a first call needs.
    assert first < 2
    assert sum(others) < 1
    assert site.statuses() == {"queued": 21}
    site.start_worker()
    assert site.sweep() == {"rescued": 0, "overdue": 0, "rung": 1}
    site.wait_for(sent=21)
    site.require_each_arrived_once(21)


def test_a_broker_that_forgets_between_commit_and_work_loses_nothing(open_site: OpenSite) -> None:
    site = open_site()
    site.call(send_timed, 20)
    site.redis.flush()
    site.start_worker()
    site.start_beat()
    site.wait_for(sent=20)
    site.require_each_arrived_once(20)


def test_a_mail_committed_at_any_moment_of_the_window_needs_no_sweep(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.start_worker()
    gaps = [step * 0.005 for step in range(25)]
    site.call(send_in_pairs, gaps)
    site.wait_for(sent=50, timeout=3)
    site.require_each_arrived_once(50)


def test_rings_do_not_pile_up_under_many_steady_producers(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.start_worker(concurrency=2)
    call = site.start(send_steadily, 64, 6)
    most = 0
    while not call.is_over():
        most = max(most, site.waiting_rings())
        time.sleep(0.05)
    ended = call.result()
    site.wait_for(sent=64 * 6, timeout=10)
    last = max(message.time for message in site.smtp.accepted)
    assert last - ended < 3
    assert most < 200
    site.require_each_arrived_once(64 * 6)
