"""Celery's door: the functions that return its handles, and the tasks, each a few lines.

The tasks acknowledge early, keep no result of their own, and are harmless when run twice or not at
all: the rows are the queue. None uses Celery's own retry, ETA or countdown, for times live in the
rows too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celery import Task, shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from django.db import connections

from django_epica_mail import maintenance
from django_epica_mail.broker import result_backend
from django_epica_mail.broker.celery_config import BULK_TASK
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.delivery import worker
from django_epica_mail.models import EmailBatch
from django_epica_mail.queueing import bulk, compose, enqueue
from django_epica_mail.results import BatchResult, EmailResult, batch_report
from django_epica_mail.transports import connection as transport_connection

_OPTIONS: dict[str, Any] = {"acks_late": False, "ignore_result": True, "max_retries": 0}


def send_email_async(
    subject: str,
    message: str | None,
    from_email: str | None,
    recipient_list: Sequence[str],
    html_message: str | None = None,
    **options: Any,
) -> EmailResult:
    """Queue one mail in the caller's transaction, and return its handle, whose ``id`` is the row's.

    ``from_email=None`` is the site's ``DEFAULT_FROM_EMAIL``. ``options`` are ``cc``, ``bcc``,
    ``reply_to``, ``headers``, ``attachments``, ``language``, anymail's ``tags``, ``metadata``,
    ``track_opens`` and ``track_clicks``, and the fields of ``routing.Options``.

    Raises ``TypeError`` or ``ValueError`` for arguments that are no mail that can be sent; then
    nothing has been written.
    """
    named = {
        "subject": subject,
        "message": message,
        "from_email": from_email,
        "recipient_list": recipient_list,
        "html_message": html_message,
    }
    return _enqueue({**options, **named})


def send_templated_email_async(
    subject: str | None,
    template_name: str | Sequence[str],
    context: Mapping[str, Any] | None,
    from_email: str | None,
    recipient_list: Sequence[str],
    **options: Any,
) -> EmailResult:
    """Queue one mail rendered from a template, and return its handle.

    Rendered now, in the caller, so that ``context`` may hold any object; in ``language`` if that
    is given. ``subject=None`` takes the template's own ``_subject.txt``. ``template_name`` is as
    in ``rendering.render``, the rest as in ``send_email_async``.
    """
    named = {
        "subject": subject,
        "template_name": template_name,
        "context": context or {},
        "from_email": from_email,
        "recipient_list": recipient_list,
    }
    return _enqueue({**options, **named})


def send_bulk_templated_emails(
    subject: str | None,
    template_name: str | Sequence[str],
    recipients: Iterable[tuple[str, Mapping[str, Any]]],
    from_email: str | None = None,
    **options: Any,
) -> EmailBatch:
    """Queue one mail for each recipient, rendered with a context of its own; return their batch.

    ``recipients`` yields ``(address, context)`` and may be a generator of any length: it is read,
    rendered and inserted in bounded portions, all in one transaction. ``options`` are those of
    ``send_templated_email_async`` but for ``idempotency_key``, and hold for every mail.
    """
    common = {"subject": subject, "template_name": template_name, "from_email": from_email}
    if "idempotency_key" in options:
        raise TypeError("An idempotency_key names one mail, and this call makes many.")
    compose.options_of(options)  # a wrong one is refused before the first recipient is asked for
    return enqueue.enqueue_pairs(
        compose.compose({**options, **common, "context": context, "recipient_list": [address]})
        for address, context in recipients
    )


asend_email_async = coroutine_of(send_email_async)
asend_templated_email_async = coroutine_of(send_templated_email_async)
asend_bulk_templated_emails = coroutine_of(send_bulk_templated_emails)


def _enqueue(given: Mapping[str, Any]) -> EmailResult:
    message, options = compose.compose({"store_result": True, **given})
    return EmailResult(str(enqueue.enqueue_one(message, options).pk))


class _BulkTask(Task):  # type: ignore[type-arg] # generic for type checkers alone
    """Lets ``delay`` and ``apply_async`` store the call as a row of the caller's transaction."""

    def apply_async(  # type: ignore[override]
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> BatchResult:
        """Store the call, ring for its expansion after the commit, and return its handle.

        Of Celery's options only those that say where the task runs have a meaning here.
        """
        batch = bulk.submit(*(args or ()), **(kwargs or {}))
        bulk.ring_on_commit(batch)
        return BatchResult(str(batch.pk))


@shared_task(
    name="django_epica_mail.tasks.send_bulk_emails_task", base=_BulkTask, bind=True, **_OPTIONS
)
def send_bulk_emails_task(self: Any, emails: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """Make one mail of each entry; return the batch's id, counts, ids and refused entries.

    ``emails`` is a list of dicts, the arguments of ``send_email_async`` by name; or the id of a
    batch, which is what ``delay`` puts into the broker. ``delay`` writes the entries into the
    caller's transaction and returns a ``BatchResult``; called by name from elsewhere, the entries
    travel in the broker.
    """
    _drop_dead_connections()
    batch_id = emails if isinstance(emails, str) else str(bulk.submit(emails).pk)
    report = batch_report(bulk.expand(batch_id))
    result_id = batch_id if isinstance(emails, str) else self.request.id
    if result_id is not None:
        result_backend.store(result_id, "SUCCESS", report, BULK_TASK)
    return report


@shared_task(name="django_epica_mail.tasks.send_email_task", **_OPTIONS)
def send_email_task(email_id: str) -> int:
    """Deliver this one mail now, if it may be claimed; return how many mails were settled.

    It is sent before others that are more urgent, and not before it is due.
    """
    _drop_dead_connections()
    return worker.deliver_one(email_id)


@shared_task(name="django_epica_mail.tasks.deliver_emails", **_OPTIONS)
def deliver_emails(queue: str, rung_at: float | None = None) -> int:
    """Send what is due in ``queue``, and return how many mails were settled.

    ``rung_at`` is when the bell was rung, in seconds since the epoch.
    """
    _drop_dead_connections()
    return worker.deliver(queue, rung_at=rung_at)


@shared_task(name="django_epica_mail.tasks.dispatch_due_emails", **_OPTIONS)
def dispatch_due_emails() -> dict[str, int]:
    """Sweep: rescue what dead workers left, and ring for every queue with something due."""
    _drop_dead_connections()
    return maintenance.dispatch()


@shared_task(name="django_epica_mail.tasks.retry_failed_emails", **_OPTIONS)
def retry_failed_emails() -> int:
    """Queue again what failed for a passing reason; return how many mails."""
    _drop_dead_connections()
    return maintenance.retry_failed()


@shared_task(name="django_epica_mail.tasks.cleanup_old_email_logs", **_OPTIONS)
def cleanup_old_email_logs(days: int | None = None) -> int:
    """Delete finished mail older than ``days`` (``KEEP_DAYS`` if not given); return how many."""
    _drop_dead_connections()
    return maintenance.cleanup(days)


def _drop_dead_connections() -> None:
    """Close database connections that broke or grew too old since the last task.

    As Django does around a request, but for those in a transaction: a test calls tasks in one.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _close_connections(**_: object) -> None:
    transport_connection.close_connections()


worker_process_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.process")
worker_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.worker")
