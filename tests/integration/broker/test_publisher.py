"""Publishing to one of several brokers: whichever is alive, in the same time as to one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu.exceptions import OperationalError

from devservers.process import free_port
from devservers.redis import RedisServer
from django_epica_mail.broker.celery_config import broker_urls
from django_epica_mail.broker.publisher import Busy, Publisher


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[[], RedisServer]]:
    """Start Redis servers that end with the test."""
    started: list[RedisServer] = []

    def start() -> RedisServer:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = RedisServer(folder)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()


def app_of(*brokers: str, **options: Any) -> Celery:
    app = Celery("publisher-tests", broker=list(brokers), set_as_current=False)
    app.conf.update(options)
    return app


def publish(publisher: Publisher, queue: str = "emails") -> float:
    """Publish to a queue; return the seconds it took."""
    started = time.monotonic()
    publisher.publish(lambda it: it.publish({}, routing_key=queue, retry=False))
    return time.monotonic() - started


def length(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.llen("emails"))


DOWN = f"redis://127.0.0.1:{free_port()}/0"


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "text"])
def test_a_list_whose_first_broker_is_down_goes_on_with_the_second(servers, as_text) -> None:
    server = servers()
    app = app_of(";".join([DOWN, server.url()])) if as_text else app_of(DOWN, server.url())
    publisher = Publisher(app)
    assert publish(publisher) < 0.5
    assert publish(publisher) < 0.1
    assert length(server) == 2


def test_a_first_broker_that_hangs_takes_no_more_than_the_time_allowed(servers) -> None:
    hanging, alive = servers(), servers()
    publisher = Publisher(app_of(hanging.url(), alive.url()))
    hanging.pause()
    try:
        assert 0.1 < publish(publisher) < 0.7
        assert publish(publisher) < 0.1, "the one that answered is asked first from now on"
    finally:
        hanging.resume()
    assert length(alive) == 2


def test_a_broker_that_goes_down_later_is_left_for_another(servers) -> None:
    first, second = servers(), servers()
    publisher = Publisher(app_of(first.url(), second.url()))
    publish(publisher)
    first.kill()
    assert publish(publisher) < 0.5
    second.kill()
    first.start()
    assert publish(publisher) < 0.5
    assert length(first) == 1, "what the first one had was lost with it"


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_closed_by_an_idle_time_out_are_replaced_at_once(servers, connections) -> None:
    server = servers()
    publisher = Publisher(app_of(server.url()))
    gate = threading.Barrier(connections)

    def send(producer: Any) -> None:
        gate.wait(5)
        producer.publish({}, routing_key="emails", retry=False)

    threads = [threading.Thread(target=publisher.publish, args=(send,)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert publish(publisher) < 0.3
    assert length(server) == connections + 1


def test_when_none_is_alive_the_last_error_is_raised_within_the_time(servers) -> None:
    hanging = [servers() for _ in range(2)]
    publisher = Publisher(app_of(*(it.url() for it in hanging)))
    for server in hanging:
        server.pause()
    try:
        started = time.monotonic()
        with pytest.raises(OperationalError):
            publish(publisher)
        assert time.monotonic() - started < 0.8
    finally:
        for server in hanging:
            server.resume()


def test_a_port_that_accepts_and_says_nothing_costs_one_share() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        started = time.monotonic()
        with pytest.raises(OperationalError):
            publish(Publisher(app_of(url)))
        assert time.monotonic() - started < 0.8


def test_a_missing_queue_is_no_reason_to_ask_another_broker(servers) -> None:
    publisher = Publisher(app_of(DOWN, servers().url()))
    asked = []

    def send(producer: Any) -> None:
        asked.append(producer)
        raise QueueNotFound

    with pytest.raises(QueueNotFound):
        publisher.publish(send)
    assert len(asked) == 1


def test_threads_beyond_the_fourth_wait_no_longer_than_allowed(servers) -> None:
    publisher = Publisher(app_of(servers().url()))
    release = threading.Event()
    threads = [
        threading.Thread(target=publisher.publish, args=(lambda _: release.wait(5),))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    try:
        with pytest.raises(Busy):
            publish(publisher)
    finally:
        release.set()
        for thread in threads:
            thread.join()
    publish(publisher)


def test_the_nodes_of_sentinel_are_one_broker() -> None:
    nodes = "sentinel://127.0.0.1:1;sentinel://127.0.0.1:2"
    options = {"broker_transport_options": {"master_name": "mymaster"}}
    assert broker_urls(app_of(nodes, **options)) == [None]
    assert broker_urls(app_of("redis://a//")) == [None]
    assert broker_urls(app_of("redis://a//", "redis://b//")) == ["redis://a//", "redis://b//"]
