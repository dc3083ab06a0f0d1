"""The dashboard: whether mail flows, what waits, what happened; its buttons are those of gates."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail import conf, health, history, pulse
from django_epica_mail.admin import overview
from django_epica_mail.admin.gates import Scope, known_gates
from django_epica_mail.admin.read_only import ReadOnly, may_operate
from django_epica_mail.history import PERIODS
from django_epica_mail.models import EmailLog, EmailTotal

REFRESH_SECONDS = 15
_Event = EmailTotal.Event


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
    choice = overview.Choice.of(request.GET)
    period = PERIODS[choice.period]
    past = history.read(period, using, queue=choice.queue, transport=choice.transport)
    lanes = overview.lanes(using)
    gates = known_gates([(lane["queue"], lane["transport"]) for lane in lanes], using)
    asks = "workers" in request.GET
    context = {
        **site.each_context(request),
        "title": _("E-mail dashboard"),
        "opts": EmailTotal._meta,
        "choice": choice,
        "periods": PERIODS,
        "verdict": health.judge(pulse.pulse(), conf.get()),
        "lanes": lanes,
        "gates": gates,
        "queues": [gate.name for gate in gates if gate.scope == Scope.QUEUE],
        "transports": [gate.name for gate in gates if gate.scope == Scope.TRANSPORT],
        "may_operate": may_operate(request),
        "tiles": [(_Event(event).label, past.counts[event]) for event in history.CHARTED],
        "charts": overview.drawn(past, is_by_day=period.is_by_day),
        "times": overview.times(past),
        "reasons": overview.reasons(past, choice),
        "workers": overview.workers() if asks else None,
        "asks_workers": asks,
        "refresh": 0 if asks else REFRESH_SECONDS,
        "now": timezone.now(),
    }
    return TemplateResponse(request, "admin/epica_mail/dashboard.html", context)
