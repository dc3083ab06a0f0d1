"""The question before an operation: which e-mails it will touch, in groups that can be left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.http import QueryDict
from django.utils.dateparse import parse_datetime
from django.utils.text import Truncator

from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailQuerySet
from django_epica_mail.retry import Kind

COLUMNS = ("pk", "status", "failure_kind", "failure_code", "finished_at")
_SHOWN = 10
"""The confirmation lists at most this many of the chosen e-mails."""
_REPLY = 120
"""Characters of a server's reply in the name of a group."""


class Chosen(NamedTuple):
    """What the question needs of an e-mail: the values of ``COLUMNS``."""

    pk: UUID
    status: str
    failure_kind: str
    failure_code: int | None
    finished_at: datetime | None

    @property
    def group(self) -> str:
        """The key of its group: e-mails of one status that failed for one reason, if they did."""
        return f"{self.status}|{self.failure_kind}|{self.failure_code or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The chosen e-mails of one status and reason."""

    key: str
    count: int
    status: str
    label: str
    """The name of the status."""
    reason: str
    """The reply code and the reason of the failure; empty if they did not fail."""
    reply: str
    """What the server said to one of them."""


def page(rows: EmailQuerySet, wanted: Sequence[Chosen]) -> dict[str, Any]:
    """Return the context of the question: the groups, and the first of the e-mails."""
    shown = list(rows.filter(pk__in=[it.pk for it in wanted[:_SHOWN]]))
    return {
        "groups": _groups(wanted, rows.db),
        "shown": shown,
        "more": len(wanted) - len(shown),
        "newest": max(it.pk for it in wanted),
        "last_end": ends.isoformat() if (ends := _last_end(wanted)) else "",
    }


def confirmed(form: QueryDict, wanted: Iterable[Chosen]) -> list[Chosen]:
    """Return those of the e-mails that the question was about.

    These are the groups that were not left out, without the e-mails that came to match after the
    question was asked.
    """
    groups = set(form.getlist("group"))
    newest, last_end = _id(form.get("newest", "")), _moment(form.get("last_end", ""))

    def was_asked(mail: Chosen) -> bool:
        if "grouped" in form and mail.group not in groups:
            return False
        if mail.finished_at is not None:
            return last_end is None or mail.finished_at <= last_end
        return newest is None or mail.pk <= newest

    return [it for it in wanted if was_asked(it)]


def _last_end(mails: Iterable[Chosen]) -> datetime | None:
    return max((it.finished_at for it in mails if it.finished_at is not None), default=None)


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _moment(text: str) -> datetime | None:
    try:
        moment = parse_datetime(text)
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else None


def _groups(wanted: Iterable[Chosen], using: str) -> list[Group]:
    """Return the groups, the largest first."""
    members: Mapping[str, list[Chosen]] = defaultdict(list)
    for it in wanted:
        members[it.group].append(it)
    firsts = [mails[0].pk for mails in members.values()]
    replies = dict(
        EmailLog.objects.using(using).filter(pk__in=firsts).order_by().values_list("pk", "reply")
    )
    groups = [
        Group(
            key=key,
            count=len(mails),
            status=mails[0].status,
            label=str(Status(mails[0].status).label),
            reason=_reason(mails[0]),
            reply=Truncator(" ".join(replies.get(mails[0].pk, "").split())).chars(_REPLY),
        )
        for key, mails in members.items()
    ]
    return sorted(groups, key=lambda it: -it.count)


def _reason(mail: Chosen) -> str:
    kind = mail.failure_kind
    label = Kind(kind).label if kind in Kind.values else kind
    return " ".join(str(it) for it in (mail.failure_code, label) if it)
