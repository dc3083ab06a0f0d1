"""What people do to mails from the admin: each by POST, with permission, confirmed and logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.formats import number_format
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext, pgettext_lazy

from django_epica_mail import lifecycle, outbox
from django_epica_mail.admin.base import MOST, may_operate
from django_epica_mail.admin.export import export
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog, EmailQuerySet

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


_SHOWN = 10
"""How many of the chosen mails the confirmation names."""
DETAIL = "from_detail"
"""The field that says that a mail's own page asked, which is returned to."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing that can be done to mails."""

    name: str
    label: StrOrPromise
    """What the menu and the button say."""
    effect: StrOrPromise
    """What the confirmation says will happen."""
    sources: frozenset[Status]
    """The statuses of the mails it is for; others are passed over."""
    run: Callable[[list[UUID]], Any]
    """Does it, and returns to how many mails, or a response."""
    needs_content: bool = False


def _cancel(ids: list[UUID]) -> int:
    return len(outbox.cancel(ids).cancelled)


def _send_again(ids: list[UUID]) -> int:
    return len(outbox.send_again(ids))


OPERATIONS = (
    Operation(
        name="requeue",
        label=_("Queue again"),
        effect=_(
            "They are queued again, with all their tries. Recipients that accepted the e-mail "
            "before are not sent to again; where that is unknown, it may arrive a second time."
        ),
        sources=lifecycle.REQUEUE.sources,
        run=outbox.requeue,
        needs_content=True,
    ),
    Operation(
        name="cancel",
        label=pgettext_lazy("e-mail", "Cancel"),
        effect=_("They are called back and not sent, unless a worker is sending them already."),
        sources=lifecycle.CANCEL.sources,
        run=_cancel,
    ),
    Operation(
        name="send_now",
        label=_("Send now"),
        effect=_("They no longer wait for their time, or for the next try."),
        sources=lifecycle.CLAIMABLE,
        run=outbox.send_now,
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
        label=_("Unknown: it arrived"),
        effect=_("They count as sent."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict="arrived"),
    ),
    Operation(
        name="decide_resend",
        label=_("Unknown: try once more"),
        effect=_("They are tried once more, and may arrive a second time."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict="resend"),
        needs_content=True,
    ),
    Operation(
        name="decide_write_off",
        label=_("Unknown: write off"),
        effect=_("They count as failed, and are not tried again."),
        sources=frozenset({Status.UNKNOWN}),
        run=partial(outbox.decide, verdict="write off"),
    ),
    Operation(
        name="export_csv",
        label=_("Export as CSV"),
        effect=_("A file with their data is downloaded: no content, but addresses and subjects."),
        sources=frozenset(Status),
        run=export,
    ),
)


def possible(mail: EmailLog) -> list[Operation]:
    """Return what can be done to one mail; its content must have been asked for."""
    return [
        operation
        for operation in OPERATIONS
        if mail.status in operation.sources and (mail.envelope or not operation.needs_content)
    ]


class Operations:
    """A model admin whose menu has the operations."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Tell whether a user may operate the queue."""
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
    """Ask, or having asked, do; return the page or file, or nothing for the list again."""
    plain = rows.order_by("-pk").prefetch_related(None)
    if operation.needs_content:
        chosen = list(plain.exclude(envelope="").values_list("pk", "status")[: MOST + 1])
    else:
        chosen = list(plain.values_list("pk", "status")[: MOST + 1])
    if len(chosen) > MOST:
        too_many = _(
            "More than %(most)s e-mails are too many at once. Narrow them down by the filters, or "
            "use the command epica_mail."
        )
        model_admin.message_user(
            request, too_many % {"most": number_format(MOST, force_grouping=True)}, messages.ERROR
        )
        return None
    ids = [pk for pk, status in chosen if status in operation.sources]
    if not ids:
        none = _("“%(label)s” is for none of the chosen e-mails.") % {"label": operation.label}
        model_admin.message_user(request, none, messages.WARNING)
        return _back(request)
    if request.POST.get("confirmed") != "yes":
        return _confirmation(operation, model_admin, request, rows, ids)
    done = operation.run(ids)
    _log(request, operation, ids)
    if isinstance(done, HttpResponseBase):
        return done
    report = ngettext("%(label)s: %(count)d e-mail.", "%(label)s: %(count)d e-mails.", done)
    level = messages.SUCCESS if done else messages.WARNING
    model_admin.message_user(request, report % {"label": operation.label, "count": done}, level)
    return _back(request)


def _back(request: HttpRequest) -> HttpResponseBase | None:
    """Return to the mail's own page where that is what asked; else to the list."""
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    if DETAIL not in request.POST or len(selected) != 1:
        return None
    return HttpResponseRedirect(reverse("admin:epica_mail_emaillog_change", args=selected))


def _confirmation(
    operation: Operation,
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    rows: EmailQuerySet,
    ids: Sequence[UUID],
) -> TemplateResponse:
    everything = request.POST.get("select_across") == "1"
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    shown = list(rows.filter(pk__in=ids[:_SHOWN]))
    statuses = Counter(rows.filter(pk__in=selected).values_list("status", flat=True))
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": operation.label,
        "operation": operation,
        "count": len(ids),
        "passed_over": 0 if everything else sum(statuses.values()) - len(ids),
        "shown": shown,
        "more": len(ids) - len(shown),
        "selected": selected[:1] if everything else selected,
        "select_across": int(everything),
        "checkbox": helpers.ACTION_CHECKBOX_NAME,
        "from_detail": DETAIL in request.POST,
        "media": model_admin.media,
    }
    return TemplateResponse(request, "admin/epica_mail/confirm.html", context)


def _log(request: HttpRequest, operation: Operation, ids: Sequence[UUID]) -> None:
    """Write into the admin's own log who did what to which mails."""
    LogEntry.objects.log_actions(
        str(request.user.pk),
        [EmailLog(pk=pk) for pk in ids],
        CHANGE,
        f"Operation: {operation.name}",
    )
