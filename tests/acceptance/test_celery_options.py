"""Test the effect of Celery's own options on the package's tasks, on real workers."""

from __future__ import annotations

from devservers.process import wait_until
from devservers.smtp_faults import delay
from django_epica_mail.tasks import send_email_async
from tests.acceptance.conftest import OpenSite


def send(number: int) -> None:
    for index in range(number):
        send_email_async("S", "M", None, [f"to{index}@example.com"])


def test_an_autoscaling_worker_sends_each_mail_once(open_site: OpenSite) -> None:
    site = open_site("postgresql", BATCH_SIZE=10, RUN_SECONDS=1)
    site.env["AUTOSCALE_KEEPALIVE"] = "3"
    site.smtp.inject(delay(0.02))
    worker = site.start_worker(concurrency=1, extra_args=("--autoscale", "3,1"))
    beat = site.start_beat()
    site.call(send, 150)
    wait_until(lambda: len(worker.children()) == 3, timeout=30, what="the worker to scale up")
    site.wait_for(sent=150, timeout=60)
    beat.stop()  # Celery removes processes only after a while without tasks
    wait_until(lambda: len(worker.children()) == 1, timeout=30, what="the worker to scale down")
    site.call(send, 1)
    site.wait_for(sent=151)
    site.require_each_arrived_once(151)


def test_a_time_limit_of_the_site_interrupts_no_mail(open_site: OpenSite) -> None:
    site = open_site("postgresql")
    site.smtp.inject(delay(0.6))
    site.start_worker(concurrency=1, extra_args=("--time-limit", "1", "--soft-time-limit", "1"))
    site.call(send, 3)
    site.wait_for(sent=3, timeout=60)
    site.require_each_arrived_once(3)
    retries = "SELECT count(*) FROM epica_mail_deliveryattempt WHERE number > 1"
    assert site.fetch(retries) == [(0,)]
