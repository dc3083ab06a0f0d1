"""The history of an e-mail in order of time, and what it is waiting for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.utils import timezone
from django.utils.formats import localize, number_format
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from django_epica_mail import clock, conf, lifecycle
from django_epica_mail.admin import operations, times
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailEvent, EmailLog
from django_epica_mail.transports import config as transports

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


_ATTEMPTS = 100
"""At most this many attempts are shown, the newest."""
_EVENTS = 100
"""At most this many of a provider's events are shown, the newest."""
_DEEDS = 100
"""At most this many deeds of people are shown, the newest."""
_DEEDS_SEARCHED = 50_000
"""They are searched for among this many of the newest entries of the admin's log."""
_BAD_NEWS = frozenset(
    {
        EmailEvent.Kind.BOUNCED,
        EmailEvent.Kind.REJECTED,
        EmailEvent.Kind.FAILED,
        EmailEvent.Kind.COMPLAINED,
    }
)
_TONES: dict[str, Status] = {
    **dict.fromkeys((it.value for it in _BAD_NEWS), Status.FAILED),
    EmailEvent.Kind.RESOLVED.value: Status.UNKNOWN,
}
"""The tone of an event; that of any other is good news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    at: datetime
    title: StrOrPromise
    tone: str
    """The status that gives it its colour."""
    facts: list[StrOrPromise] = field(default_factory=list)
    link: str = ""
    """The link that was followed."""
    reply: str = ""
    """The server's reply."""

    @property
    def time(self) -> SafeString:
        """When it happened, as HTML."""
        return times.element(self.at)


def timeline(mail: EmailLog, *, with_links: bool) -> list[Event]:
    """Return all that is known to have happened to an e-mail, oldest first.

    ``with_links`` adds the links that were followed; they are content, such as a reset link.
    """
    events = chain.from_iterable(source(mail) for source in SOURCES)
    shown = (it if with_links else replace(it, link="") for it in events)
    return sorted(shown, key=lambda it: it.at)


def waiting_for(mail: EmailLog) -> list[StrOrPromise]:
    """Return what an e-mail is waiting for; empty if its status is final."""
    if mail.status == Status.SENDING:
        return [_("A worker is sending it: %(worker)s.") % {"worker": mail.worker}]
    if mail.status == Status.UNKNOWN:
        settings, is_held = conf.get(), mail.on_unknown == EmailLog.IfUnknown.HOLD
        if not settings.awaits_evidence or (is_held and settings.evidence is None):
            return [_("It may have arrived: a person decides whether to send it again.")]
        text = _("It may have arrived: it waits for evidence, and is decided about at %(time)s.")
        return [text % {"time": times.clock(mail.due_at)}]
    if mail.status not in lifecycle.CLAIMABLE:
        return []
    reasons = list(_held_back(mail))
    if mail.due_at > timezone.now() + clock.offset:
        reasons.insert(0, _("It is due at %(time)s.") % {"time": times.clock(mail.due_at)})
    return reasons or [_("It is due and waits for a worker.")]


def _held_back(mail: EmailLog) -> Iterator[StrOrPromise]:
    state = gates.Gates(mail._state.db or "default")
    if not state.queue_is_open(mail.queue):
        yield _("The queue “%(name)s” is paused.") % {"name": mail.queue}
    if mail.batch_id is not None and mail.category in state.held_categories():
        yield _("Bulk mail of the category “%(name)s” is paused.") % {"name": mail.category}
    for it in SlowedDomains(mail._state.db or "default").found:
        if it.key == (mail.transport, mail.domain):
            text = _("Mail to “%(domain)s” is slowed down to %(rate)s a minute: %(reply)s")
            yield text % {
                "domain": mail.domain,
                "rate": number_format(it.per_minute),
                "reply": it.row.reply,
            }
    if mail.transport not in transports.aliases():
        yield _("There is no transport “%(name)s” in the settings.") % {"name": mail.transport}
    elif not state.open_transports([mail.transport]):
        yield _("The transport “%(name)s” is held back (%(why)s).") % {
            "name": mail.transport,
            "why": _why(state, mail.transport),
        }


def _why(state: gates.Gates, alias: str) -> str:
    if f"transport {alias}" in state.paused():
        return _("paused")
    return _("out of order: %(reply)s") % {"reply": state.reply(alias)}


def _queued(mail: EmailLog) -> Iterator[Event]:
    where = _("in the queue “%(queue)s”, priority %(priority)d")
    yield Event(
        at=mail.created_at,
        title=_("Queued"),
        tone=Status.QUEUED,
        facts=[where % {"queue": mail.queue, "priority": mail.priority}],
    )


def _attempts(mail: EmailLog) -> Iterator[Event]:
    newest = mail.delivery_attempts.order_by("-number")[:_ATTEMPTS]
    for attempt in reversed(newest):
        event = _attempt(attempt)
        # The last attempt is recorded a moment after the end it led to, in one transaction.
        yield replace(event, at=min(event.at, mail.finished_at or event.at))


def _attempt(attempt: DeliveryAttempt) -> Event:
    if attempt.failure_kind:
        title = _("Attempt %(number)d: %(failure)s") % {
            "number": attempt.number,
            "failure": attempt.get_failure_kind_display(),
        }
    else:
        title = _("Attempt %(number)d: accepted by the server") % {"number": attempt.number}
    facts: list[StrOrPromise] = [
        _("via the transport “%(name)s”") % {"name": attempt.transport},
        _("worker %(worker)s") % {"worker": attempt.worker},
    ]
    if attempt.seconds is not None:
        facts.append(_("took %(seconds)s s") % {"seconds": localize(round(attempt.seconds, 3))})
    facts += _provider_id(attempt)
    return Event(
        at=attempt.created_at,
        title=title,
        tone=Status.RETRYING if attempt.failure_kind else Status.SENT,
        facts=facts,
        reply=" ".join(filter(None, [str(attempt.code or ""), attempt.reply])),
    )


def _events(mail: EmailLog) -> Iterator[Event]:
    for event in mail.events.order_by("-at")[:_EVENTS]:
        facts = [event.source, event.address, event.reason]
        if event.is_machine:
            facts.append(_("by a machine"))
        yield Event(
            at=event.at,
            title=event.get_kind_display().capitalize(),
            tone=_TONES.get(event.kind, Status.SENT),
            facts=[*(fact for fact in facts if fact), *_provider_id(event)],
            link=event.url,
            reply=event.reply,
        )


def _provider_id(row: DeliveryAttempt | EmailEvent) -> list[StrOrPromise]:
    return [_("provider's id %(id)s") % {"id": row.provider_id}] if row.provider_id else []


def _deeds(mail: EmailLog) -> Iterator[Event]:
    """Yield what people did to an e-mail in the admin, among the newest deeds of all.

    The admin's log has no index by row, so older entries are not looked for.
    """
    log = LogEntry.objects.order_by("-pk")
    oldest = log.values_list("pk", flat=True)[_DEEDS_SEARCHED - 1 : _DEEDS_SEARCHED].first()
    found = log.filter(
        content_type=ContentType.objects.get_for_model(EmailLog),
        object_id=str(mail.pk),
        change_message__startswith=operations.LOGGED,
        pk__gte=oldest or 0,
    )
    for entry in found.select_related("user")[:_DEEDS]:
        name, _colon, why = entry.change_message.removeprefix(operations.LOGGED).partition(": ")
        operation = operations.BY_NAME.get(name)
        label = operation.label if operation else name
        yield Event(
            at=entry.action_time,
            title=_("%(person)s: %(operation)s")
            % {"person": entry.user.get_username(), "operation": label},
            tone="person",
            facts=[why] if why else [],
        )


def _end(mail: EmailLog) -> Iterator[Event]:
    if mail.finished_at is not None:
        yield Event(
            at=mail.finished_at,
            title=mail.get_status_display().capitalize(),
            tone=mail.status,
            facts=[mail.get_failure_kind_display()] if mail.failure_kind else [],
        )


SOURCES = (_queued, _attempts, _end, _events, _deeds)
"""Each yields the events it knows of an e-mail; add one for a new kind of event."""
