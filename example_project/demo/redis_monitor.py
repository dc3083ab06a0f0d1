"""Record every command that Redis receives, to show that no mail passes through it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from base64 import b64decode
from collections import Counter

from redis import Redis, RedisError

END = "end of the recording"
BODY = re.compile(r'"body": ?"([A-Za-z0-9+/=]+)"')
EVENTS = "celeryev"
"""The channel on which workers publish task events for Flower."""
TASK = re.compile(r'"task": ?"([\w.]+)"')


class RedisMonitor:
    """Redis's MONITOR, read in a thread for the length of a `with` block."""

    def __init__(self, url: str) -> None:
        self.recorded: list[str] = []
        self.calls: Counter[str] = Counter()
        # MONITOR is silent while Redis receives no commands, so reading must not time out.
        self._redis = Redis.from_url(url, socket_timeout=None)
        self._thread = threading.Thread(target=self._listen, name="redis monitor", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> RedisMonitor:
        self._thread.start()
        if not self._listening.wait(10):
            raise RuntimeError("Redis did not answer MONITOR within 10 s; see its log.")
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
        self._redis.close()

    def end(self) -> None:
        """Stop once every command so far is recorded."""
        if self._thread.is_alive():
            with contextlib.suppress(RedisError):
                self._redis.echo(END)
            self._thread.join(10)

    def leaked(self, secrets: set[str]) -> set[str]:
        """Return the `secrets` that were recorded, including in the encoded arguments of tasks."""
        everything = "\n".join(self.recorded)
        return {secret for secret in secrets if secret in everything}

    def _listen(self) -> None:
        # A dead Redis is reported by `Stack.check`.
        with contextlib.suppress(RedisError), self._redis.monitor() as monitor:
            self._listening.set()
            for event in monitor.listen():
                command: str = event["command"]
                if command == f"ECHO {END}":
                    return
                self.recorded.append(command)
                if (body := BODY.search(command)) is None:
                    continue
                if command.startswith("LPUSH ") and (task := TASK.search(command)):
                    self._record_task(task[1], b64decode(body[1]).decode())
                elif command.startswith("PUBLISH ") and EVENTS in command:
                    self.recorded.append(b64decode(body[1]).decode())

    def _record_task(self, task: str, body: str) -> None:
        """Record a Celery message that kombu pushed to a queue's list."""
        self.recorded.append(body)
        args, kwargs, _ = json.loads(body)
        arguments = [arg for arg in args if isinstance(arg, str)]
        arguments += [f"{key}=…" for key in kwargs]
        self.calls[f"{task.rpartition('.')[2]}({', '.join(arguments)})"] += 1
