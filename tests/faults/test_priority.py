"""Test that urgent mail overtakes on RabbitMQ, too: rows decide, not the broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devservers.rabbitmq import RabbitMQServer
from tests.acceptance.databases import Databases
from tests.acceptance.site import Site
from tests.acceptance.test_api import both_ways, require_urgent_mail_to_overtake


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Open the example project on PostgreSQL and RabbitMQ."""
    databases = Databases(tmp_path)
    with RabbitMQServer(tmp_path) as broker:
        site = Site(databases, "postgresql", tmp_path, {}, {"SHOP_BROKER_URL": broker.url()})
        yield site
        site.close()
    databases.close()


@both_ways
def test_urgent_mail_overtakes_on_rabbitmq(site: Site, apart: bool) -> None:
    require_urgent_mail_to_overtake(site, apart=apart)
