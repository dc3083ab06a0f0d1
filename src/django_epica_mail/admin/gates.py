"""Queues and transports in the admin: their state, and buttons to pause, resume and probe."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.text import Truncator, capfirst
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from django_epica_mail import outbox
from django_epica_mail.admin import times
from django_epica_mail.admin.base import BaseAdmin, ReadOnly, may_operate
from django_epica_mail.admin.changelist.links import page_url
from django_epica_mail.broker import celery_config
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.models import DeliveryGate, SlowedDomain
from django_epica_mail.monitoring import backlog, history
from django_epica_mail.replies import REPLY_LENGTH, without_addresses
from django_epica_mail.transports import config as transports

Scope = DeliveryGate.Scope
_RECENT = timedelta(hours=1)
"""For how long the success of a probe is shown."""
_REASON = 160
"""The most characters of a reason that are shown."""


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
        return Scope(self.scope).named(self.name)

    @property
    def is_paused(self) -> bool:
        """Whether a person paused it."""
        return self.row is not None and self.row.paused

    @property
    def is_out_of_order(self) -> bool:
        """Whether its breaker is open, or waits for a probe to succeed."""
        return self.row is not None and self.row.outages > 0

    @property
    def is_closed(self) -> bool:
        """Whether it holds mail back or slows it down, for whatever reason."""
        row = self.row
        return row is not None and (
            row.paused
            or row.outages > 0
            or (row.open_until is not None and row.open_until > timezone.now())
        )

    @property
    def awaits_probe(self) -> bool:
        """Whether a probe is due, and its outcome is to be expected within seconds."""
        until = self.row.open_until if self.row is not None else None
        return self.is_out_of_order and (until is None or until <= timezone.now())

    @property
    def reason(self) -> str:
        """Why it is out of order or slowed down, in one short line; empty if it is neither."""
        if self.row is None or not self.is_closed:
            return ""
        reason = without_addresses(self.row.reason[:REPLY_LENGTH])
        return Truncator(" ".join(reason.split())).chars(_REASON)

    @property
    def last_sweep(self) -> str:
        """When the sweep last looked at it; empty if it never did."""
        at = self.row.last_sweep_at if self.row is not None else None
        return "" if at is None else times.moment(at)

    @property
    def states(self) -> list[State]:
        """What there is to know about it, the worst first; empty if it was never closed."""
        return list(_states(self))


@dataclass(frozen=True, slots=True)
class State:
    """One thing to know about a gate."""

    tone: str
    """``good``, ``warn`` or ``bad``."""
    label: str
    text: str
    """Since when, by whom, why, and what comes next; may be empty."""


def _states(gate: Gate) -> Iterator[State]:
    row = gate.row
    if row is None:
        return
    if gate.is_out_of_order:
        yield State("bad", _("out of order"), _outage(gate, row))
    if row.paused:
        yield State("warn", _("paused"), pause_of(row))
    if gate.is_closed and not gate.is_out_of_order and not row.paused and row.open_until:
        text = _("until %(time)s") % {"time": times.clock(row.open_until)}
        yield State("warn", _("slowed down"), ": ".join(filter(None, (text, gate.reason))))
    probed = None if gate.is_out_of_order else row.probed_at
    if probed is not None and timezone.now() - probed < _RECENT:
        text = _("The probe of %(time)s succeeded.") % {"time": times.clock(probed)}
        yield State("good", _("open"), text)


def _outage(gate: Gate, row: DeliveryGate) -> str:
    """Return since when and why a transport is out of order, and the outcome of its probes."""
    parts = [gate.reason]
    if row.tripped_at is not None:
        parts.insert(0, _("since %(time)s") % {"time": times.clock(row.tripped_at)})
    said = [": ".join(filter(None, parts))]
    if row.probed_at is not None:
        said.append(_("The probe of %(time)s failed.") % {"time": times.clock(row.probed_at)})
    if gate.awaits_probe or row.open_until is None:
        said.append(_("The next e-mail probes it."))
    else:
        text = _("One e-mail probes it at %(time)s.")
        said.append(text % {"time": times.clock(row.open_until)})
    return " · ".join(filter(None, said))


def pause_of(row: DeliveryGate) -> str:
    """Return by whom, since when and why a gate is paused, as far as its row says."""
    about = {"name": row.paused_by, "time": times.clock(row.paused_at) if row.paused_at else ""}
    if row.paused_by and row.paused_at:
        text = _("by %(name)s since %(time)s") % about
    else:
        text = _("since %(time)s") % about if row.paused_at else ""
    return ": ".join(filter(None, (text, row.note)))


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
            "slowed": [
                (it, times.moment(it.row.since))
                for it in SlowedDomains(router.db_for_write(SlowedDomain)).found
            ],
            "may_operate": may_operate(request),
            "zone": times.zone(),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/epica_mail/gates.html", context)

    @method_decorator(require_POST)
    def operate(self, request: HttpRequest) -> HttpResponse:
        """Carry out a button of this page or of the dashboard, and redirect to ``next``.

        ``do`` is ``pause``, ``resume``, ``restore`` or ``probe``, then a scope and a name,
        separated by spaces; ``note`` says why it is paused. The message has a button that undoes
        a pause or a resume; it belongs to the form ``epica-operate`` of the page that it is on.
        The scope of a slowed domain is ``domain``.
        """
        may_look = self.has_view_permission(request) or request.user.has_perm(
            "epica_mail.view_emaillog"
        )
        if not (may_look and may_operate(request)):
            raise PermissionDenied
        verb, _space, target = request.POST.get("do", "").partition(" ")
        scope, _space, name = target.partition(" ")
        if (verb, scope) == ("resume", "domain"):
            return self._set_free(request, name)
        gate = next((it for it in _known_gates() if (it.scope, it.name) == (scope, name)), None)
        if gate is None:
            raise Http404(f"There is no {target}.")
        said = _do(verb, scope, name, request) % {"gate": capfirst(gate.label)}
        using = router.db_for_write(DeliveryGate)
        row = DeliveryGate.objects.using(using).get(scope=scope, name=name)
        self.log_change(request, row, said)
        shown = said
        if (inverse := _UNDONE_BY.get(verb)) is not None:
            shown = format_html(_UNDO, said, f"{inverse} {scope} {name}", _("Undo"))
        self.message_user(request, shown, messages.SUCCESS)
        return HttpResponseRedirect(_next(request, self.admin_site))

    def _set_free(self, request: HttpRequest, domain: str) -> HttpResponse:
        """Send to a slowed domain at full speed again; raise ``Http404`` if it is not slowed."""
        rows = SlowedDomain.objects.using(router.db_for_write(SlowedDomain)).filter(domain=domain)
        if not (found := list(rows)):
            raise Http404(f"{domain} is not slowed down.")
        said = _("Mail to %(domain)s goes at full speed again.") % {"domain": domain}
        for row in found:
            self.log_change(request, row, said)
        outbox.resume(domain=domain)
        self.message_user(request, said, messages.SUCCESS)
        return HttpResponseRedirect(_next(request, self.admin_site))


_UNDO = (
    '{} <button type="submit" class="epica-button epica-small" form="epica-operate" name="do" '
    'value="{}">{}</button>'
)
_UNDONE_BY = {"pause": "resume", "resume": "restore"}


def _do(verb: str, scope: str, name: str, request: HttpRequest) -> str:
    """Pause, resume or probe, and return a report; raises ``Http404`` if that is impossible."""
    if verb == "pause":
        note = " ".join(request.POST.get("note", "").replace("\0", "").split())
        by = str(request.user.get_username())  # a number, or an object of its own, on some sites
        try:
            outbox.pause(**{scope: name}, by=by, note=note)
        except ValueError as error:  # known from history alone: nothing would be held back
            raise Http404(str(error)) from None
        return _("%(gate)s is paused: its mail waits.")
    if verb == "resume":
        outbox.resume(**{scope: name})
        return _("%(gate)s is resumed; workers start with the next ring.")
    if verb == "restore" and gates.restore_pause(scope, name, router.db_for_write(DeliveryGate)):
        return _("%(gate)s is paused again, as it was.")
    if verb == "probe" and scope == Scope.TRANSPORT and outbox.probe(name):
        return _("%(gate)s: the next e-mail probes it. The outcome appears beside its name.")
    raise Http404(f"{verb!r} cannot be done to {scope} {name}.")


def _next(request: HttpRequest, site: admin.AdminSite) -> str:
    """Return where to redirect: a URL of this host, or the list."""
    wanted = request.POST.get("next", "")
    is_safe = url_has_allowed_host_and_scheme(
        wanted, {request.get_host()}, require_https=request.is_secure()
    )
    return wanted if is_safe else page_url(site, "deliverygate_changelist")
