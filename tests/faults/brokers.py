"""Control the broker of a run: inject faults, and list what is left in it at the end."""

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
    """The operations on a run's broker."""

    def url(self) -> str:
        """Return its URL for Celery."""

    def start(self) -> None:
        """Start the broker."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill the broker, and start it again empty."""

    def pause(self) -> None:
        """Make it accept connections but answer nothing."""

    def resume(self) -> None:
        """Resume it after ``pause``."""

    def empty(self) -> None:
        """Delete all messages."""

    def fill(self, while_full: Callable[[], None]) -> None:
        """Make it refuse messages during ``while_full``."""

    def shuffle(self, rng: random.Random) -> None:
        """Lose, duplicate and reorder the waiting rings."""

    def leaks(self) -> list[str]:
        """Return the keys that are neither queues nor Celery's bookkeeping."""

    def close(self) -> None:
        """Stop the broker and delete what it leaves behind."""


class Redis(RedisServer):
    """Redis, which is empty after each start."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill the broker, and start it again empty."""
        self.kill()
        while_down()
        self.start()

    def empty(self) -> None:
        """Delete all messages (FLUSHALL)."""
        self.flush()

    def fill(self, while_full: Callable[[], None]) -> None:
        """Limit its memory to 1 byte during ``while_full``."""
        with self.client() as client:
            client.config_set("maxmemory", "1")
            while_full()
            client.config_set("maxmemory", "0")

    def shuffle(self, rng: random.Random) -> None:
        """Lose, duplicate and reorder the waiting rings."""
        with self.client() as client:
            for queue in QUEUES:
                rings = list(client.lrange(queue, 0, -1))
                client.delete(queue)
                if kept := _shuffled(rings, rng):
                    client.lpush(queue, *kept)

    def leaks(self) -> list[str]:
        """Return the keys that are neither queues nor Celery's bookkeeping."""
        with self.client() as client:
            keys = [key.decode() for key in client.keys("*")]
        strange = [key for key in keys if key not in (*QUEUES, "celery")]
        return [key for key in strange if not key.startswith(("_kombu.", "unacked"))]


class RabbitMQ(RabbitMQServer):
    """RabbitMQ."""

    def lose(self, while_down: Callable[[], None]) -> None:
        """Kill the broker, and start it again empty."""
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
        """Raise its memory alarm, which blocks publishing connections, during ``while_full``."""
        self.control("set_vm_memory_high_watermark", "0")
        while_full()
        self.control("set_vm_memory_high_watermark", "0.4")

    def shuffle(self, rng: random.Random) -> None:
        """Lose, duplicate and reorder the waiting rings."""
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
        """Return nothing: without its management plugin, RabbitMQ cannot list its queues."""
        return []


_AS_CELERY = {"durable": True}
_KEPT = ("correlation_id", "reply_to")


def _shuffled(rings: list[Any], rng: random.Random) -> list[Any]:
    kept = [ring for ring in rings for _ in range(rng.choice((0, 1, 2)))]
    rng.shuffle(kept)
    return kept


BROKERS: dict[str, Callable[[Path], Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}
