"""Run a private RabbitMQ server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from devservers.process import ManagedProcess, free_port
from devservers.programs import find_program

_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/usr/local/sbin")


def find_rabbitmq_folder() -> Path:
    """Return the folder of RabbitMQ's own programs, as opposed to wrappers that change the user.

    Raises:
        RuntimeError: if none is found; the message says what to install.
    """
    for folder in _FOLDERS:
        if (Path(folder) / "rabbitmq-server").exists():
            return Path(folder)
    raise RuntimeError(
        "No RabbitMQ found. Install it, for instance with `apt-get install rabbitmq-server`."
    )


class RabbitMQServer(ManagedProcess):
    """A RabbitMQ server on 127.0.0.1; user and password are "guest".

    Its data survives ``stop`` and ``kill``; :meth:`forget` deletes it while the server is down.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.home = folder / f"rabbitmq-{self.port}"
        self.home.mkdir(parents=True)
        # Our own Erlang port mapper, because the one a node starts would outlive it.
        self._mapper = _PortMapper(self.home)
        config = self.home / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        (self.home / "plugins").write_text("[].\n")
        self._programs = find_rabbitmq_folder()
        env = {
            **os.environ,
            **self._mapper.settings,
            "HOME": str(self.home),
            "RABBITMQ_NODENAME": f"node{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.home / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "plugins"),
            "RABBITMQ_PID_FILE": str(self.home / "pid"),
        }
        super().__init__(
            [self._programs / "rabbitmq-server"],
            log=folder / f"rabbitmq-{self.port}.log",
            env=env,
            ready_line="Server startup complete",
        )

    def url(self) -> str:
        """Return the URL of the default virtual host, for Celery and kombu."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and wait until it accepts connections."""
        if not self._mapper.is_alive():
            self._mapper.start()
        super().start(timeout)

    def forget(self) -> None:
        """Delete all data; the server must be down."""
        shutil.rmtree(self.home / "mnesia", ignore_errors=True)

    def control(self, *arguments: str) -> None:
        """Run ``rabbitmqctl``; raise ``CalledProcessError`` if it fails."""
        self.output(*arguments)

    def output(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``, and return what it prints.

        Raises ``CalledProcessError`` if it fails.
        """
        done = subprocess.run(
            [self._programs / "rabbitmqctl", *arguments],
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def close(self) -> None:
        """Kill the server and its port mapper."""
        super().close()
        self._mapper.close()


class _PortMapper(ManagedProcess):
    """Erlang's ``epmd`` on a private port."""

    def __init__(self, folder: Path) -> None:
        self.settings = {"ERL_EPMD_PORT": str(free_port()), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        program = find_program("epmd")
        if program is None:
            raise RuntimeError("No epmd found on PATH: it is part of Erlang, which RabbitMQ needs.")
        super().__init__([program], log=folder / "epmd.log", env={**os.environ, **self.settings})
