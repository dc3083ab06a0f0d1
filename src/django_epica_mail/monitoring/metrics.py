"""Metrics for Prometheus, all read from the database.

So they are the same from every process of every host, prefork or not, and none is counted where
mail is queued or sent. Gauges are of this moment; counters and histograms are as far as the sweep
has counted (``totals``), which is a minute or two ago, and outlive the rows and the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from django.db import router

from django_epica_mail import conf
from django_epica_mail.delivery import gates
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.monitoring import backlog, health, totals
from django_epica_mail.retry import PASSING, Kind
from django_epica_mail.transports import config as transports

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.metrics_core import Metric


Event = EmailTotal.Event

_LABELS = ("queue", "transport")
_Totals = Mapping[tuple[str, str, str, str], EmailTotal]
"""The totals of all time by queue, transport, event and kind of failure."""

_COUNTERS: Mapping[str, tuple[str, str, Sequence[str]]] = {
    Event.ENQUEUED: ("enqueued", "Mails queued.", ()),
    Event.SENT: ("sent", "Mails accepted by a server.", ()),
    Event.FAILED: ("failed", "Mails that failed, by the kind of failure.", tuple(Kind)),
    Event.CANCELLED: ("cancelled", "Mails called back before they were sent.", ()),
    Event.EXPIRED: ("expired", "Mails not sent before their time was over.", ()),
    Event.SUPPRESSED: ("suppressed", "Mails all of whose recipients were suppressed.", ()),
    Event.ATTEMPT: ("attempts", "Tries; no failure is a success.", ("", *Kind)),
    Event.RETRIED: ("retried", "Tries after the first of a mail.", ()),
    Event.POSTPONED: ("postponed", "Tries whose mail is tried again later.", PASSING),
    Event.UNKNOWN: ("unknown", "Tries that may have been accepted or not.", totals.LOST),
}
"""Of each event its name, its meaning, and the kinds of failure it comes with."""

_HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    Event.SENT: (
        "delivery_seconds",
        "From queueing, or the time it was scheduled for, until a server accepted the mail.",
    ),
    Event.ATTEMPT: ("attempt_seconds", "How long a try, a dialogue with a server, took."),
}


class Collector:
    """Collects all metrics at each scrape; for a registry of ``prometheus_client``."""

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics, read from the database."""
        using = router.db_for_read(EmailLog)
        signs = health.measure()
        moment, _ = backlog.clock_and_first_mail(using)
        waiting = backlog.backlogs(using, moment)
        ever = _merged(EmailTotal.objects.using(using).filter(hour=totals.EVER))
        lanes = {(queue, alias) for queue, alias, _, _ in ever}
        lanes |= {(lane.queue, lane.transport) for lane in waiting}
        yield from _queue_metrics(waiting, lanes)
        yield from _gate_metrics(gates.Gates(using))
        yield from _health_metrics(signs)
        for event, (name, text, kinds) in _COUNTERS.items():
            yield _counter(event, name, text, kinds, ever, lanes)
        for event, (name, text) in _HISTOGRAMS.items():
            yield _histogram(event, name, text, ever)


def registry() -> CollectorRegistry:
    """Return a registry of these metrics alone.

    Raises ``MissingExtra`` without prometheus-client. A site that serves its own metrics registers
    ``Collector()`` in its own registry.
    """
    made: CollectorRegistry = _library().CollectorRegistry()
    made.register(Collector())
    return made


def exposition(accept: str) -> tuple[bytes, str]:
    """Return all metrics in the best format of an ``Accept`` header, and its content type."""
    encode, content_type = _library().exposition.choose_encoder(accept)
    return encode(registry()), content_type


def _library() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtra(
            "Metrics need a package that is not installed: "
            'pip install "django-epica-mail[metrics]".'
        ) from error
    return prometheus_client


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"epica_mail_{name}", text, labels=labels)


def _queue_metrics(
    waiting: Iterable[backlog.Backlog], lanes: Iterable[tuple[str, str]]
) -> Iterator[Metric]:
    found = {(lane.queue, lane.transport): lane for lane in waiting}
    read: dict[str, tuple[str, Callable[[backlog.Backlog], float | None]]] = {
        "waiting": ("Mails that wait, also for a later time.", lambda lane: lane.waiting),
        "due": ("Mails that could be sent now.", lambda lane: lane.due),
        "oldest_due_seconds": (
            "For how long the oldest of them has been due.",
            lambda lane: lane.oldest_due_age,
        ),
        "in_flight": ("Mails that workers hold.", lambda lane: lane.in_flight),
    }
    for name, (text, value) in read.items():
        family = _gauge(name, text, _LABELS)
        for key in sorted(lanes):
            lane = found.get(key)
            family.add_metric(key, (value(lane) if lane else None) or 0)
        yield family


def _gate_metrics(state: gates.Gates) -> Iterator[Metric]:
    down = state.out_of_order()
    breaker = _gauge("breaker_open", "Whether a transport is out of order.", ["transport"])
    for alias in sorted({*transports.aliases(), *down}):
        breaker.add_metric([alias], alias in down)
    yield breaker
    paused = _gauge("paused", "What a person has stopped; 1.", ["scope", "name"])
    for gate in state.paused():
        paused.add_metric(gate.split(" ", 1), 1)
    yield paused


def _health_metrics(signs: health.Measurements) -> Iterator[Metric]:
    sweep = _gauge("last_sweep_age_seconds", "Seconds since the last sweep; none before the first.")
    if signs.last_sweep_age is not None:
        sweep.add_metric([], signs.last_sweep_age)
    yield sweep
    healthy = _gauge("healthy", "Whether each check of the health check is passed.", ["check"])
    for check in health.judge(signs, conf.get()).checks:
        healthy.add_metric([check.name], check.is_well)
    yield healthy


def _counter(
    event: str,
    name: str,
    text: str,
    kinds: Sequence[str],
    ever: _Totals,
    lanes: Iterable[tuple[str, str]],
) -> CounterMetricFamily:
    from prometheus_client.core import CounterMetricFamily

    labels = [*_LABELS, "failure"] if kinds else _LABELS
    family = CounterMetricFamily(f"epica_mail_{name}", text, labels=labels)
    # From 0 on, for an increase is only seen of what was there before.
    for queue, alias in sorted(lanes):
        for kind in kinds or [""]:
            total = ever.get((queue, alias, event, kind))
            values = [queue, alias, kind] if kinds else [queue, alias]
            family.add_metric(values, total.count if total else 0)
    return family


def _histogram(event: str, name: str, text: str, ever: _Totals) -> HistogramMetricFamily:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"epica_mail_{name}", text, labels=_LABELS)
    bounds = [*map(str, map(float, totals.BOUNDS[event])), "+Inf"]
    for queue, alias in sorted({(key[0], key[1]) for key in ever if key[2] == event}):
        rows = [total for key, total in ever.items() if key[:3] == (queue, alias, event)]
        buckets = totals.added([[0] * len(bounds), *(row.buckets for row in rows)])
        upto = zip(bounds, accumulate(buckets), strict=True)
        family.add_metric([queue, alias], list(upto), sum(row.seconds for row in rows))
    return family


def _merged(rows: Iterable[EmailTotal]) -> _Totals:
    """Add up totals that differ in the reply code alone."""
    merged: dict[tuple[str, str, str, str], EmailTotal] = {}
    for row in rows:
        first = merged.setdefault((row.queue, row.transport, row.event, row.failure_kind), row)
        if first is not row:
            first.count += row.count
    return merged
