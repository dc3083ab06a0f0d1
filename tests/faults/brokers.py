"""The broker of a run: what faults do to it, and what may be left in it at the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kombu import Connection

from devservers.rabbitmq import RabbitMQServer
from devservers.redis import RedisServer

QUEUES = ("emails", "bulk_emails")


class Broker(Protocol):
    """What every broker of a run can do."""

    def url(self) -> str:
        """Return its URL for Celery."""

    def start(self) -> None:
        """Start it."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill it, and start it again with nothing in it."""

    def pause(self) -> None:
        """Let it accept connections and answer nothing."""

    def resume(self) -> None:
        """Let it go on."""

    def empty(self) -> None:
        """Drop every message in it."""

    def fill(self, while_full: Callable[[], None]) -> None:
        """Let it take no message for a while."""

    def shuffle(self, rng: random.Random) -> None:
        """Lose, repeat and reorder the rings that wait."""

    def leaks(self) -> list[str]:
        """Name what is in it beside queues and Celery's own book-keeping."""

    def close(self) -> None:
        """End it for good."""


class Redis(RedisServer):
    """Redis, which forgets everything whenever it ends."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill it, and start it again with nothing in it."""
        self.kill()
        while_down()
        self.start()

    def empty(self) -> None:
        """FLUSHALL."""
        self.flush()

    def fill(self, while_full: Callable[[], None]) -> None:
        """Leave it no memory."""
        with self.client() as client:
            client.config_set("maxmemory", "1")
            while_full()
            client.config_set("maxmemory", "0")

    def shuffle(self, rng: random.Random) -> None:
        """Lose, repeat and reorder the rings that wait."""
        with self.client() as client:
            for queue in QUEUES:
                rings = list(client.lrange(queue, 0, -1))
                client.delete(queue)
                if kept := _shuffled(rings, rng):
                    client.lpush(queue, *kept)

    def leaks(self) -> list[str]:
        """Name the keys that are neither queues nor Celery's own book-keeping."""
        with self.client() as client:
            keys = [key.decode() for key in client.keys("*")]
        strange = [key for key in keys if key not in (*QUEUES, "celery")]
        return [key for key in strange if not key.startswith(("_kombu.", "unacked"))]

    def close(self) -> None:
        """End it for good."""
        self.kill()


class RabbitMQ(RabbitMQServer):
    """RabbitMQ."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill it, and start it again with nothing in it."""
        self.kill()
        while_down()
        self.forget()
        self.start()

    def empty(self) -> None:
        """Purge the queues."""
        with Connection(self.url(), connect_timeout=10) as connection:
            for queue in QUEUES:
                connection.SimpleQueue(queue, queue_opts=_AS_CELERY).clear()

    def fill(self, while_full: Callable[[], None]) -> None:
        """Raise its memory alarm: it blocks every connection that publishes."""
        self.control("set_vm_memory_high_watermark", "0")
        while_full()
        self.control("set_vm_memory_high_watermark", "0.4")

    def shuffle(self, rng: random.Random) -> None:
        """Lose, repeat and reorder the rings that wait."""
        with Connection(self.url(), connect_timeout=10) as connection:
            for name in QUEUES:
                queue = connection.SimpleQueue(name, queue_opts=_AS_CELERY)
                rings = []
                while queue.qsize():
                    try:
                        message = queue.get(block=False)
                    except queue.Empty:
                        break
                    message.ack()
                    rings.append(message)
                for message in _shuffled(rings, rng):
                    queue.producer.publish(
                        message.body,
                        content_type=message.content_type,
                        content_encoding=message.content_encoding,
                        headers=message.headers,
                        **{key: message.properties[key] for key in _KEPT},
                    )
                queue.close()

    def leaks(self) -> list[str]:
        """Return nothing: there is no list of RabbitMQ's queues without its management."""
        return []


_AS_CELERY = {"durable": True}
_KEPT = ("correlation_id", "reply_to")


def _shuffled(rings: list[Any], rng: random.Random) -> list[Any]:
    kept = [ring for ring in rings for _ in range(rng.choice((0, 1, 2)))]
    rng.shuffle(kept)
    return kept


BROKERS: dict[str, Callable[[Path], Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}
