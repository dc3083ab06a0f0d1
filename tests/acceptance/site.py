"""Run the example project on its own servers, for the acceptance tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from devservers.process import wait_until
from devservers.redis import RedisServer
from devservers.smtp import SMTPServer
from devservers.worker import Beat, Worker
from tests.acceptance.databases import Databases, fetch
from tests.acceptance.places import EXAMPLE_PROJECT, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

P = ParamSpec("P")
R = TypeVar("R")

# Deprecation warnings are errors in the processes of the site, too. The ignored one is raised by
# Celery for results and by kombu for redelivered messages.
WARNINGS = (
    "error::DeprecationWarning,error::PendingDeprecationWarning,ignore:Call to deprecated setex"
)


class Call(Generic[R]):
    """A function running in a process of the site, in its own session."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, result: Path) -> None:
        self._log, self._result = log, result
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Return whether the function has ended, successfully or not."""
        return self._popen.poll() is not None

    def result(self, timeout: float = 60) -> R:
        """Wait until the function has ended, and return its result.

        Raises:
            RuntimeError: if it raised; the message contains its traceback.
            TimeoutError: if it has not ended after ``timeout`` seconds.
        """
        wait_until(self.is_over, timeout=timeout, what="the call to end", details=self._log_text)
        if self._popen.returncode:
            raise RuntimeError(f"The call failed:\n{self._log_text()}")
        returned: R = json.loads(self._result.read_text())
        return returned

    def kill(self) -> None:
        """Kill the process and its descendants if it has not ended."""
        if not self.is_over():
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def _log_text(self) -> str:
        return self._log.read_text(errors="replace")


class Site:
    """The example project with its own database, Redis and SMTP server.

    ``epica_mail`` holds keys of the site's ``EPICA_MAIL``; ``env`` overrides environment
    variables. No worker or beat runs until one is started.
    """

    def __init__(
        self,
        databases: Databases,
        kind: str,
        folder: Path,
        epica_mail: dict[str, Any],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._databases = databases
        self.folder = folder
        """The folder of the logs of its processes."""
        self._numbers = count(1)
        self._calls: list[Call[Any]] = []
        self.celery: list[Worker | Beat] = []
        """Every worker and beat started, in order."""
        self.database_url = databases.fresh(kind)
        self.redis = RedisServer(folder)
        self.smtp = SMTPServer()
        self.env = {
            "DJANGO_SETTINGS_MODULE": "shopsite.settings",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(EXAMPLE_PROJECT)]),
            "PYTHONWARNINGS": WARNINGS,
            "SHOP_DATABASE_URL": self.database_url,
            "SHOP_BROKER_URL": self.redis.url(),
            "SHOP_SMTP_PORT": str(self.smtp.port),
            "SHOP_EPICA_MAIL": json.dumps(epica_mail),
            "SHOP_SWEEP_SECONDS": "1",
            "SHOP_DEBUG": "0",
            "SHOP_REPORT": "0",  # at eight in the morning it would add a mail that no test sent
            **(env or {}),
        }
        self.redis.start()
        self.smtp.start()

    def close(self) -> None:
        """Kill every process, and drop the database."""
        for process in [*self.celery, *self._calls]:
            process.kill()
        self.smtp.stop()
        self.redis.kill()
        self._databases.drop(self.database_url)

    # -- run in the site

    def start(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Start a function of a test module in a process of the site.

        Arguments and result must be representable in JSON.
        """
        return self.start_at({}, function, *args, **kwargs)

    def start_at(
        self, env: Mapping[str, str], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Call[R]:
        """Start a function as ``start`` does, with additional environment variables."""
        number = next(self._numbers)
        result = self.folder / f"call{number}.json"
        path = f"{function.__module__}.{function.__qualname__}"
        arguments = json.dumps([args, kwargs])
        call: Call[R] = Call(
            [sys.executable, "-m", "tests.acceptance.inside", path, arguments, str(result)],
            {**os.environ, **self.env, **env},
            self.folder / f"call{number}.log",
            result,
        )
        self._calls.append(call)
        return call

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in a process of the site, and return its result."""
        return self.start(function, *args, **kwargs).result()

    def sweep(self) -> dict[str, int]:
        """Sweep once with the command for sites without beat; return its report."""
        return self.command("dispatch")

    def command(self, *action: str, code: int = 0) -> dict[str, Any]:
        """Run ``manage.py epica_mail``, which must exit with ``code``; return its report."""
        command = [sys.executable, "manage.py", "epica_mail", *action, "--json"]
        done = subprocess.run(
            command,
            cwd=EXAMPLE_PROJECT,
            env={**os.environ, **self.env},
            check=False,
            stdout=subprocess.PIPE,
        )
        assert done.returncode == code, done.stdout
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def start_workers(
        self, number: int = 1, *, envs: Sequence[Mapping[str, str]] = ({},), **options: Any
    ) -> list[Worker]:
        """Start ``number`` workers at the same time; ``options`` are those of ``Worker``.

        ``envs`` are additional environment variables, assigned to the workers in turn.
        """
        workers = [
            Worker(
                EXAMPLE_PROJECT,
                "shopsite",
                {**self.env, **envs[index % len(envs)]},
                folder=self.folder,
                **options,
            )
            for index in range(number)
        ]
        self.celery += workers
        with ThreadPoolExecutor(number) as threads:
            list(threads.map(Worker.start, workers))
        return workers

    def start_worker(self, **options: Any) -> Worker:
        """Start a worker; ``options`` are those of ``Worker``."""
        (worker,) = self.start_workers(1, **options)
        return worker

    def start_beat(self, **options: Any) -> Beat:
        """Start beat, which sweeps every second; ``options`` are those of ``Beat``."""
        beat = Beat(EXAMPLE_PROJECT, "shopsite", self.env, folder=self.folder, **options)
        self.celery.append(beat)
        beat.start()
        return beat

    # -- inspect it

    def fetch(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query of the site's database."""
        return fetch(self.database_url, sql)

    def statuses(self) -> dict[str, int]:
        """Return the number of mails by status."""
        return dict(self.fetch("SELECT status, count(*) FROM epica_mail_emaillog GROUP BY status"))

    def wait_for(self, timeout: float = 30, **statuses: int) -> None:
        """Wait until the numbers of the site's mails by status are exactly ``statuses``.

        Raises:
            TimeoutError: if they are not after ``timeout`` seconds.
        """
        wait_until(
            lambda: self.statuses() == statuses,
            timeout=timeout,
            what=f"the statuses {statuses}",
            details=lambda: f"They are {self.statuses()}.",
            interval=0.05,
        )

    def arrivals(self) -> Counter[str]:
        """Return how often each mail was accepted by the SMTP server, by Message-ID."""
        return Counter(message.message_id for message in self.smtp.accepted)

    def message_ids(self) -> list[str]:
        """Return the Message-IDs of all stored mails in the order in which they are claimed."""
        rows = self.fetch("SELECT message_id FROM epica_mail_emaillog ORDER BY due_at, id")
        return [message_id for (message_id,) in rows]

    def waiting_rings(self, queue: str = "emails") -> int:
        """Return the number of messages that wait in the broker for a worker of a queue."""
        with self.redis.client() as client:
            return int(client.llen(queue))

    def require_each_arrived_once(self, number: int) -> None:
        """Fail unless the site has stored ``number`` mails and each has arrived exactly once."""
        arrivals = self.arrivals()
        assert arrivals == Counter(self.message_ids())
        assert set(arrivals.values()) == {1}
        assert len(arrivals) == number
