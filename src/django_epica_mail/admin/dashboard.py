"""The dashboard: whether mail flows, what waits, what happened, and buttons to stop and go on."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe

from django_epica_mail import conf, health, history, outbox, pulse
from django_epica_mail.admin import overview
from django_epica_mail.admin.read_only import ReadOnly
from django_epica_mail.history import PERIODS
from django_epica_mail.models import DeliveryGate, EmailLog, EmailTotal

REFRESH_SECONDS = 15
_Event = EmailTotal.Event
_Scope = DeliveryGate.Scope


@admin.register(EmailTotal)
class DashboardAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """One page instead of a list of totals; seen with the permission to view e-mails."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("epica_mail.view_emaillog")

    def get_urls(self) -> list[URLPattern]:
        """Return the page, under the name by which the admin links a model, and its buttons'."""
        site = self.admin_site
        return [
            path("", site.admin_view(self.show), name="epica_mail_emailtotal_changelist"),
            path("operate/", site.admin_view(self.operate), name="epica_mail_dashboard_operate"),
        ]

    def show(self, request: HttpRequest) -> HttpResponse:
        """Answer with the page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return _show(request, self.admin_site)

    def operate(self, request: HttpRequest) -> HttpResponse:
        """Pause, resume or probe what a button names, note it in the admin's log, and go back."""
        if not (self.has_view_permission(request) and may_operate(request)):
            raise PermissionDenied
        return _operate(request, self)


def may_operate(request: HttpRequest) -> bool:
    """Tell whether a person may stop queues and transports, and let them go on."""
    return request.user.has_perm("epica_mail.operate_emaillog")


@require_safe
@never_cache
def _show(request: HttpRequest, site: admin.AdminSite) -> HttpResponse:
    using = router.db_for_read(EmailLog)
    choice = overview.Choice.of(request.GET)
    period = PERIODS[choice.period]
    past = history.read(period, using, queue=choice.queue, transport=choice.transport)
    lanes = overview.lanes(using)
    gates = overview.gates(lanes, using)
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
        "queues": [gate.name for gate in gates if gate.scope == _Scope.QUEUE],
        "transports": [gate.name for gate in gates if gate.scope == _Scope.TRANSPORT],
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


@csrf_protect
@require_POST
def _operate(request: HttpRequest, model_admin: DashboardAdmin) -> HttpResponse:
    verb, _space, target = request.POST.get("do", "").partition(" ")
    scope, _space, name = target.partition(" ")
    using = router.db_for_read(EmailLog)
    known = {(gate.scope, gate.name) for gate in overview.gates(overview.lanes(using), using)}
    if (scope, name) not in known:
        raise Http404(f"There is no {target}.")
    if verb == "pause":
        outbox.pause(**{scope: name})
        said = _("%(gate)s is paused: its mail waits.")
    elif verb == "resume":
        outbox.resume(**{scope: name})
        said = _("%(gate)s goes on; workers begin with the next ring.")
    elif verb == "probe" and scope == _Scope.TRANSPORT and outbox.probe(name):
        said = _("%(gate)s is tried with the next mail.")
    else:
        raise Http404(f"{verb!r} cannot be done to {target}.")
    gate = DeliveryGate.objects.using(router.db_for_write(DeliveryGate)).get(scope=scope, name=name)
    said %= {"gate": f"{capfirst(_Scope(scope).label)} {name}"}
    model_admin.log_change(request, gate, said)
    messages.success(request, said)
    page = reverse(
        "admin:epica_mail_emailtotal_changelist", current_app=model_admin.admin_site.name
    )
    return HttpResponseRedirect(f"{page}?{overview.Choice.of(request.POST).query}")
