"""Translates Celery's options of ``apply_async`` for a bulk call, which is a row and no message.

Each option is honoured, or concerns only the message that Celery would publish, or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from django_epica_mail.exceptions import as_invalid_message
from django_epica_mail.routing import Options

_HONOURED = ("countdown", "eta", "expires", "priority", "queue", "task_id")
_OF_THE_MESSAGE = frozenset(
    (
        # how Celery would publish the call
        *("add_to_parent", "argsrepr", "compression", "connection", "delivery_mode", "headers"),
        *("kwargsrepr", "producer", "publisher", "retry", "retry_policy", "route_name"),
        *("serializer", "shadow"),
        # where canvas and beat say that the call belongs
        *("group_id", "group_index", "ignore_result", "parent_id", "replaced_task_nesting"),
        *("reply_to", "root_id", "stamped_headers"),
    )
)
"""Options that say how the call travels and what it belongs to: a row needs none of them."""
_REMEDIES = {
    **dict.fromkeys(
        ("chain", "chord", "link", "link_error"),
        "no message runs that could call another. Use transaction.on_commit() for what follows "
        "the call, and django_epica_mail.signals for what follows each mail",
    ),
    **dict.fromkeys(("exchange", "routing_key"), "give queue instead"),
    **dict.fromkeys(
        ("soft_time_limit", "time_limit"),
        "EPICA_MAIL['SEND_TIMEOUT'] limits each mail, and expires the time until it is sent",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What the options of one bulk call mean for its batch and its mails."""

    batch_id: UUID | None = None
    """The id that the caller wants for the handle."""
    queue: str | None = None
    """The queue of the mails, and of the ring that makes a worker expand the call."""
    of_entries: Mapping[str, Any] = field(default_factory=dict)
    """Options for each entry that does not have its own."""

    def apply_to(self, entry: Any) -> Any:
        """Return an entry with the options of the call; its own take precedence."""
        if not self.of_entries or not isinstance(entry, dict):
            return entry  # ``bulk.expand`` reports an entry that is no dict
        given = dict(self.of_entries)
        if entry.get("expires_after") is not None:
            given.pop("expires_at", None)
        return {**given, **{name: value for name, value in entry.items() if value is not None}}


def translate(given: Mapping[str, Any]) -> CallOptions:
    """Return the meaning of the options of an ``apply_async``; ``None`` and ``[]`` mean not given.

    ``countdown`` and ``eta`` become ``send_at``, ``expires`` becomes ``expires_at``, ``queue`` and
    ``priority`` keep their names. Raises ``TypeError`` or ``ValueError`` naming an option that has
    no meaning here, or a value that is invalid.
    """
    wanted = {
        name: value
        for name, value in given.items()
        if value not in (None, []) and name not in _OF_THE_MESSAGE | _stamps(given)
    }
    for name in sorted(set(wanted) - set(_HONOURED)):
        raise TypeError(
            f"A bulk call has no option {name!r}: "
            + _REMEDIES.get(name, f"the options are {', '.join(_HONOURED)}")
            + "."
        )
    with as_invalid_message("The call"):
        options: dict[str, Any] = {
            "send_at": _send_at(wanted.get("eta"), wanted.get("countdown")),
            "expires_at": _time("expires", wanted.get("expires")),
            "queue": getattr(wanted.get("queue"), "name", wanted.get("queue")),
            "priority": wanted.get("priority"),
        }
        Options(**options)  # refuse an invalid value in the caller
    return CallOptions(
        batch_id=_uuid(wanted["task_id"]) if "task_id" in wanted else None,
        queue=options["queue"],
        of_entries={name: value for name, value in options.items() if value is not None},
    )


def _stamps(given: Mapping[str, Any]) -> set[str]:
    """Return the names of the stamps that Celery's canvas passes as options."""
    return set(given.get("stamped_headers") or ())


def _send_at(eta: object, countdown: object) -> datetime | None:
    if eta is not None and countdown is not None:
        raise TypeError("Give eta or countdown, not both.")
    if countdown is not None and not _is_number(countdown):
        raise TypeError(f"countdown must be a number of seconds; it is {countdown!r}.")
    return _time("eta", eta) if countdown is None else _time("countdown", countdown)


def _time(name: str, value: Any) -> datetime | None:
    """Return the moment that a time, or a number of seconds from now, means."""
    if value is None:
        return None
    if _is_number(value) and name != "eta":
        return timezone.now() + timedelta(seconds=value)
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime; it is {value!r}.")
    if timezone.is_naive(value):
        raise ValueError(
            f"{name} must be an aware datetime (see django.utils.timezone); it is {value!r}."
        )
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _uuid(task_id: object) -> UUID:
    try:
        return UUID(str(task_id))
    except ValueError:
        raise ValueError(
            f"task_id must be a UUID, because it becomes the key of the call's row; it is "
            f"{task_id!r}."
        ) from None
