"""Test that no mail is lost and no caller waits while Redis is down, hung, full or emptied."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from devservers.process import wait_until
from tests.acceptance.inside import in_processes

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite
    from tests.acceptance.site import Site


def send_timed(number: int) -> list[float]:
    """Send ``number`` mails; return the seconds that each call took."""
    from django.core.mail import send_mail

    took = []
    for count in range(number):
        started = time.perf_counter()
        send_mail(str(count), "Body", None, ["to@example.com"])
        took.append(time.perf_counter() - started)
    return took


def send_in_pairs(gaps: list[float]) -> None:
    """Commit pairs of mails with these gaps in seconds; fail unless each pair is soon sent.

    Each pair waits for the previous one, because a later ring would hide a missed mail.
    """
    from django.core.mail import send_mail

    from django_epica_mail import conf
    from django_epica_mail.models import EmailLog

    for gap in gaps:
        send_mail("first", "Body", None, ["to@example.com"])
        time.sleep(gap)  # the gap under test
        send_mail("second", "Body", None, ["to@example.com"])
        wait_until(
            lambda: not EmailLog.objects.exclude(status="sent").exists(),
            timeout=5,
            what=f"two mails, {gap} s apart, to be sent",
        )
        time.sleep(conf.get().ring_window)  # so that the next pair starts with its own ring


def send_timed_once_broken(redis: int, signal_number: int) -> list[float]:
    """Ring, send the signal to Redis, and return the seconds of each of 20 more calls."""
    from django_epica_mail import conf

    send_timed(1)
    os.kill(redis, signal_number)
    time.sleep(conf.get().ring_window)  # within the window, the next mail would not ring
    return send_timed(20)


def send_steadily(processes: int, seconds: int) -> float:
    """Send one mail a second from each process; return the wall time of the last commit."""
    from django.core.mail import send_mail

    def work(number: int) -> None:
        time.sleep(number / processes)
        for count in range(seconds):
            send_mail(f"{number}.{count}", "Body", None, ["to@example.com"])
            time.sleep(1)  # the pace of the load

    send_timed(1)  # before forking, so that the processes inherit the imports
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
def test_mail_sent_while_the_broker_fails_waits_for_the_sweep(
    open_site: OpenSite, fault: str
) -> None:
    site = open_site()
    break_it, mend_it = FAULTS[fault]
    break_it(site)
    first, *others = site.call(send_timed, 21)
    mend_it(site)
    # The first call includes imports.
    assert first < 2
    assert sum(others) < 1
    assert site.statuses() == {"queued": 21}
    # The sweep comes first, because a starting worker rings as well.
    assert site.sweep() == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 1}
    site.start_worker()
    site.wait_for(sent=21)
    site.require_each_arrived_once(21)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broker_that_fails_once_connected_delays_no_call(
    open_site: OpenSite, number: signal.Signals
) -> None:
    site = open_site()
    first, *others = site.call(send_timed_once_broken, site.redis.pid, number)
    assert first < 1.5
    assert sum(others) < 1
    assert site.statuses() == {"queued": 21}


def test_a_worker_recovers_from_a_restarted_broker(
    open_site: OpenSite,
) -> None:
    site = open_site()
    site.start_worker()
    site.start_beat()
    site.redis.kill()
    site.call(send_timed, 5)
    site.redis.start()
    site.wait_for(sent=5)
    site.require_each_arrived_once(5)


def test_an_emptied_broker_loses_no_mail(open_site: OpenSite) -> None:
    site = open_site()
    site.call(send_timed, 20)
    site.redis.flush()
    site.start_worker()
    site.start_beat()
    site.wait_for(sent=20)
    site.require_each_arrived_once(20)


def test_mail_committed_within_the_window_needs_no_sweep(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.start_worker()
    gaps = [step * 0.005 for step in range(25)]
    site.call(send_in_pairs, gaps)
    site.require_each_arrived_once(50)


def test_rings_do_not_pile_up_under_steady_load(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.start_worker(concurrency=2)
    call = site.start(send_steadily, 64, 6)
    most = 0
    while not call.is_over():
        most = max(most, site.waiting_rings())
        time.sleep(0.05)
    ended = call.result()
    site.wait_for(sent=64 * 6 + 1, timeout=10)
    last = max(message.time for message in site.smtp.accepted)
    assert last - ended < 3
    # Under other load the worker may fall behind for a while; 385 would mean no progress at all.
    assert most < 64 * 5
    wait_until(lambda: site.waiting_rings() == 0, timeout=15, what="the last ring to be consumed")
    site.require_each_arrived_once(64 * 6 + 1)


def test_old_rings_do_not_make_a_worker_wait(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.call(send_timed, 1)
    with site.redis.client() as client:
        ring = client.lrange("emails", 0, 0)[0]
        client.rpush("emails", *[ring] * 100)
    # Starting a worker takes longer than the second and the window after which a ring is old.
    worker = site.start_worker(concurrency=2)
    empty = re.compile(r"deliver_emails\S+ succeeded in (\S+)s: 0$", re.MULTILINE)
    wait_until(
        lambda: len(empty.findall(worker.log_text())) >= 100,
        timeout=30,
        what="100 tasks without mail",
    )
    seconds = sorted(float(took) for took in empty.findall(worker.log_text()))
    assert seconds[len(seconds) // 4] < 0.05, "a task must not wait for a window to look again"
