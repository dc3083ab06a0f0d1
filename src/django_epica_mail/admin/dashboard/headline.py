"""The headline of the dashboard: whether mail flows, what keeps it back, and what to press."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_epica_mail.admin import times
from django_epica_mail.admin.gates import Gate, Scope, pause_of
from django_epica_mail.lifecycle import Status
from django_epica_mail.monitoring.health import Check, HealthReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that keeps mail back."""

    text: str
    is_bad: bool = False
    """Whether no mail flows while it lasts."""
    query: str = ""
    """The query string that lists the mail concerned; empty if there is none to list."""
    do: str = ""
    """What the button that ends it posts; empty if no button can."""
    label: str = ""
    """The text of that button."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One of three levels, in a sentence, and the causes with the first one worst."""

    level: str
    """``good``, ``warn`` or ``bad``."""
    text: str
    causes: Sequence[Cause]


def headline(
    report: HealthReport, gates: Sequence[Gate], flows: Sequence[dict[str, Any]]
) -> Headline:
    """Return the headline for what was measured; ``flows`` are the rows of the dashboard."""
    closed = {(gate.scope, gate.name) for gate in gates if gate.is_closed}
    held = [_holders(flow) & closed for flow in flows]
    causes = [_of_gate(gate, flows) for gate in gates if gate.is_closed]
    causes += [_of_check(it) for it in report.checks if not it.is_well and it.name != "breaker"]
    causes.sort(key=lambda cause: not cause.is_bad)
    if not causes:
        return Headline("good", _("Mail flows."), ())
    if (held and all(held)) or causes[0].is_bad:
        return Headline("bad", _("No mail flows: %(cause)s") % {"cause": causes[0].text}, causes)
    return Headline("warn", _("Mail flows, except %(cause)s") % {"cause": causes[0].text}, causes)


def _holders(flow: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the gates that mail of a row passes through."""
    return {(Scope.QUEUE.value, flow["queue"]), (Scope.TRANSPORT.value, flow["transport"])}


def _of_gate(gate: Gate, flows: Sequence[dict[str, Any]]) -> Cause:
    behind = [
        flow["backlog"]
        for flow in flows
        if flow["backlog"] is not None and (gate.scope, gate.name) in _holders(flow)
    ]
    count = sum(it.waiting for it in behind)
    row = gate.row
    tripped = row.tripped_at if row is not None and gate.is_out_of_order else None
    since = tripped or min((it.oldest_due for it in behind if it.oldest_due), default=None)
    parts = []
    if count:
        about = {"number": number_format(count, force_grouping=True)}
        if since is None:
            parts.append(ngettext("%(number)s waits", "%(number)s wait", count) % about)
        else:
            text = ngettext(
                "%(number)s waits since %(time)s", "%(number)s wait since %(time)s", count
            )
            parts.append(text % {**about, "time": times.clock(since)})
    if row is not None and row.paused:
        parts.append(" ".join(filter(None, (_("paused"), pause_of(row)))))
    if gate.reason:
        parts.append(gate.reason)
    shown = f"{gate.label}: {', '.join(parts)}" if parts else gate.label
    do, label = _remedy(gate)
    query = urlencode({"now": "waiting", gate.scope: gate.name})
    query = query if count else ""
    return Cause(text=shown, query=query, do=do, label=label)


def _remedy(gate: Gate) -> tuple[str, str]:
    if gate.row is not None and gate.row.paused:
        return f"resume {gate.scope} {gate.name}", _("Resume")
    if gate.is_out_of_order and gate.scope == Scope.TRANSPORT:
        return f"probe {gate.scope} {gate.name}", _("Try now")
    return "", ""


def _of_check(check: Check) -> Cause:
    stops_all = check.name == "worker" or (check.name == "failures" and check.value == 1)
    where = {"status": Status.FAILED.value, "since": "day"} if check.name == "failures" else {}
    return Cause(text=check.text, is_bad=stops_all, query=urlencode(where))
