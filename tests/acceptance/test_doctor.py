"""Test the doctor with workers that answer and with a broker that hangs."""

from __future__ import annotations

import time

from tests.acceptance.conftest import OpenSite


def ids(report: dict[str, list[dict[str, str]]]) -> list[str]:
    return [finding["id"] for finding in report["findings"]]


def test_the_doctor_asks_workers_for_their_queues(open_site: OpenSite) -> None:
    site = open_site(
        "postgresql",
        HEALTH_NO_WORKER=600,
        ROUTES=[{"match": {"to": "*@gov.tr"}, "queue": "official"}],
    )
    site.env["SHOP_BROKER_OPTIONS"] = '{"socket_timeout": 5, "socket_connect_timeout": 5}'
    assert ids(site.command("doctor", code=1)) == ["no-worker"]
    worker = site.start_worker()
    (finding,) = site.command("doctor", code=1)["findings"]
    assert finding["id"] == "queue-without-worker"
    assert "the queue official" in finding["text"]
    site.start_worker(queues=("official",))
    assert site.command("doctor", "--open") == {"findings": []}
    report = site.command("send-test", "to@example.com", "--wait", "20")
    assert report["status"] == "sent"
    assert site.smtp.accepted[0].recipients == ("to@example.com",)
    site.smtp.refuse_connections()
    assert set(ids(site.command("doctor", "--open", code=1))) == {"transport"}
    worker.stop()
    # Mail was sent a moment ago: a worker that does not answer may still be there.
    report = site.command("doctor", code=1)
    assert sorted(ids(report)) == [*["queue-without-worker"] * 2, "workers-silent"]
    assert ["the queue emails" in it["text"] for it in report["findings"]].count(True) == 1


def test_the_doctor_does_not_wait_for_a_hanging_broker(open_site: OpenSite) -> None:
    site = open_site()
    site.redis.pause()
    began = time.monotonic()
    found = site.command("doctor", code=1)
    took = time.monotonic() - began
    site.redis.resume()
    assert ids(found) == ["broker", "socket-timeout"]
    assert took < 30
