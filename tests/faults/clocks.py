"""An app of the site that gives its processes different clocks.

It reads two environment variables: ``CLOCK_AHEAD`` is the number of seconds by which the host's
clock is wrong, and ``CLOCK_FILE`` names a file with the offset of the queue's own clock in seconds.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import time_machine
from celery.signals import task_prerun
from django.apps import AppConfig


class ClocksConfig(AppConfig):
    """Configuration of the app."""

    name = "tests.faults.clocks"
    label = "clocks"

    def ready(self) -> None:
        """Set the clocks of this process."""
        if seconds := float(os.environ.get("CLOCK_AHEAD", 0)):
            time_machine.travel(time.time() + seconds, tick=True).start()
        if "CLOCK_FILE" in os.environ:
            task_prerun.connect(_shift, dispatch_uid="clocks")


def ahead(seconds: float) -> dict[str, str]:
    """Return the environment of a process whose host's clock is ``seconds`` ahead."""
    return {"CLOCK_AHEAD": str(seconds)}


class Clock:
    """The queue's clock of a whole site, which tests can advance; each task reads it on start."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0.0
        self.travel(0)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that uses this clock."""
        return {"CLOCK_FILE": str(self._file)}

    def travel(self, seconds: float) -> None:
        """Advance the clock."""
        self._offset += seconds
        following = self._file.with_suffix(".new")
        following.write_text(str(self._offset))
        following.replace(self._file)


def _shift(**_: Any) -> None:
    from django_epica_mail import clock

    clock.offset = timedelta(seconds=float(Path(os.environ["CLOCK_FILE"]).read_text()))
