"""Where a mail goes and how urgent it is: decided once, when it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils import timezone

from django_epica_mail.conf import ON_UNKNOWN

QUEUE, QUEUE_PRIORITY = "emails", 9
"""Queue and priority of single mail."""

BULK_QUEUE, BULK_PRIORITY = "bulk_emails", 5
"""Queue and priority of bulk mail."""

PRIORITIES = {"urgent": 9, "high": 6, "normal": 3, "low": 0}
"""The names a priority may be given by; 9 is most urgent, on every broker and database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may say of a mail beside the message itself; ``None`` leaves it open."""

    transport: str | None = None
    """The alias of the transport that sends it."""
    queue: str | None = None
    """The queue it waits in, which is also the Celery queue that is rung."""
    priority: int | str | None = None
    """0 (least urgent) to 9 (most), or a name of ``PRIORITIES``."""
    category: str | None = None
    """What sort of mail it is, in the site's own words."""
    send_at: datetime | None = None
    """When to send it, as an aware datetime."""
    expires_at: datetime | None = None
    """When it is no longer worth sending, as an aware datetime."""
    on_unknown: str | None = None
    """``resend``, ``hold`` or ``fail``: what to do when it may have been accepted."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, with ``ValueError`` or ``TypeError``."""
        for name in ("transport", "queue", "category"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and 0 < len(value) <= 64):
                raise ValueError(f"{name} must be a name of 1 to 64 characters; it is {value!r}.")
        for name in ("send_at", "expires_at"):
            _check_time(name, getattr(self, name))
        if self.on_unknown is not None and self.on_unknown not in ON_UNKNOWN:
            raise ValueError(
                f"on_unknown must be one of {', '.join(ON_UNKNOWN)}; it is {self.on_unknown!r}."
            )
        if self.priority is not None:
            priority_number(self.priority)


def _check_time(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime; it is {value!r}.")
    if timezone.is_naive(value):
        raise ValueError(
            f"{name} must be an aware datetime (see django.utils.timezone); it is {value!r}."
        )


def priority_number(priority: int | str) -> int:
    """Return a priority as 0 to 9; raise ``ValueError`` for what is none."""
    number = PRIORITIES.get(priority) if isinstance(priority, str) else priority
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 9:
        names = ", ".join(PRIORITIES)
        raise ValueError(f"priority must be 0 to 9 or one of {names}; it is {priority!r}.")
    return number


def parse_options(given: Mapping[str, Any]) -> Options:
    """Return the options of a call; raise ``TypeError`` naming one that does not exist."""
    unknown = sorted(set(given) - set(Options.__dataclass_fields__))
    if unknown:
        known = ", ".join(sorted(Options.__dataclass_fields__))
        raise TypeError(f"There is no option {unknown[0]!r}. The options are: {known}.")
    return Options(**given)


def default_queue(*, bulk: bool) -> tuple[str, int]:
    """Return queue and priority of a mail that names none."""
    return (BULK_QUEUE, BULK_PRIORITY) if bulk else (QUEUE, QUEUE_PRIORITY)
