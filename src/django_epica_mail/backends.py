"""The mail backend that a site names in ``EMAIL_BACKEND`` or ``MAILERS``."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from traceback import walk_stack
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import Error, connections, router, transaction
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import signals
from django_epica_mail.messages import bounds
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailLog, EmailRecipient
from django_epica_mail.queueing import enqueue
from django_epica_mail.routing import Options
from django_epica_mail.transports import config
from django_epica_mail.transports.connection import is_being_sent

logger = logging.getLogger(__name__)

_reporting = ContextVar("django_epica_mail_reporting", default=False)

_CONNECTION_OPTIONS = ("host", "port", "username", "password", "use_tls", "use_ssl", "api_key")
_GIVEN_AS = {
    "username": ", the auth_user of send_mail()",
    "password": ", the auth_password of send_mail()",
}
"""Where Django gets an option from, if the caller may know it by another name."""


class EmailBackend(BaseEmailBackend):
    """A backend that queues messages instead of sending them. It never opens a connection.

    ``transport``, ``queue``, ``priority``, ``category`` and ``retry`` apply to every message. They
    come from OPTIONS in ``MAILERS`` (Django 6.1) or from the arguments of ``get_connection()``.
    """

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        transport: str | None = None,
        queue: str | None = None,
        priority: int | str | None = None,
        category: str | None = None,
        retry: Any = None,
        **kwargs: Any,
    ) -> None:
        refused = [
            name
            for name in _CONNECTION_OPTIONS
            # Much code repeats the site's own account in each call, which asks for nothing.
            if (value := kwargs.get(name)) and not config.has_option(transport, name, value)
        ]
        if refused:
            given_as = _GIVEN_AS.get(refused[0], "")
            raise ImproperlyConfigured(
                f"The queueing backend does not accept {refused[0]!r}{given_as}: a worker sends "
                "the mail, and credentials are never stored. Configure it on a transport (in "
                "MAILERS or EPICA_MAIL['TRANSPORTS']) and name that transport with transport=."
            )
        for name in _CONNECTION_OPTIONS:
            kwargs.pop(name, None)
        super().__init__(**kwargs)
        self.fail_silently = fail_silently  # the base class deprecates its own
        self.options = Options(
            transport=transport, queue=queue, priority=priority, category=category, retry=retry
        )

    @sensitive_variables()
    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Queue all of the messages or none, and return how many were queued.

        A message that cannot be sent raises the same exception as in Django's SMTP backend, even
        with ``fail_silently``. Database errors are raised without it. A report to ``ADMINS`` or
        ``MANAGERS`` whose subject is too long gets a shorter one: ``AdminEmailHandler`` has the
        whole text of a log line as subject, and a log line must not raise.
        """
        if _reporting.get():
            # AdminEmailHandler is mailing our own report that the outbox failed.
            return 0
        messages = map(_with_short_subject, email_messages or ())
        if not self.fail_silently:
            return enqueue.enqueue_all(filter(_may_be_queued, messages), self.options)
        if not _is_in_event_loop():
            return self._queue_silently(messages)
        # Django reports errors this way, and a log line in a coroutine must not raise. The thread
        # has a connection and a transaction of its own.
        with ThreadPoolExecutor(1) as threads:
            work = threads.submit(copy_context().run, self._queue_and_close, list(messages))
            return work.result()

    def _queue_silently(self, messages: Iterable[EmailMessage]) -> int:
        try:
            # A failed insert must leave the caller's transaction usable.
            with transaction.atomic(using=router.db_for_write(EmailLog)):
                return enqueue.enqueue_all(filter(_may_be_queued, messages), self.options)
        except Error as error:
            self._report(error)
            return 0

    def _queue_and_close(self, messages: Iterable[EmailMessage]) -> int:
        try:
            return self._queue_silently(messages)
        finally:
            connections[router.db_for_write(EmailLog)].close()

    @staticmethod
    def _report(error: Error) -> None:
        token = _reporting.set(True)
        try:
            logger.error(
                "Mail was not queued: the database refused it (%s), and fail_silently is set.",
                type(error).__name__,
            )
        finally:
            _reporting.reset(token)


def _is_in_event_loop() -> bool:
    """Return whether Django refuses to use the database here, as ``async_unsafe`` decides it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")


def _with_short_subject(message: EmailMessage) -> EmailMessage:
    """Return a message; for a report, a copy whose subject is cut to ``MAX_SUBJECT`` characters."""
    subject = str(message.subject)
    if len(subject) <= bounds.MAX_SUBJECT or not _is_report(message):
        return message
    short = copy.copy(message)
    short.subject = subject[: bounds.MAX_SUBJECT]
    logger.warning(
        "The subject of a report has %s characters; it is cut to %s.",
        len(subject),
        bounds.MAX_SUBJECT,
    )
    return short


def _is_report(message: EmailMessage) -> bool:
    """Return whether a message goes to nobody but ``ADMINS`` and ``MANAGERS``."""
    return {str(it) for it in message.recipients()} <= _staff()


def _staff() -> set[str]:
    # Django 5.2 has pairs of name and address; since 6.0, addresses may be lazy.
    named = (*settings.ADMINS, *settings.MANAGERS)
    return {str(it[1] if isinstance(it, (tuple, list)) else it) for it in named}


def _may_be_queued(message: EmailMessage) -> bool:
    """Return whether a message is not the report of a log line about a report.

    A receiver that fails for each e-mail fails for the report of that too: without end. So would
    a transport whose own backend gives its mail to the queue: raises ``ImproperlyConfigured``.
    """
    if is_being_sent(message):
        raise ImproperlyConfigured(
            "A transport has given its mail back to the queue, because its backend opens the "
            "site's default one with get_connection(): name the backend that is to send it."
        )
    email_id = signals.concerned()
    if email_id is None or not (_is_logged() and _is_report(message)):
        return True
    rows = EmailRecipient.objects.using(router.db_for_write(EmailLog))
    recipients = rows.filter(email=UUID(str(email_id)))
    known = {*recipients.values_list("address", flat=True)}
    return not (known and known <= {canonical(it) for it in _staff()})


def _is_logged() -> bool:
    """Return whether a handler of the log sends the mail, and not the site itself."""
    emitting = logging.Handler.handle.__code__
    return any(frame.f_code is emitting for frame, _ in walk_stack(None))
