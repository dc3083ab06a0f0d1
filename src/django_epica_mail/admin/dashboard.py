"""The dashboard: whether mail flows, what waits, what happened; its buttons are those of gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail import conf
from django_epica_mail.admin import charts
from django_epica_mail.admin.base import ReadOnly, may_operate
from django_epica_mail.admin.gates import Scope, known_gates
from django_epica_mail.broker import workers as celery_workers
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.monitoring import backlog, health, history, totals
from django_epica_mail.monitoring.health import spoken
from django_epica_mail.monitoring.history import PERIODS, History
from django_epica_mail.retry import Kind

_SINCE = {"24h": "day", "7d": "week", "30d": "month"}
"""The periods that the list of mails knows, too."""
_SHARES = (0.5, 0.95, 0.99)
_Event = EmailTotal.Event


@dataclass(frozen=True, slots=True)
class Choice:
    """What part of the history is looked at, as the address of the page has it."""

    period: str
    queue: str
    transport: str

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Choice:
        """Return what a query string asks for; a period there is not is the shortest."""
        period = given.get("period", "")
        known = period if period in PERIODS else next(iter(PERIODS))
        return cls(known, given.get("queue", "")[:64], given.get("transport", "")[:64])

    @property
    def query(self) -> str:
        """The query string that asks for it."""
        pairs = {"period": self.period, "queue": self.queue, "transport": self.transport}
        return urlencode({name: value for name, value in pairs.items() if value})


def _queue_rows(using: str) -> list[dict[str, Any]]:
    """Return what waits and flows, by queue and transport."""
    moment, _first = backlog.clock_and_first_mail(using)
    waiting = {(it.queue, it.transport): it for it in backlog.backlogs(using, moment)}
    rates = history.sent_in_a_minute(using)
    keys = {*waiting, *rates, *history.queues_and_transports(using)}
    return [
        {
            "queue": key[0],
            "transport": key[1],
            "backlog": waiting.get(key),
            "oldest": _age(waiting[key].oldest_due_age) if key in waiting else "",
            "rate": rates.get(key, 0),
        }
        for key in sorted(keys)
    ]


def _age(seconds: float | None) -> str:
    return "" if seconds is None else spoken(seconds)


def _draw_charts(past: History, *, is_by_day: bool) -> list[charts.Chart]:
    """Return a chart of each event, and one of how long delivery took."""
    short, long = ("j M", "DATE_FORMAT") if is_by_day else ("H:i", "DATETIME_FORMAT")
    times = [(timezone.localtime(slot.start), slot) for slot in past.slots]
    names = [(date_format(at, short), date_format(at, long), slot) for at, slot in times]
    counted = [
        charts.draw(
            event.value,
            str(event.label).capitalize(),
            _("e-mails"),
            [(near, far, slot.counts[event]) for near, far, slot in names],
            _grouped,
        )
        for event in history.CHARTED
    ]
    took = [
        (near, far, totals.quantile(_Event.SENT, slot.buckets, 0.95) or 0.0)
        for near, far, slot in names
    ]
    title, unit = _("From queueing to acceptance, 95 % within"), _("time")
    return [*counted, charts.draw("took", title, unit, took, spoken, is_time=True)]


def _grouped(value: float) -> str:
    return number_format(value, 0 if value == int(value) else 1, force_grouping=True)


def _time_rows(past: History) -> list[dict[str, Any]]:
    """Return how long delivery took, by queue and transport."""
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
    """Return why mail failed, each with the filters of the list of what failed for that kind."""
    shared = {
        "status": Status.FAILED.value,
        "queue": choice.queue,
        "transport": choice.transport,
        "since": _SINCE.get(choice.period, ""),
    }
    where = {name: value for name, value in shared.items() if value}
    return [
        {
            "label": Kind(reason.kind).label if reason.kind in Kind.values else reason.kind,
            "code": reason.code or "",
            "count": reason.count,
            "query": urlencode({**where, "failure_kind": reason.kind}),
        }
        for reason in past.reasons
    ]


def _ask_workers() -> dict[str, Any]:
    """Ask the workers, which takes two seconds at most with a broker that answers."""
    try:
        return {"found": sorted(celery_workers.consumed().items()), "error": ""}
    except Exception as error:  # noqa: BLE001 - any broker, any error: it is what was asked for
        text = _("The broker cannot be asked for its workers (%(error)s).")
        return {"found": [], "error": text % {"error": type(error).__name__}}


REFRESH_SECONDS = 15
_Event2 = EmailTotal.Event


@admin.register(EmailTotal)
class DashboardAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """One page instead of a list of totals; seen with the permission to view e-mails."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("epica_mail.view_emaillog")

    def get_urls(self) -> list[URLPattern]:
        """Return the page, under the name by which the admin links a model."""
        view = self.admin_site.admin_view(self.show)
        return [path("", view, name="epica_mail_emailtotal_changelist")]

    def show(self, request: HttpRequest) -> HttpResponse:
        """Answer with the page."""
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
    lanes = _queue_rows(using)
    gates = known_gates([(lane["queue"], lane["transport"]) for lane in lanes], using)
    asks = "workers" in request.GET
    context = {
        **site.each_context(request),
        "title": _("E-mail dashboard"),
        "opts": EmailTotal._meta,
        "choice": choice,
        "periods": PERIODS,
        "verdict": health.judge(health.measure(), conf.get()),
        "lanes": lanes,
        "gates": gates,
        "queues": [gate.name for gate in gates if gate.scope == Scope.QUEUE],
        "transports": [gate.name for gate in gates if gate.scope == Scope.TRANSPORT],
        "may_operate": may_operate(request),
        "tiles": [(_Event2(event).label, past.counts[event]) for event in history.CHARTED],
        "charts": _draw_charts(past, is_by_day=period.is_by_day),
        "times": _time_rows(past),
        "reasons": _reason_rows(past, choice),
        "workers": _ask_workers() if asks else None,
        "asks_workers": asks,
        "refresh": 0 if asks else REFRESH_SECONDS,
        "now": timezone.now(),
    }
    return TemplateResponse(request, "admin/epica_mail/dashboard.html", context)
