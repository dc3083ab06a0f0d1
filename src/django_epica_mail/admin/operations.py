"""Operations on e-mails in the admin: by POST, with permission, confirmed and logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, pgettext_lazy

from django_epica_mail import clock, lifecycle, outbox
from django_epica_mail.admin import confirmation
from django_epica_mail.admin.base import MOST, grouped, may_operate
from django_epica_mail.admin.changelist.links import page_url
from django_epica_mail.admin.export import export
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailQuerySet

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


DETAIL = "from_detail"
"""The form field that asks to return to the e-mail's own page."""
LOGGED = "Operation: "
"""How the admin's log begins to say which operation was run, and why."""
_NOTE = 200
"""Characters of a reason that the admin's log keeps."""

PRIMARY, SECONDARY, DANGEROUS = "primary", "secondary", "dangerous"
"""How an operation is ranked: what is wanted first, what may be, and what takes something away."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on the chosen e-mails."""

    name: str
    label: StrOrPromise
    """The text of the menu entry and the button."""
    effect: StrOrPromise
    """What the confirmation says will happen."""
    sources: frozenset[Status]
    """The statuses it applies to; other e-mails are skipped."""
    run: Callable[[list[UUID]], Any]
    """Performs the operation; returns the number of e-mails changed, or a response."""
    needs_content: bool = False
    rank: str = SECONDARY
    """Of ``PRIMARY``, ``SECONDARY`` and ``DANGEROUS``."""


def _cancel(ids: list[UUID]) -> int:
    return len(outbox.cancel(ids).cancelled)


def _send_again(ids: list[UUID]) -> int:
    return len(outbox.send_again(ids))


OPERATIONS = (
    Operation(
        name="requeue",
        label=_("Queue again"),
        effect=_(
            "They are queued again with a fresh set of attempts. Recipients who already accepted "
            "the e-mail do not get it again; if that is unknown, it may arrive a second time."
        ),
        sources=lifecycle.REQUEUE.sources,
        run=outbox.requeue,
        needs_content=True,
        rank=PRIMARY,
    ),
    Operation(
        name="cancel",
        label=pgettext_lazy("e-mail", "Cancel"),
        effect=_("They are withdrawn and not sent, unless a worker is already sending them."),
        sources=lifecycle.CANCEL.sources,
        run=_cancel,
        rank=DANGEROUS,
    ),
    Operation(
        name="send_now",
        label=_("Send now"),
        effect=_("They become due now; a pause or rate limit still applies."),
        sources=lifecycle.CLAIMABLE,
        run=outbox.send_now,
        rank=PRIMARY,
    ),
    Operation(
        name="send_again",
        label=_("Send again as new e-mails"),
        effect=_("A new e-mail is queued for each, to all of its recipients."),
        sources=lifecycle.FINAL,
        run=_send_again,
        needs_content=True,
    ),
    Operation(
        name="decide_arrived",
        label=_("Mark as arrived"),
        effect=_("They count as sent."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict=outbox.Verdict.ARRIVED),
        rank=PRIMARY,
    ),
    Operation(
        name="decide_resend",
        label=_("Resend"),
        effect=_("They are sent once more, and may arrive a second time."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict=outbox.Verdict.RESEND),
        needs_content=True,
    ),
    Operation(
        name="decide_write_off",
        label=_("Write off"),
        effect=_("They count as failed, and are not sent again."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict=outbox.Verdict.WRITE_OFF),
        rank=DANGEROUS,
    ),
    Operation(
        name="export_csv",
        label=_("Export as CSV"),
        effect=_("A file with their data is downloaded: addresses and subjects, but no content."),
        sources=frozenset(Status),
        run=export,
    ),
)


BY_NAME = {operation.name: operation for operation in OPERATIONS}
_RANKS = (PRIMARY, SECONDARY, DANGEROUS)


def possible(mail: EmailLog) -> list[Operation]:
    """Return the operations that change something, ranked; the envelope must not be deferred."""
    return _ranked(
        operation
        for operation in OPERATIONS
        if mail.status in operation.sources
        and (mail.envelope or not operation.needs_content)
        and not _is_idle(operation, mail)
    )


def for_statuses(statuses: Collection[str]) -> list[Operation]:
    """Return the operations that apply to e-mails of any of these statuses, ranked."""
    return _ranked(it for it in OPERATIONS if not it.sources.isdisjoint(statuses))


def _is_idle(operation: Operation, mail: EmailLog) -> bool:
    """Return whether an operation would do nothing, or what another one is made for."""
    if operation.name == "send_now":  # it is due already
        return bool(mail.due_at <= timezone.now() + clock.offset)
    # To queue again what may have arrived is to resend it, which is a decision of its own.
    return operation.name == "requeue" and mail.status == Status.UNKNOWN


def _ranked(operations: Iterable[Operation]) -> list[Operation]:
    return sorted(operations, key=lambda it: _RANKS.index(it.rank))


class OperatePermission:
    """A mixin for a model admin: the permission that its operations require."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may operate the queue."""
        return may_operate(request)


def _action(operation: Operation) -> Callable[..., Any]:
    @admin.action(permissions=["operate"], description=operation.label)
    def act(
        model_admin: admin.ModelAdmin[Any], request: HttpRequest, rows: EmailQuerySet
    ) -> HttpResponseBase | None:
        return _operate(operation, model_admin, request, rows)

    act.__name__ = operation.name
    return act


ACTIONS = [_action(operation) for operation in OPERATIONS]


def _operate(
    operation: Operation,
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    rows: EmailQuerySet,
) -> HttpResponseBase | None:
    """Ask for confirmation or, once confirmed, act; ``None`` returns to the list."""
    plain = rows.order_by("-pk").prefetch_related(None)
    if operation.needs_content:
        plain = plain.exclude(envelope="")
    chosen = list(plain.values_list(*confirmation.COLUMNS)[: MOST + 1])
    if len(chosen) > MOST:
        too_many = _(
            "At most %(most)s e-mails can be chosen at once. Narrow them down with the filters, "
            "or use the epica_mail command."
        )
        model_admin.message_user(request, too_many % {"most": grouped(MOST)}, messages.ERROR)
        return None
    rows_of_reasons = [confirmation.Chosen(*it) for it in chosen]
    wanted = [it for it in rows_of_reasons if it.status in operation.sources]
    is_confirmed = request.POST.get("confirmed") == "yes"
    if is_confirmed:
        wanted = confirmation.confirmed(request.POST, wanted)
    ids = [it.pk for it in wanted]
    if not ids:
        none = _("“%(label)s” applies to none of the chosen e-mails.") % {"label": operation.label}
        model_admin.message_user(request, none, messages.WARNING)
        return _back(request, model_admin.admin_site)
    if not is_confirmed:
        return _confirmation(operation, model_admin, request, rows, wanted)
    done = operation.run(ids)
    _log(request, operation, ids)
    if isinstance(done, HttpResponseBase):
        return done
    report = ngettext("%(label)s: %(count)s e-mail.", "%(label)s: %(count)s e-mails.", done)
    level = messages.SUCCESS if done else messages.WARNING
    about = {"label": operation.label, "count": grouped(done)}
    model_admin.message_user(request, report % about, level)
    return _back(request, model_admin.admin_site)


def _back(request: HttpRequest, site: admin.AdminSite) -> HttpResponseBase | None:
    """Return to the e-mail's own page if the request came from there, otherwise to the list."""
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    if DETAIL not in request.POST or len(selected) != 1:
        return None
    return HttpResponseRedirect(page_url(site, "emaillog_change", *selected))


def _confirmation(
    operation: Operation,
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    rows: EmailQuerySet,
    wanted: Sequence[confirmation.Chosen],
) -> TemplateResponse:
    everything = request.POST.get("select_across") == "1"
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    statuses = Counter(rows.filter(pk__in=selected).values_list("status", flat=True))
    context = {
        **model_admin.admin_site.each_context(request),
        **confirmation.page(rows, wanted),
        "opts": model_admin.opts,
        "title": operation.label,
        "operation": operation,
        "count": len(wanted),
        "skipped": 0 if everything else sum(statuses.values()) - len(wanted),
        "selected": selected[:1] if everything else selected,
        "select_across": int(everything),
        "checkbox": helpers.ACTION_CHECKBOX_NAME,
        "from_detail": DETAIL in request.POST,
    }
    return TemplateResponse(request, "admin/epica_mail/confirm.html", context)


def _log(request: HttpRequest, operation: Operation, ids: Sequence[UUID]) -> None:
    """Record in the admin's log who ran which operation on which e-mails, and why.

    Logs all ids passed to ``run``, including those it did not change.
    """
    note = " ".join(request.POST.get("note", "").replace("\0", "").split())[:_NOTE]
    LogEntry.objects.log_actions(
        str(request.user.pk),
        [EmailLog(pk=pk) for pk in ids],
        CHANGE,
        f"{LOGGED}{operation.name}" + (f": {note}" if note else ""),
    )
