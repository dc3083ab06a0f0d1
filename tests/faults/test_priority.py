"""Urgent mail overtakes on RabbitMQ as on Redis: the row decides, and no broker's priority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devservers.process import wait_until
from devservers.rabbitmq import RabbitMQServer
from devservers.smtp_faults import delay
from tests.acceptance.databases import Databases
from tests.acceptance.site import Site
from tests.acceptance.test_api import send_newsletter, send_urgent

MANY = 10_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Open the example project on PostgreSQL and RabbitMQ."""
    databases = Databases(tmp_path)
    with RabbitMQServer(tmp_path) as broker:
        site = Site(databases, "postgresql", tmp_path, {}, {"SHOP_BROKER_URL": broker.url()})
        yield site
        site.close()
    databases.close()


@pytest.mark.parametrize("apart", [False, True], ids=["one worker", "a worker per queue"])
def test_urgent_mail_overtakes_ten_thousand_that_wait_on_rabbitmq(site: Site, apart: bool) -> None:
    site.smtp.inject(delay(0.02))
    if apart:
        site.start_worker(queues=("bulk_emails",), concurrency=2)
        site.start_worker(queues=("celery", "emails"), concurrency=2)
    else:
        site.start_worker(concurrency=2)
    site.call(send_newsletter, MANY, "bulk_emails" if apart else "emails")
    wait_until(lambda: len(site.smtp.accepted) > 50, timeout=60, what="bulk mail to be under way")
    urgent = site.call(send_urgent)
    wait_until(
        lambda: any(mail.message_id.startswith(f"<{urgent}@") for mail in site.smtp.accepted),
        timeout=15,
        what="the urgent mail",
    )
    assert MANY - len(site.smtp.accepted) > MANY / 2
