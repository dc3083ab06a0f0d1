"""Listens to everything Redis is told, to show that no mail passes through it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from base64 import b64decode
from collections import Counter

from redis import Redis, RedisError

END = "end of the wiretap"
BODY = re.compile(r'"body": ?"([A-Za-z0-9+/=]+)"')
EVENTS = "celeryev"
"""What workers tell Flower of their tasks is published there."""
TASK = re.compile(r'"task": ?"([\w.]+)"')


class Wiretap:
    """Redis' MONITOR, read in a thread for the length of a `with` block."""

    def __init__(self, url: str) -> None:
        self.heard: list[str] = []
        self.calls: Counter[str] = Counter()
        # A monitor is silent for as long as nobody says anything: no time-out.
        self._redis = Redis.from_url(url, socket_timeout=None)
        self._thread = threading.Thread(target=self._listen, name="wiretap", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Wiretap:
        self._thread.start()
        if not self._listening.wait(10):
            raise RuntimeError("Redis did not answer MONITOR within 10 s; see its log.")
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()
        self._redis.close()

    def end(self) -> None:
        """Stop listening, after everything said so far was heard."""
        if self._thread.is_alive():
            with contextlib.suppress(RedisError):
                self._redis.echo(END)
            self._thread.join(10)

    def betrayed(self, secrets: set[str]) -> set[str]:
        """Return which of `secrets` were heard, be it inside the encoded arguments of a task."""
        everything = "\n".join(self.heard)
        return {secret for secret in secrets if secret in everything}

    def _listen(self) -> None:
        # A Redis that has died is reported by whoever watches the processes.
        with contextlib.suppress(RedisError), self._redis.monitor() as monitor:
            self._listening.set()
            for event in monitor.listen():
                command: str = event["command"]
                if command == f"ECHO {END}":
                    return
                self.heard.append(command)
                if (body := BODY.search(command)) is None:
                    continue
                if command.startswith("LPUSH ") and (task := TASK.search(command)):
                    self._note_task(task[1], b64decode(body[1]).decode())
                elif command.startswith("PUBLISH ") and EVENTS in command:
                    self.heard.append(b64decode(body[1]).decode())

    def _note_task(self, task: str, body: str) -> None:
        """Note a Celery message as kombu puts it into a queue's list."""
        self.heard.append(body)
        args, kwargs, _ = json.loads(body)
        said = [arg for arg in args if isinstance(arg, str)] + [f"{key}=…" for key in kwargs]
        self.calls[f"{task.rpartition('.')[2]}({', '.join(said)})"] += 1
