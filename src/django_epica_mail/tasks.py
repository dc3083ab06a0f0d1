"""The Celery tasks, and the functions that queue mail and return Celery results.

The tasks acknowledge early, store no result of their own, and do no harm if they run twice or not
at all, because the rows are the queue. None uses Celery's retry, ETA or countdown, because the rows
hold the times too.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import Task, current_task, shared_task
from celery.contrib.django.task import DjangoTask
from celery.signals import (
    worker_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.utils.functional import firstmethod
from django.core.mail import EmailMessage
from django.db import connections
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import conf, maintenance
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.broker import trust as broker_trust
from django_epica_mail.broker.celery_config import BULK_TASK
from django_epica_mail.coroutines import coroutine_of
from django_epica_mail.delivery import worker
from django_epica_mail.models import EmailBatch
from django_epica_mail.queueing import bulk, call_options, compose, enqueue
from django_epica_mail.queueing.rows import columns
from django_epica_mail.results import BatchResult, EmailResult, batch_report
from django_epica_mail.routing import Options
from django_epica_mail.tracking.bounces import mailbox
from django_epica_mail.transports import connection as transport_connection
from django_epica_mail.transports import wire


def _annotate(task: Any) -> None:
    """Apply the site's annotations, but of ``"*"`` no rate, which is for the site's own tasks."""
    Task.annotate.__func__(task)  # type: ignore[attr-defined]
    by_name: Any = firstmethod("annotate")  # type: ignore[arg-type] # it takes a name
    of_this_task = by_name(task.app.annotations, task) or {}
    task.rate_limit = of_this_task.get("rate_limit", _OPTIONS["rate_limit"])


# A rate of 0 is no limit, and keeps away CELERY_TASK_DEFAULT_RATE_LIMIT, which is for the site's
# own tasks: rings would pile up, and all mail would be limited. An annotation by name still counts.
_OPTIONS: dict[str, Any] = {
    "acks_late": False,
    "annotate": classmethod(_annotate),
    "ignore_result": True,
    "max_retries": 0,
    "rate_limit": 0,
}
_DELIVERY: dict[str, Any] = {**_OPTIONS, "Request": broker_trust.DeliveryRequest}
_BULK: dict[str, Any] = {**_OPTIONS, "Request": broker_trust.BulkRequest}
_REST = timedelta(minutes=1)
"""For how long ``retry_failed_emails`` leaves mail alone that has failed."""

_LONGEST_SWEEP = 60.0
"""Seconds after which a sweep counts as ended, for its process may have been killed."""
_SECONDS = struct.Struct("d")


class _SweepMark:
    """Since when a sweep is at work; shared with the pool processes forked from the main process.

    Sweeps at the same time do each other no harm, but the same work: several that take long, beside
    a slow database, would leave a worker no process for mail.
    """

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, _SECONDS.size)  # anonymous and shared: a fork inherits it
        self.end()

    def begin(self) -> bool:
        """Note that a sweep begins; return ``False`` if one is at work."""
        now = time.monotonic()
        if 0 <= now - _SECONDS.unpack(self._bytes[:])[0] < _LONGEST_SWEEP:
            return False
        self._bytes[:] = _SECONDS.pack(now)
        return True

    def end(self) -> None:
        """Note that the sweep has ended."""
        self._bytes[:] = _SECONDS.pack(float("-inf"))


_sweep_mark = _SweepMark()


@sensitive_variables()
def send_email_async(
    subject: str,
    message: str | None,
    from_email: str | None,
    recipient_list: Sequence[str],
    html_message: str | None = None,
    **options: Any,
) -> EmailResult:
    """Queue one mail in the caller's transaction, and return its handle; ``id`` is the row's.

    ``from_email=None`` is the site's ``DEFAULT_FROM_EMAIL``. ``options`` are ``cc``, ``bcc``,
    ``reply_to``, ``headers``, ``attachments``, ``language``, anymail's ``tags``, ``metadata``,
    ``track_opens`` and ``track_clicks``, and the fields of ``routing.Options``.

    Raises ``TypeError`` or ``ValueError`` for arguments that make no valid mail; nothing is written
    then.
    """
    named = {
        "subject": subject,
        "message": message,
        "from_email": from_email,
        "recipient_list": recipient_list,
        "html_message": html_message,
    }
    return _enqueue({**options, **named})


@sensitive_variables()
def send_templated_email_async(
    subject: str | None,
    template_name: str | Sequence[str],
    context: Mapping[str, Any] | None,
    from_email: str | None,
    recipient_list: Sequence[str],
    **options: Any,
) -> EmailResult:
    """Queue one mail rendered from a template, and return its handle.

    The mail is rendered at once, in the caller, so ``context`` may hold any object. It is rendered
    in ``language`` if that is given. ``subject=None`` uses the template's own ``_subject.txt``.
    ``template_name`` is as in ``queueing.rendering.render``, the rest as in ``send_email_async``.
    """
    named = {
        "subject": subject,
        "template_name": template_name,
        "context": context or {},
        "from_email": from_email,
        "recipient_list": recipient_list,
    }
    return _enqueue({**options, **named})


@sensitive_variables()
def send_bulk_templated_emails(
    subject: str | None,
    template_name: str | Sequence[str],
    recipients: Iterable[tuple[str, Mapping[str, Any]]],
    from_email: str | None = None,
    **options: Any,
) -> EmailBatch:
    """Queue one mail per recipient, each rendered with its own context; return their batch.

    ``recipients`` yields ``(address, context)`` and may be a generator of any length: it is read,
    rendered and inserted in chunks of bounded size, all in one transaction. ``options`` are those
    of ``send_templated_email_async`` except ``idempotency_key``, and apply to every mail.
    """
    common = {"subject": subject, "template_name": template_name, "from_email": from_email}
    if "idempotency_key" in options:
        raise TypeError("An idempotency_key identifies one mail, but this call queues many.")
    compose.options_of(options)  # refuse invalid options before reading the first recipient

    @sensitive_variables()  # again, because the frames of a generator forget who called them
    def composed(recipient: tuple[str, Mapping[str, Any]]) -> tuple[EmailMessage, Options]:
        address, context = recipient
        given = {**options, **common, "context": context, "recipient_list": [address]}
        return compose.compose(given)

    return enqueue.enqueue_pairs(map(composed, recipients))


asend_email_async = coroutine_of(send_email_async)
asend_templated_email_async = coroutine_of(send_templated_email_async)
asend_bulk_templated_emails = coroutine_of(send_bulk_templated_emails)


def _enqueue(given: Mapping[str, Any]) -> EmailResult:
    message, options = compose.compose({"store_result": True, **given})
    return EmailResult(str(enqueue.enqueue_one(message, options).pk))


class _BulkTask(DjangoTask):  # type: ignore[type-arg] # generic for type checkers alone
    """A task whose ``delay`` and ``apply_async`` store the call in the caller's transaction."""

    @sensitive_variables()
    def apply_async(  # type: ignore[override]
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> BatchResult:
        """Store the call as a batch, ring for it after the commit, and return its handle.

        Of Celery's ``options``, ``countdown``, ``eta``, ``expires``, ``queue`` and ``priority`` are
        those of each mail whose entry has none of its own, and ``task_id``, a UUID that is free, is
        the handle's id. Options of the message that is not published have no effect. Any other
        raises ``TypeError``, and a value that is invalid ``TypeError`` or ``ValueError``. Raises
        ``PermissionError`` in a worker if the entries came to it through the broker.
        """
        is_foreign = broker_trust.check(self)
        meaning = call_options.translate(options)
        batch = bulk.submit(*(args or ()), **(kwargs or {}), options=meaning, is_foreign=is_foreign)
        bulk.ring_on_commit(batch)
        return BatchResult(str(batch.pk))


@shared_task(
    name="django_epica_mail.tasks.send_bulk_emails_task", base=_BulkTask, bind=True, **_BULK
)
def send_bulk_emails_task(self: Any, emails: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """Queue one mail per entry; return the batch's id, counts, mail ids and refused entries.

    ``emails`` is a list of dicts, the arguments of ``send_email_async`` by name; or a batch's id,
    which is what ``delay`` puts into the broker. ``delay`` writes the entries in the caller's
    transaction and returns a ``BatchResult``. Entries that come through the broker, because another
    project calls the task by its name, raise ``PermissionError`` unless
    ``EPICA_MAIL["BULK_ENTRIES_FROM_BROKER"]`` is set: whoever can write to the broker could send
    any mail. The same call that comes twice raises ``ValueError`` the second time.
    """
    is_foreign = not isinstance(emails, str) and broker_trust.check(self)
    _drop_dead_connections()
    if is_foreign and (call := _uuid(self.request.id)) is not None:
        # As a batch of the call's id: the ring that expands the last entries reports to its caller.
        options = call_options.CallOptions(batch_id=call)
        emails = str(bulk.submit(emails, options=options, is_foreign=True).pk)
    if isinstance(emails, str):
        until = time.monotonic() + conf.get().run_seconds
        batch, result_id = bulk.expand(emails, until=until), emails
    else:
        batch = bulk.expand(bulk.submit(emails, is_foreign=is_foreign).pk)
        result_id = self.request.id
    report = batch_report(batch)
    if batch.is_finished and result_id is not None:
        result_backend.store(result_id, "SUCCESS", report, BULK_TASK)
    return report


def _uuid(task_id: object) -> UUID | None:
    """Return the id of a call as the key of a row, or ``None`` if it is written in another way."""
    try:
        key = UUID(str(task_id))
    except ValueError:
        return None
    return key if str(key) == task_id else None


@shared_task(name="django_epica_mail.tasks.send_email_task", **_DELIVERY)
def send_email_task(email_id: str) -> int:
    """Deliver one mail now, if it may be claimed; return how many mails were settled.

    It goes ahead of more urgent mail, but not before it is due.
    """
    _drop_dead_connections()
    return worker.deliver_one(email_id)


@shared_task(name="django_epica_mail.tasks.deliver_emails", **_DELIVERY)
def deliver_emails(queue: str, rung_at: float | None = None) -> int:
    """Send the due mail of ``queue``; return how many mails were settled.

    ``rung_at`` is when the bell was rung, in seconds since the epoch.
    """
    _drop_dead_connections()
    return worker.deliver(queue, rung_at=rung_at)


@shared_task(name="django_epica_mail.tasks.dispatch_due_emails", **_OPTIONS)
def dispatch_due_emails() -> dict[str, int]:
    """Sweep: rescue mail of dead workers, and ring for every queue with due mail.

    Does nothing while another process of this worker sweeps.
    """
    _drop_dead_connections()
    if not _sweep_mark.begin():
        return dict(maintenance.NOTHING_DONE)
    try:
        return maintenance.dispatch()
    finally:
        _sweep_mark.end()


@shared_task(name="django_epica_mail.tasks.retry_failed_emails", **_OPTIONS)
def retry_failed_emails() -> int:
    """Queue mail again that failed for a passing reason; return how many mails.

    Not what failed within the last minute: whoever can write to the broker could have servers
    asked without end.
    """
    _drop_dead_connections()
    return maintenance.retry_failed(rest=_REST)


@shared_task(name="django_epica_mail.tasks.cleanup_old_email_logs", **_OPTIONS)
def cleanup_old_email_logs(days: int | None = None) -> int:
    """Delete finished mail older than ``days`` (``KEEP_DAYS`` if not given); return how many.

    Raises ``ValueError`` for fewer days than ``CLEANUP_MIN_DAYS``: whoever can write to the broker
    could empty the log.
    """
    least = conf.get().cleanup_min_days
    if days is not None and (isinstance(days, bool) or not isinstance(days, int) or days < least):
        raise ValueError(
            f"days must be a whole number, {least} or more (EPICA_MAIL['CLEANUP_MIN_DAYS']); it is "
            f"{days!r}. To delete newer mail, run manage.py epica_mail purge."
        )
    _drop_dead_connections()
    return maintenance.cleanup(days)


@shared_task(name="django_epica_mail.tasks.read_bounces", **_OPTIONS)
def read_bounces() -> dict[str, int]:
    """Record what came back to ``BOUNCE_MAILBOX``; return how many messages became what.

    Does nothing if no mailbox is set. Raises as ``mailbox.read`` does.
    """
    if conf.get().bounce_mailbox is None:
        return {}
    _drop_dead_connections()
    return mailbox.read()


def _drop_dead_connections() -> None:
    """Close database connections that broke or became too old since the last task.

    Django does the same around a request. Connections in a transaction are left open, because tests
    call tasks inside one, and so are those that work in a task that runs in its caller's process,
    eagerly or called as a function: the caller goes on using them.
    """
    task: Any = current_task
    is_own = task and not (task.request.is_eager or task.request.called_directly)
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            continue
        if is_own:
            connection.close_if_unusable_or_obsolete()
        elif connection.errors_occurred and not connection.is_usable():
            connection.close()


def _close_connections(**_: object) -> None:
    transport_connection.close_connections()


def _begin_work(**_: object) -> None:
    doorbell.prepare()  # before the pool is forked: tasks send mail too
    wire.chosen_way()  # the same
    worker.begin_work()


def _stop_work(**_: object) -> None:
    worker.stop_work()


def _look_at_queues(sender: Any, **_: object) -> None:
    """Ring for every queue that a starting worker consumes, and probe what is out of order.

    Mail that became due while no worker ran, or whose ring was lost, must not wait for the sweep.
    How rows are written is compared here and not before the pool is forked, because it takes a
    connection to the database.
    """
    columns.examine()
    worker.probe_transports()
    for queue in sender.app.amqp.queues.consume_from:
        doorbell.ring(queue)


worker_init.connect(_begin_work, dispatch_uid="django_epica_mail.begin")
worker_ready.connect(_look_at_queues, dispatch_uid="django_epica_mail.ready")
worker_shutting_down.connect(_stop_work, dispatch_uid="django_epica_mail.stop")
worker_process_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.process")
worker_shutdown.connect(_close_connections, dispatch_uid="django_epica_mail.worker")
