"""The dashboard: health, backlog, gates, workers and history on one page.

Its buttons post to the admin of the gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail import conf
from django_epica_mail.admin import times
from django_epica_mail.admin.base import BaseAdmin, ReadOnly, may_operate
from django_epica_mail.admin.changelist import links
from django_epica_mail.admin.dashboard import charts
from django_epica_mail.admin.dashboard.headline import headline
from django_epica_mail.admin.gates import Scope, known_gates
from django_epica_mail.broker import doorbell
from django_epica_mail.broker import workers as celery_workers
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.monitoring import backlog, health, history, reputation, totals
from django_epica_mail.monitoring.health import spoken
from django_epica_mail.monitoring.history import PERIODS, History
from django_epica_mail.retry import Kind
from django_epica_mail.transports import config as transport_config

REFRESH_SECONDS = 15
_Event = EmailTotal.Event
_MOST_RATES = 20
"""How many categories and domains are shown, the worst first."""
_MOST_SLOWED = 20
"""How many slowed domains are shown, those with the most mail first."""
_REPLY = 160
"""The most characters of a server's reply that are shown."""
_SHARES = (0.5, 0.95, 0.99)


@admin.register(EmailTotal)
class DashboardAdmin(ReadOnly, BaseAdmin):
    """A single page in place of a list of totals, for users who may view e-mails."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("epica_mail.view_emaillog")

    def get_urls(self) -> list[URLPattern]:
        """Return the URL of the page, under the name by which the admin links to a model."""
        view = self.admin_site.admin_view(self.show)
        return [path("", view, name="epica_mail_emailtotal_changelist")]

    def show(self, request: HttpRequest) -> HttpResponse:
        """Return the page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return _show(request, self.admin_site)


@require_safe
@never_cache
def _show(request: HttpRequest, site: admin.AdminSite) -> HttpResponse:
    using = router.db_for_read(EmailLog)
    choice = Choice.of(request.GET)
    period = PERIODS[choice.period]
    past = history.read(period, using, queue=choice.queue, transport=choice.transport)
    moment, _first = backlog.clock_and_first_mail(using)
    slowed = SlowedDomains(using)
    flows = _flow_rows(using, moment, slowed)
    gates = known_gates([(flow["queue"], flow["transport"]) for flow in flows], using)
    measured = health.measure(slowed)
    report = health.judge(measured, conf.get())
    asks = "workers" in request.GET
    context = {
        **site.each_context(request),
        "title": _("E-mail dashboard"),
        "opts": EmailTotal._meta,
        "choice": choice,
        "periods": PERIODS,
        "verdict": report,
        "headline": headline(report, gates, flows),
        "is_send_mail_queued": transport_config.is_send_mail_queued(),
        "delivers_here": doorbell.delivers_here(),
        "is_fresh": measured.first_mail_age is None and not flows,
        "flows": flows,
        "gates": gates,
        "slowed": _slowed_rows(using, moment, slowed),
        "queues": [gate.name for gate in gates if gate.scope == Scope.QUEUE],
        "transports": [gate.name for gate in gates if gate.scope == Scope.TRANSPORT],
        "may_operate": may_operate(request),
        "tiles": [(_Event(event).label, past.counts[event]) for event in history.CHARTED],
        "charts": _draw_charts(past, is_by_day=period.is_by_day),
        "times": _time_rows(past),
        "reputation": reputation.rates(using)[:_MOST_RATES],
        "reputation_days": conf.get().reputation_days,
        "reasons": _reason_rows(past, choice),
        "workers": _ask_workers() if asks else None,
        "asks_workers": asks,
        "refresh": 0 if asks else REFRESH_SECONDS,
        "now": timezone.now(),
        "zone": times.zone(),
    }
    return TemplateResponse(request, "admin/epica_mail/dashboard.html", context)


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of the history that the query string asks for."""

    period: str
    queue: str
    transport: str

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Choice:
        """Return the choice in a query string; an unknown period becomes the shortest."""
        period = given.get("period", "")
        known = period if period in PERIODS else next(iter(PERIODS))
        queue, transport = (
            given.get(name, "").replace("\0", "")[:64] for name in ("queue", "transport")
        )
        return cls(known, queue, transport)

    @property
    def query(self) -> str:
        """The query string that asks for this choice."""
        pairs = {"period": self.period, "queue": self.queue, "transport": self.transport}
        return urlencode({name: value for name, value in pairs.items() if value})


def _flow_rows(using: str, moment: datetime, slowed: SlowedDomains) -> list[dict[str, Any]]:
    """Return the backlog and the e-mails sent in the last minute, by queue and transport."""
    waiting = {(it.queue, it.transport): it for it in backlog.backlogs(using, moment, slowed)}
    rates = history.sent_in_a_minute(using)
    keys = {*waiting, *rates, *history.queues_and_transports(using)}
    return [
        {
            "queue": key[0],
            "transport": key[1],
            "query": urlencode({"queue": key[0], "transport": key[1]}),
            "backlog": waiting.get(key),
            "oldest": _age(waiting[key].oldest_due_age) if key in waiting else "",
            "rate": rates.get(key, 0),
        }
        for key in sorted(keys)
    ]


def _slowed_rows(using: str, moment: datetime, slowed: SlowedDomains) -> list[dict[str, Any]]:
    """Return the slowed domains and what waits for them, the most first."""
    found = backlog.slowed_backlogs(using, moment, slowed)
    return [
        {
            "domain": it.slowed.row.domain,
            "transport": it.slowed.row.transport,
            "rate": it.slowed.per_minute,
            "since": times.moment(it.slowed.row.since),
            "reply": Truncator(it.slowed.reply).chars(_REPLY),
            "due": it.due,
            "oldest": _age(it.oldest_due_age),
            "query": links.query(slowed=it.slowed.row.domain, transport=it.slowed.row.transport),
        }
        for it in sorted(found, key=lambda it: -it.due)[:_MOST_SLOWED]
    ]


def _draw_charts(past: History, *, is_by_day: bool) -> list[charts.Chart]:
    """Return a chart for each event, and one of the time that delivery took."""
    short, long = ("j M", times.DAY) if is_by_day else (times.CLOCK, times.MOMENT)
    starts = [(timezone.localtime(slot.start), slot) for slot in past.slots]
    names = [(date_format(at, short), date_format(at, long), slot) for at, slot in starts]
    counted = [
        charts.draw(
            event.value,
            str(event.label).capitalize(),
            _("e-mails"),
            [(near, far, slot.counts[event]) for near, far, slot in names],
            _grouped,
            before=[it.earlier.counts[event] if it.earlier else None for it in past.slots],
        )
        for event in history.CHARTED
    ]
    took = [
        (near, far, totals.quantile(_Event.SENT, slot.buckets, 0.95) or 0.0)
        for near, far, slot in names
    ]
    before = [
        totals.quantile(_Event.SENT, it.earlier.buckets, 0.95) if it.earlier else None
        for it in past.slots
    ]
    title, unit = _("From queueing to acceptance, 95 % within"), _("time")
    return [*counted, charts.draw("took", title, unit, took, spoken, before=before, is_time=True)]


def _time_rows(past: History) -> list[dict[str, Any]]:
    """Return the time that delivery took, by queue and transport."""
    return [
        {
            "queue": queue,
            "transport": alias,
            "count": sum(buckets),
            "shares": [_age(totals.quantile(_Event.SENT, buckets, share)) for share in _SHARES],
        }
        for (queue, alias), buckets in sorted(past.times.items())
    ]


def _reason_rows(past: History, choice: Choice) -> list[dict[str, Any]]:
    """Return why e-mails failed, each reason with the query strings that list those e-mails."""
    where: dict[str, Any] = {"queue": choice.queue, "transport": choice.transport}
    since = past.slots[0].start
    return [
        {
            "label": Kind(reason.kind).label if reason.kind in Kind.values else reason.kind,
            "code": reason.code or "",
            "count": reason.count,
            "query": links.failures(reason.kind, reason.code, since=since, **where),
            "last_hour": links.failures(reason.kind, reason.code, since="hour", **where),
        }
        for reason in past.reasons
    ]


def _ask_workers() -> dict[str, Any]:
    """Ask the workers for their queues, which takes at most two seconds if the broker answers."""
    try:
        found = sorted(celery_workers.consumed().items())
        return {"found": found, "error": "", "work": None if found else health.worker()}
    except Exception as error:  # noqa: BLE001 - any broker, any error: the page reports it
        text = _("The broker cannot be asked for its workers (%(error)s).")
        return {"found": [], "work": None, "error": text % {"error": type(error).__name__}}


def _age(seconds: float | None) -> str:
    return "" if seconds is None else spoken(seconds)


def _grouped(value: float) -> str:
    return number_format(value, 0 if value == int(value) else 1, force_grouping=True)
