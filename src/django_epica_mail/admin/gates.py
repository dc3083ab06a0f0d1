"""Queues and transports in the admin: their state, and buttons to pause, resume and probe."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from django_epica_mail import outbox
from django_epica_mail.admin.base import BaseAdmin, ReadOnly, may_operate
from django_epica_mail.broker import celery_config
from django_epica_mail.models import DeliveryGate
from django_epica_mail.monitoring import backlog, history
from django_epica_mail.transports import config as transports

Scope = DeliveryGate.Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One queue or transport, whether or not it was ever held back."""

    scope: str
    name: str
    row: DeliveryGate | None

    @property
    def kind(self) -> str:
        """The name of the scope."""
        return str(Scope(self.scope).label)

    @property
    def label(self) -> str:
        """The scope and the name, as in ``queue emails``."""
        return f"{self.kind} {self.name}"

    @property
    def is_paused(self) -> bool:
        """Whether a person paused it."""
        return self.row is not None and self.row.paused

    @property
    def is_out_of_order(self) -> bool:
        """Whether its breaker is open, or waits for a probe to succeed."""
        return self.row is not None and self.row.outages > 0

    @property
    def reason(self) -> str:
        """Why it is out of order."""
        return self.row.reason if self.row is not None and self.is_out_of_order else ""

    @property
    def open_until(self) -> datetime | None:
        """When one e-mail probes a transport that is out of order."""
        return self.row.open_until if self.row is not None else None


def known_gates(flows: Collection[tuple[str, str]], using: str) -> list[Gate]:
    """Return a gate for each queue and transport in ``flows``, in the settings or with a row."""
    known = DeliveryGate.objects.using(using).filter(scope__in=Scope.values)
    rows = {(row.scope, row.name): row for row in known}
    queues = {celery_config.site_queue(bulk=bulk) for bulk in (False, True)}
    queues |= {queue for queue, _alias in flows}
    aliases = {*transports.aliases(), *(alias for _queue, alias in flows)}
    keys = {(Scope.QUEUE.value, name) for name in queues}
    keys |= {(Scope.TRANSPORT.value, name) for name in aliases}
    return [
        Gate(scope=scope, name=name, row=rows.get((scope, name)))
        for scope, name in sorted({*keys, *rows})
    ]


def _known_gates() -> list[Gate]:
    using = router.db_for_write(DeliveryGate)
    return known_gates({*backlog.waiting(using), *history.queues_and_transports(using)}, using)


@admin.register(DeliveryGate)
class DeliveryGateAdmin(ReadOnly, BaseAdmin):
    """What is paused or out of order, and when each queue was last swept."""

    def get_urls(self) -> list[URLPattern]:
        """Add the URL that the buttons post to."""
        view = self.admin_site.admin_view(self.operate)
        own = path("operate/", view, name="epica_mail_deliverygate_operate")
        return [own, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show all queues and transports, including those that were never held back."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": str(self.opts.verbose_name_plural).capitalize(),
            "gates": _known_gates(),
            "may_operate": may_operate(request),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/epica_mail/gates.html", context)

    @method_decorator(require_POST)
    def operate(self, request: HttpRequest) -> HttpResponse:
        """Carry out a button of this page or of the dashboard, and redirect to ``next``.

        ``do`` is ``pause``, ``resume`` or ``probe``, then a scope and a name, separated by spaces.
        """
        may_look = self.has_view_permission(request) or request.user.has_perm(
            "epica_mail.view_emaillog"
        )
        if not (may_look and may_operate(request)):
            raise PermissionDenied
        verb, _space, target = request.POST.get("do", "").partition(" ")
        scope, _space, name = target.partition(" ")
        gate = next((it for it in _known_gates() if (it.scope, it.name) == (scope, name)), None)
        if gate is None:
            raise Http404(f"There is no {target}.")
        said = _do(verb, scope, name) % {"gate": capfirst(gate.label)}
        using = router.db_for_write(DeliveryGate)
        row = DeliveryGate.objects.using(using).get(scope=scope, name=name)
        self.log_change(request, row, said)
        self.message_user(request, said, messages.SUCCESS)
        return HttpResponseRedirect(_next(request))


def _do(verb: str, scope: str, name: str) -> str:
    """Pause, resume or probe, and return a report; raises ``Http404`` if that is impossible."""
    if verb == "pause":
        try:
            outbox.pause(**{scope: name})
        except ValueError as error:  # known from history alone: nothing would be held back
            raise Http404(str(error)) from None
        return _("%(gate)s is paused: its mail waits.")
    if verb == "resume":
        outbox.resume(**{scope: name})
        return _("%(gate)s is resumed; workers start with the next ring.")
    if verb == "probe" and scope == Scope.TRANSPORT and outbox.probe(name):
        return _("%(gate)s is probed by the next e-mail.")
    raise Http404(f"{verb!r} cannot be done to {scope} {name}.")


def _next(request: HttpRequest) -> str:
    """Return where to redirect: a URL of this site, or the list."""
    wanted = request.POST.get("next", "")
    is_safe = url_has_allowed_host_and_scheme(
        wanted, {request.get_host()}, require_https=request.is_secure()
    )
    return wanted if is_safe else reverse("admin:epica_mail_deliverygate_changelist")
