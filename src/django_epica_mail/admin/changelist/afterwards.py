"""What happened to e-mails after they were sent: the second badge, its filter and the notice.

A server that accepts an e-mail may still send it back, and its reader may call it spam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from django.db.models import Max, Q, QuerySet
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.tracking.events import UNAUTHENTICATED

Kind = EmailEvent.Kind


@dataclass(frozen=True, slots=True)
class Outcome:
    """Something that happens to an e-mail after it was sent."""

    kind: EmailEvent.Kind
    tone: str
    """The status that gives it its colour."""
    is_rare: bool = True
    """Whether few e-mails have it, so that the index of events finds them."""
    needs_person: bool = False
    """Whether it counts only if a person did it: machines open and follow links as well."""


OUTCOMES = (
    Outcome(Kind.COMPLAINED, "failed"),
    Outcome(Kind.BOUNCED, "failed"),
    Outcome(Kind.REJECTED, "failed"),
    Outcome(Kind.FAILED, "failed"),
    Outcome(Kind.UNSUBSCRIBED, "unknown"),
    Outcome(Kind.CLICKED, "sent", is_rare=False, needs_person=True),
    Outcome(Kind.OPENED, "sent", is_rare=False, needs_person=True),
    Outcome(Kind.DELIVERED, "sent", is_rare=False),
    Outcome(Kind.DEFERRED, "unknown"),
)
"""The outcomes that are shown. Of several, the first one is the e-mail's: bad news first."""

BY_KIND = {it.kind.value: it for it in OUTCOMES}
_NEED_PERSON = [it.kind for it in OUTCOMES if it.needs_person]
_RANK = {it.kind.value: rank for rank, it in enumerate(OUTCOMES)}
_IS_BAD = frozenset(it.kind.value for it in OUTCOMES if it.tone == "failed")
_NOTICES = 5
"""The page of an e-mail gives at most this many notices."""


def believed(using: str) -> QuerySet[EmailEvent]:
    """Return the events of ``OUTCOMES``, without those that anybody may have posted."""
    events = EmailEvent.objects.using(using).filter(kind__in=list(BY_KIND), email__isnull=False)
    by_people = ~Q(kind__in=_NEED_PERSON) | Q(is_machine=False)
    return events.filter(by_people).exclude(reason=UNAUTHENTICATED).order_by()


def of_each(ids: Iterable[UUID], using: str) -> dict[UUID, Outcome]:
    """Return the outcome of those of the e-mails that have one, by one query."""
    # Grouped, because an e-mail may have an event of each of its recipients.
    events = believed(using).filter(email__in=list(ids)).values_list("email_id", "kind")
    found: dict[UUID, Outcome] = {}
    for pk, kind, _last in events.annotate(last=Max("at")):
        if pk not in found or _RANK[kind] < _RANK[found[pk].kind]:
            found[pk] = BY_KIND[kind]
    return found


def badge(outcome: Outcome | None) -> SafeString:
    """Return an outcome as a badge with its name; empty if there is none."""
    if outcome is None:
        return SafeString("")
    return format_html(
        '<span class="epica-badge epica-{}">{}</span>', outcome.tone, outcome.kind.label
    )


def bad_news(mail: EmailLog) -> Iterator[EmailEvent]:
    """Yield the newest events that say that an e-mail did not reach its reader."""
    events = believed(mail._state.db or "default").filter(email=mail, kind__in=_IS_BAD)
    yield from events.order_by("-at")[:_NOTICES]
