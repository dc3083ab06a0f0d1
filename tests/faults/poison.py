"""An app of the site whose signal receivers raise, which must not stop any mail."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.apps import AppConfig


class PoisonConfig(AppConfig):
    """Configuration of the app."""

    name = "tests.faults.poison"
    label = "poison"

    def ready(self) -> None:
        """Connect the receivers."""
        from django_epica_mail import signals

        signals.email_moved.connect(_raise_for_some, dispatch_uid="poison")
        for signal in (signals.transport_tripped, signals.transport_recovered):
            signal.connect(_raise, dispatch_uid="poison")


def _raise_for_some(*, email_id: UUID, **_: Any) -> None:
    if email_id.int % 5 == 0:
        raise RuntimeError("a receiver of the site fails")


def _raise(**_: Any) -> None:
    raise RuntimeError("a receiver of the site fails")
