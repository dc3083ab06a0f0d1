"""What is paused or out of order, in the admin, with the buttons that hold and let go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from django_epica_mail import clock, maintenance, outbox
from django_epica_mail import transport as transports
from django_epica_mail.admin.read_only import ReadOnly
from django_epica_mail.models import DeliveryGate

Scope = DeliveryGate.Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One queue or transport, whether or not anything ever held it back."""

    scope: str
    name: str
    row: DeliveryGate | None

    @property
    def label(self) -> str:
        """What the scope is called."""
        return str(Scope(self.scope).label)

    @property
    def is_paused(self) -> bool:
        """Whether a person holds it back."""
        return self.row is not None and self.row.paused

    @property
    def is_out_of_order(self) -> bool:
        """Whether its breaker is open, or waits for a probe to get through."""
        return self.row is not None and self.row.outages > 0

    @property
    def is_probed(self) -> bool:
        """Whether one mail may try a transport that is out of order."""
        opens = self.row and self.row.open_until
        return bool(opens and opens <= timezone.now() + clock.offset)


def known_gates() -> list[Gate]:
    """Return every queue that has rows, every transport of the settings, and all with a state."""
    using = router.db_for_read(DeliveryGate)
    rows = {(row.scope, row.name): row for row in DeliveryGate.objects.using(using)}
    queues = [(Scope.QUEUE.value, name) for name in maintenance.queues(using)]
    aliases = [(Scope.TRANSPORT.value, name) for name in transports.aliases()]
    return [
        Gate(scope=scope, name=name, row=rows.get((scope, name)))
        for scope, name in sorted({*rows, *queues, *aliases})
    ]


@admin.register(DeliveryGate)
class DeliveryGateAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """What is paused or out of order, and when each queue was last swept."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Tell whether a user may pause and resume."""
        return request.user.has_perm("epica_mail.operate_emaillog")

    def get_urls(self) -> list[URLPattern]:
        """Add the address that the buttons post to."""
        view = self.admin_site.admin_view(self.pause_view)
        own = path("pause/", view, name="epica_mail_deliverygate_pause")
        return [own, *super().get_urls()]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow none: there is nothing to filter."""
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show all queues and transports, those that never were held back too."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": str(self.opts.verbose_name_plural).capitalize(),
            "gates": known_gates(),
            "may_operate": self.has_operate_permission(request),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/epica_mail/gates.html", context)

    @method_decorator(require_POST)
    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume what ``scope`` and ``name`` say, and return to ``next``.

        ``paused`` is 1 or 0. For other parts of the admin too.
        """
        if not self.has_operate_permission(request):
            raise PermissionDenied
        scope, name = request.POST.get("scope", ""), request.POST.get("name", "")
        paused = request.POST.get("paused")
        if paused not in ("0", "1") or not any(
            (gate.scope, gate.name) == (scope, name) for gate in known_gates()
        ):
            return HttpResponseBadRequest("There is no such queue or transport.")
        hold = outbox.pause if paused == "1" else outbox.resume
        hold(**{scope: name})
        self._tell(request, DeliveryGate.objects.get(scope=scope, name=name))
        return HttpResponseRedirect(_next(request))

    def _tell(self, request: HttpRequest, gate: DeliveryGate) -> None:
        verb = "pause" if gate.paused else "resume"
        LogEntry.objects.log_actions(
            str(request.user.pk), [gate], CHANGE, f"Operation: {verb}", single_object=True
        )
        told = _("“%(name)s” is paused.") if gate.paused else _("“%(name)s” goes on.")
        self.message_user(request, told % {"name": gate.name}, messages.SUCCESS)


def _next(request: HttpRequest) -> str:
    """Return where to go on: an address of this site, or the list."""
    wanted = request.POST.get("next", "")
    is_safe = url_has_allowed_host_and_scheme(
        wanted, {request.get_host()}, require_https=request.is_secure()
    )
    return wanted if is_safe else reverse("admin:epica_mail_deliverygate_changelist")
