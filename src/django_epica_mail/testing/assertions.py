"""Assertions about queued mail; on failure, they show the closest mail and its differences."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Any

from django.core.mail import EmailMessage
from django.db import router

from django_epica_mail import lifecycle, rules
from django_epica_mail.delivery.batch import Batch, ClaimedMail
from django_epica_mail.delivery.prepare import MessageLoader
from django_epica_mail.models import EmailLog

_LISTED = 10
"""A failed assertion lists at most this many mails."""


@dataclass(frozen=True, slots=True)
class _Queued:
    """A row and its message, if the content is kept."""

    log: EmailLog
    message: EmailMessage | None

    def actual(self, name: str) -> Any:
        """Return the value that an expectation of this name is compared with."""
        if name in _OF_ROW:
            return getattr(self.log, _OF_ROW[name])
        return None if self.message is None else _OF_MESSAGE[name](self.message)

    def __str__(self) -> str:
        to = "?" if self.message is None else ", ".join(map(str, self.message.recipients()))
        return f"{self.log.subject!r} to {to} ({self.log.status} in {self.log.queue})"


def _html(message: EmailMessage) -> str | None:
    alternatives = getattr(message, "alternatives", ())
    html = [str(content) for content, kind in alternatives if kind == "text/html"]
    if html:
        return html[0]
    return str(message.body) if message.content_subtype == "html" else None


def _filenames(message: EmailMessage) -> list[str | None]:
    return [
        attachment[0] if isinstance(attachment, tuple) else attachment.get_filename()
        for attachment in message.attachments
    ]


_OF_MESSAGE: Mapping[str, Callable[[EmailMessage], Any]] = {
    "subject": lambda message: str(message.subject),
    "body": lambda message: str(message.body),
    "body_contains": lambda message: str(message.body),
    "html": _html,
    "html_contains": _html,
    "from_email": lambda message: str(message.from_email),
    "to": lambda message: list(map(str, message.to)),
    "cc": lambda message: list(map(str, message.cc)),
    "bcc": lambda message: list(map(str, message.bcc)),
    "reply_to": lambda message: list(map(str, message.reply_to)),
    "headers": lambda message: {name: str(it) for name, it in message.extra_headers.items()},
    "attachments": _filenames,
}
_OF_ROW = {
    "queue": "queue",
    "transport": "transport",
    "category": "category",
    "priority": "priority",
    "send_at": "due_at",
    "expires_at": "expires_at",
    "idempotency_key": "idempotency_key",
    "on_unknown": "on_unknown",
}


def assert_email_queued(
    count: int | None = None, *, status: str | None = None, **expected: Any
) -> list[EmailLog]:
    """Assert that matching mail is in the queue; return its rows in the order they were queued.

    ``count`` is the exact number of matches; the default is at least one. ``status`` is one of
    ``EmailLog.Status``; by default, the mail waits for a worker. In ``expected``, ``subject``,
    ``body``, ``html``, ``from_email``, ``to``, ``cc``, ``bcc``, ``reply_to``, ``attachments``
    (file names), ``queue``, ``transport``, ``category``, ``priority``, ``send_at``,
    ``expires_at``, ``idempotency_key`` and ``on_unknown`` must be equal to the mail's; ``headers``
    must be a subset of the mail's; ``body_contains`` and ``html_contains`` must occur in the text.
    A compiled regular expression may replace any text, and is searched for. One bare address may
    replace a list of addresses, and must be in it.

    Raises ``AssertionError``, which shows the closest mail and its differences.
    """
    _check_names(expected)
    every = list(_rows(status))
    found = [it.log for it in every if not any(_differences(it, expected))]
    if found if count is None else len(found) == count:
        return found
    raise AssertionError("\n".join(_explanation(every, len(found), count, status, expected)))


def assert_no_email_queued(*, status: str | None = None, **expected: Any) -> None:
    """Assert that no matching mail is in the queue; see ``assert_email_queued``."""
    assert_email_queued(0, status=status, **expected)


def _check_names(expected: Mapping[str, Any]) -> None:
    known = (*_OF_MESSAGE, *_OF_ROW)
    for name in expected:
        if name not in known:
            raise TypeError(f"{name!r} is not an expectation; these are: {known}.")


def _rows(status: str | None) -> Iterator[_Queued]:
    using = router.db_for_write(EmailLog)
    wanted = lifecycle.CLAIMABLE if status is None else {lifecycle.Status(status)}
    for log in EmailLog.objects.using(using).filter(status__in=wanted).order_by("id"):
        yield _Queued(log, _message(log, using) if log.envelope else None)


def _message(log: EmailLog, using: str) -> EmailMessage:
    """Return the message of a row as a worker would send it."""
    batch = Batch(
        transport=log.transport,
        mails=[ClaimedMail(log, too_old=False, is_expired=False)],
        using=using,
        claimed_at=0,
        has_attachments=True,
    )
    loader = MessageLoader(batch)
    loader.fetch(log)
    return loader.message(log)


def _differences(queued: _Queued, expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, wanted in expected.items():
        actual = queued.actual(name)
        if name == "priority":
            wanted = rules.priority_number(wanted)
        if not _is_met(name, wanted, actual):
            yield name, wanted, actual


def _is_met(name: str, wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, re.Pattern):
        return actual is not None and wanted.search(str(actual)) is not None
    if name.endswith("_contains"):
        return actual is not None and str(wanted) in actual
    if name == "headers":
        return actual is not None and {**actual, **wanted} == actual
    if isinstance(actual, list):
        if isinstance(wanted, str):
            return wanted.lower() in {parseaddr(str(it))[1].lower() for it in actual}
        return actual == list(wanted)
    return bool(actual == wanted)


def _explanation(
    every: list[_Queued],
    found: int,
    count: int | None,
    status: str | None,
    expected: Mapping[str, Any],
) -> Iterator[str]:
    what = f"{status or 'waiting'} e-mails"
    wanted = "at least one" if count is None else count
    yield f"{found} of {len(every)} {what} match; expected {wanted}."
    others = [it for it in every if any(_differences(it, expected))]
    if others and found < (1 if count is None else count):
        closest = min(others, key=lambda it: len(list(_differences(it, expected))))
        yield f"Closest: {closest}. Differences (- expected, + actual):"
        for name, desired, actual in _differences(closest, expected):
            yield f"  {name}"
            yield from (f"    {line}" for line in _diff(desired, actual))
    if every:
        yield f"All {what}:"
        yield from (f"  {it}" for it in every[:_LISTED])
        if len(every) > _LISTED:
            yield f"  and {len(every) - _LISTED} more"


def _diff(wanted: Any, actual: Any) -> Iterator[str]:
    """Yield the lines that show how two values differ."""
    if isinstance(wanted, str) and isinstance(actual, str):
        sides = wanted.splitlines(), actual.splitlines()
        if max(map(len, sides)) > 1:
            compared = difflib.ndiff(*sides)
            yield from (line.rstrip() for line in compared if not line.startswith("?"))
            return
    shown = wanted.pattern if isinstance(wanted, re.Pattern) else wanted
    yield f"- {shown!r}"
    yield f"+ {actual!r}"
