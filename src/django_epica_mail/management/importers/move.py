"""Moves mail in chunks of one transaction each, so it can be stopped and repeated at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connections, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from django_epica_mail import lifecycle, routing, suppression
from django_epica_mail._compat import batched
from django_epica_mail.broker import celery_config
from django_epica_mail.lifecycle import Status
from django_epica_mail.management.importers.base import Past, Source, aware
from django_epica_mail.models import EmailLog, Suppression
from django_epica_mail.queueing import draft as queueing_draft
from django_epica_mail.queueing import enqueue
from django_epica_mail.queueing.draft import Draft
from django_epica_mail.replies import reply_text
from django_epica_mail.retry import Kind
from django_epica_mail.transports import config as transports

CHUNK = 200
"""How many rows are moved in one transaction."""

_FINISHING_MOVES = {
    Status.SENT: (lifecycle.CLAIM, lifecycle.SUCCEED),
    Status.FAILED: (lifecycle.GIVE_UP,),
    Status.CANCELLED: (lifecycle.CANCEL,),
    Status.SUPPRESSED: (lifecycle.SUPPRESS,),
}


@dataclass(slots=True)
class Report:
    """What was moved, or would be."""

    queued: int = 0
    """Waiting mails, now in the queue."""
    finished: int = 0
    """Finished mails, copied as a record."""
    listed: int = 0
    """Addresses added to the suppression list."""
    already: int = 0
    """Rows whose mail was moved before."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Rows left unchanged, each with the reason."""

    @property
    def done(self) -> int:
        """How many rows were examined."""
        return self.queued + self.finished + self.already + len(self.refused)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary, to be printed."""
        return asdict(self)


def move(
    source: Source,
    *,
    dry_run: bool,
    days: int,
    transport: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Move another package's mail, waiting mail first; return what was moved.

    Before any mail, the addresses the package never sends to are added to the suppression list.
    Finished mail is copied if it was finished in the last ``days`` days. A ``dry_run`` reads and
    checks everything and writes nothing. ``transport`` is the alias for mail whose row names no
    transport configured here. ``advance`` is called after each chunk with the number of rows
    done and the total.
    """
    report = Report()
    recent = timezone.now() - timedelta(days=days)
    tables = {False: source.queued(), True: source.finished(recent)}
    total = sum(rows.count() for rows in tables.values())
    run = _Run(source, report, dry_run, transport)
    with source.holding_back():
        _suppress(source, report, dry_run=dry_run)
        for is_past, rows in tables.items():
            last = None
            while (last := run.move_chunk(rows, is_past, after=last)) is not None:
                advance(report.done, total)
    return report


@dataclass(slots=True)
class _Run:
    """One call of ``move``."""

    source: Source
    report: Report
    dry_run: bool
    transport: str | None
    handled: set[str] = field(default_factory=set)
    """The keys of waiting mail moved or refused; the package may now list its rows as finished."""

    def move_chunk(self, rows: QuerySet[Any], is_past: bool, *, after: Any) -> Any:
        """Move the next chunk, starting after ``after``, in one transaction.

        Returns the primary key of its last row, or ``None`` if there are no more rows.
        """
        using = router.db_for_write(EmailLog)
        with transaction.atomic(using=using):
            chunk = self._read_chunk(rows.using(using).order_by("pk"), after)
            if not chunk:
                return None
            rows_by_key = self._new(chunk, using)
            drafts = self._drafts(rows_by_key, is_past)
            if is_past:
                self.report.finished += len(drafts)
            else:
                self.report.queued += len(drafts)
            if drafts and not self.dry_run:
                enqueue.insert_drafts([draft for _, draft, _ in drafts])
                if is_past:
                    _finish((draft, past) for _, draft, past in drafts if past is not None)
                else:
                    self.source.mark([(row, draft.log) for row, draft, _ in drafts])
        if not is_past:
            self.handled.update(rows_by_key)
        return chunk[-1].pk

    def _read_chunk(self, ordered: QuerySet[Any], after: Any) -> list[Any]:
        """Read and lock the next rows, skipping those locked by a sender."""
        features = connections[ordered.db].features
        rows = ordered if after is None else ordered.filter(pk__gt=after)
        if features.has_select_for_update and not self.dry_run:
            rows = rows.select_for_update(
                skip_locked=features.has_select_for_update_skip_locked,
                of=("self",) if features.has_select_for_update_of else (),
            )
        return list(rows[:CHUNK])

    def _new(self, chunk: Sequence[Any], using: str) -> dict[str, Any]:
        """Return the rows whose mail was not moved before, by idempotency key."""
        rows_by_key = {self.source.key(row): row for row in chunk}
        known = EmailLog.objects.using(using).filter(idempotency_key__in=rows_by_key)
        before = set(known.values_list("idempotency_key", flat=True))
        self.report.already += len(before - self.handled)
        return {key: row for key, row in rows_by_key.items() if key not in before | self.handled}

    def _drafts(
        self, rows_by_key: Mapping[str, Any], is_past: bool
    ) -> list[tuple[Any, Draft, Past | None]]:
        """Return the drafts of rows; report rows that cannot be moved as refused."""
        drafts: list[tuple[Any, Draft, Past | None]] = []
        for key, row in rows_by_key.items():
            try:
                past = self.source.past(row) if is_past else None
                drafts.append((row, _draft(self.source, row, key, past, self.transport), past))
            except DatabaseError:
                raise
            except Exception as error:  # noqa: BLE001 - one bad row never stops others
                reason = f"{type(error).__name__}: {error}"
                self.report.refused.append({"row": row.pk, "reason": reason})
        return drafts


def _suppress(source: Source, report: Report, *, dry_run: bool) -> None:
    """Suppress the addresses another package never sends to, unless they already are."""
    reason, note = Suppression.Reason.MANUAL, f"Moved from {source.package}."
    for chunk in batched(source.listed(), CHUNK):
        entries = []
        for address in dict.fromkeys(chunk):
            try:
                if not suppression.is_suppressed(address):
                    entries.append(suppression.entry(address, reason=reason, note=note))
            except ValueError as error:
                report.refused.append({"row": "listed", "reason": str(error)})
        report.listed += len(entries)
        if not dry_run:
            suppression.insert(entries)


def _draft(source: Source, row: Any, key: str, past: Past | None, transport: str | None) -> Draft:
    """Return the draft of another package's row."""
    given = dict(source.options(row))
    if given.get("transport") not in transports.aliases():
        given["transport"] = transport
    options = routing.parse_options({**given, "idempotency_key": key})
    draft = queueing_draft.draft(
        source.message(row), options, of_celery=celery_config.site_route(bulk=False)
    )
    draft.log.created_at = aware(source.created_at(row))
    if past is None:
        return draft
    finished_at: datetime = aware(past.finished_at)
    draft.log.due_at, draft.log.finished_at = draft.log.created_at, finished_at
    draft.log.reply = reply_text(past.reply)
    if past.status is Status.FAILED:
        draft.log.failure_kind = Kind.PERMANENT  # never retried automatically
    return replace(draft, is_due=False)


def _finish(drafts: Iterable[tuple[Draft, Past]]) -> None:
    """Move copied mails to their final status through allowed status moves."""
    using = router.db_for_write(EmailLog)
    by_status: dict[Status, list[EmailLog]] = {}
    for draft, past in drafts:
        by_status.setdefault(past.status, []).append(draft.log)
    rows = EmailLog.objects.using(using)
    for status, logs in by_status.items():
        for step in _FINISHING_MOVES[status]:
            rows.move(step, [log.pk for log in logs])
        rows.forget_content(log.pk for log in logs if log.forgets_content(status))
