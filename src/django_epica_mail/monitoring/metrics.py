"""Metrics for Prometheus, all read from the database.

Every process on every host reports the same values, and nothing is counted while mail is queued or
sent. Gauges show the current state. Counters and histograms come from ``totals``: they lag by a
minute or two, and survive both the deletion of rows and the restart of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from django.db import router

from django_epica_mail import conf
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits.slowed_domains import SlowedDomains
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.models import EmailLog, EmailTotal
from django_epica_mail.monitoring import backlog, health, totals
from django_epica_mail.monitoring.reputation import Rate
from django_epica_mail.retry import LOST, PASSING, Kind
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
"""The totals of all time by queue, transport, event and failure kind."""

_COUNTERS: Mapping[str, tuple[str, str, Sequence[str]]] = {
    Event.ENQUEUED: ("enqueued", "Mails queued.", ()),
    Event.SENT: ("sent", "Mails accepted by a server.", ()),
    Event.FAILED: ("failed", "Mails that failed, by kind of failure.", tuple(Kind)),
    Event.CANCELLED: ("cancelled", "Mails cancelled before they were sent.", ()),
    Event.EXPIRED: ("expired", "Mails that expired before they were sent.", ()),
    Event.SUPPRESSED: ("suppressed", "Mails whose recipients were all suppressed.", ()),
    Event.ATTEMPT: ("attempts", "Attempts; those without a failure succeeded.", ("", *Kind)),
    Event.RETRIED: ("retried", "Attempts after the first one of a mail.", ()),
    Event.POSTPONED: ("postponed", "Attempts that are repeated later.", PASSING),
    Event.UNKNOWN: ("unknown", "Attempts that may or may not have been accepted.", LOST),
}
"""The name, help text and possible failure kinds of each event."""

_HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    Event.SENT: (
        "delivery_seconds",
        "Time from queueing, or from the scheduled time, until a server accepted the mail.",
    ),
    Event.ATTEMPT: ("attempt_seconds", "Duration of an attempt: the dialogue with a server."),
}


class Collector:
    """A collector for a registry of ``prometheus_client`` that reads all metrics at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families, read from the database."""
        using = router.db_for_write(EmailLog)
        slowed = SlowedDomains(using)
        measured = health.measure(slowed)
        moment, _ = backlog.clock_and_first_mail(using)
        waiting = backlog.backlogs(using, moment, slowed)
        counted = _merged(EmailTotal.objects.using(using).filter(hour=totals.ALL_TIME))
        pairs = {(queue, alias) for queue, alias, _, _ in counted}
        pairs |= {(it.queue, it.transport) for it in waiting}
        yield from _queue_metrics(waiting, pairs)
        yield from _gate_metrics(gates.Gates(using))
        yield from _domain_metrics(backlog.slowed_backlogs(using, moment, slowed))
        yield from _health_metrics(measured)
        yield from _reputation_metrics(measured.rates)
        for event, (name, text, kinds) in _COUNTERS.items():
            yield _counter(event, name, text, kinds, counted, pairs)
        for event, (name, text) in _HISTOGRAMS.items():
            yield _histogram(event, name, text, counted)


def registry() -> CollectorRegistry:
    """Return a new registry with only these metrics.

    A site with metrics of its own registers ``Collector()`` in its own registry instead. Raises
    ``MissingExtra`` if prometheus-client is not installed.
    """
    created: CollectorRegistry = _library().CollectorRegistry()
    created.register(Collector())
    return created


def exposition(accept: str) -> tuple[bytes, str]:
    """Return all metrics in the format an ``Accept`` header prefers, and the content type.

    A header that cannot be read asks for nothing.
    """
    choose = _library().exposition.choose_encoder
    try:
        encode, content_type = choose(accept)
    except (TypeError, ValueError):  # such as a version without numbers
        encode, content_type = choose("")
    return encode(registry()), content_type


def _library() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtra(
            "Metrics need a package that is not installed: run "
            'pip install "django-epica-mail[metrics]".'
        ) from error
    return prometheus_client


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"epica_mail_{name}", text, labels=labels)


def _queue_metrics(
    waiting: Iterable[backlog.Backlog], pairs: Iterable[tuple[str, str]]
) -> Iterator[Metric]:
    found = {(it.queue, it.transport): it for it in waiting}
    gauges: dict[str, tuple[str, Callable[[backlog.Backlog], float | None]]] = {
        "waiting": ("Mails waiting, including scheduled mail.", lambda it: it.waiting),
        "due": ("Mails that could be sent now.", lambda it: it.due),
        "oldest_due_seconds": (
            "For how long the oldest due mail has been due; not mail of slowed domains.",
            lambda it: it.oldest_due_age,
        ),
        "in_flight": ("Mails claimed by workers.", lambda it: it.in_flight),
    }
    for name, (text, value) in gauges.items():
        family = _gauge(name, text, _LABELS)
        for pair in sorted(pairs):
            it = found.get(pair)
            family.add_metric(pair, (value(it) if it else None) or 0)
        yield family


def _gate_metrics(state: gates.Gates) -> Iterator[Metric]:
    down = state.out_of_order()
    breaker = _gauge("breaker_open", "Whether a transport is out of order.", ["transport"])
    for alias in sorted({*transports.aliases(), *down}):
        breaker.add_metric([alias], alias in down)
    yield breaker
    paused = _gauge("paused", "1 for each paused queue or transport.", ["scope", "name"])
    for gate in state.paused():
        paused.add_metric(gate.split(" ", 1), 1)
    yield paused


def _domain_metrics(found: Sequence[backlog.SlowedBacklog]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[backlog.SlowedBacklog], float | None]]] = {
        "per_second": (
            "Mails per second to a recipients' domain that is slowed down.",
            lambda it: it.slowed.per_second,
        ),
        "due": ("Due mails that wait for the turn of a slowed domain.", lambda it: it.due),
        "oldest_due_seconds": (
            "For how long the oldest of these has been due.",
            lambda it: it.oldest_due_age,
        ),
    }
    for name, (text, value) in gauges.items():
        family = _gauge(f"slowed_domain_{name}", text, ["transport", "domain"])
        for it in found:
            family.add_metric(it.slowed.key, value(it) or 0)
        yield family


def _health_metrics(measured: health.Measurements) -> Iterator[Metric]:
    sweep = _gauge(
        "last_sweep_age_seconds", "Seconds since the last sweep; absent before the first."
    )
    if measured.last_sweep_age is not None:
        sweep.add_metric([], measured.last_sweep_age)
    yield sweep
    healthy = _gauge("healthy", "Whether each of the health checks passes.", ["check"])
    for check in health.judge(measured, conf.get()).checks:
        healthy.add_metric([check.name], check.is_well)
    yield healthy


def _reputation_metrics(rates: Iterable[Rate]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[Rate], float]]] = {
        "reputation_mails": ("Mails whose rates are computed.", lambda it: it.mails),
        "bounce_ratio": ("The share of mail that bounced for good.", lambda it: it.bounce_rate),
        "complaint_ratio": ("The share reported as spam.", lambda it: it.complaint_rate),
    }
    for name, (text, value) in gauges.items():
        family = _gauge(name, text, ["category", "domain"])
        for it in rates:
            family.add_metric([it.category, it.domain], value(it))
        yield family


def _counter(
    event: str,
    name: str,
    text: str,
    kinds: Sequence[str],
    counted: _Totals,
    pairs: Iterable[tuple[str, str]],
) -> CounterMetricFamily:
    from prometheus_client.core import CounterMetricFamily

    labels = [*_LABELS, "failure"] if kinds else _LABELS
    family = CounterMetricFamily(f"epica_mail_{name}", text, labels=labels)
    # Starting at 0, because Prometheus sees an increase only from an earlier sample.
    for queue, alias in sorted(pairs):
        for kind in kinds or [""]:
            total = counted.get((queue, alias, event, kind))
            values = [queue, alias, kind] if kinds else [queue, alias]
            family.add_metric(values, total.count if total else 0)
    return family


def _histogram(event: str, name: str, text: str, counted: _Totals) -> HistogramMetricFamily:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"epica_mail_{name}", text, labels=_LABELS)
    bounds = [*map(str, map(float, totals.BOUNDS[event])), "+Inf"]
    for queue, alias in sorted({(key[0], key[1]) for key in counted if key[2] == event}):
        rows = [total for key, total in counted.items() if key[:3] == (queue, alias, event)]
        buckets = totals.sum_buckets(event, [[0] * len(bounds), *(row.buckets for row in rows)])
        upto = zip(bounds, accumulate(buckets), strict=True)
        family.add_metric([queue, alias], list(upto), sum(row.seconds for row in rows))
    return family


def _merged(rows: Iterable[EmailTotal]) -> _Totals:
    """Add up totals that differ only in the reply code."""
    merged: dict[tuple[str, str, str, str], EmailTotal] = {}
    for row in rows:
        first = merged.setdefault((row.queue, row.transport, row.event, row.failure_kind), row)
        if first is not row:
            first.count += row.count
    return merged
