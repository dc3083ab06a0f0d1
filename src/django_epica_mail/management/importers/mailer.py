"""The tables of django-mailer: ``Message`` for waiting mail, ``MessageLog`` for attempts.

Their messages are pickles, and unpickling can run code chosen by the writer of a row. So the caller
must declare that the tables are trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.mail import EmailMessage
from django.db.models import QuerySet

from django_epica_mail.lifecycle import Status
from django_epica_mail.management.importers.base import CannotImport, Past, Source
from django_epica_mail.models import EmailLog

APP = "mailer"

_SUCCESS, _DO_NOT_SEND = "1", "2"
_PRIORITIES = {1: "high", 2: "normal", 3: "low", 4: "normal"}
"""4 marks a mail deferred after a failure."""


class Tables(Source):
    """Both tables. The row of a moved mail is deleted, as django-mailer does after sending.

    django-mailer locks the row it is about to send, and skips rows that no longer exist.
    """

    package = "django-mailer"
    app_label = "mailer"

    def __init__(self, *, trust_pickles: bool = False) -> None:
        if not trust_pickles:
            raise CannotImport(
                "django-mailer stores mail as pickles, and reading a pickle can run any code: "
                "anyone who has ever had write access to its tables could run code in this "
                "process, with all its rights. If only your site has had it, pass --trust-pickles."
            )

    def queued(self) -> QuerySet[Any]:
        """Return waiting mail, including mail deferred after a failure."""
        rows: QuerySet[Any] = self.rows("Message").all()
        return rows

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return mail that was sent, and mail not sent because of a "don't send" entry.

        Logs of failures are attempts of mail that is still waiting or was sent later.
        """
        logs: QuerySet[Any] = self.rows("MessageLog").all()
        return logs.filter(result__in=(_SUCCESS, _DO_NOT_SEND), when_attempted__gte=since)

    def message(self, row: Any) -> EmailMessage:
        """Return the unpickled message, with the attributes that this version of Django expects.

        Raises ``ValueError`` if the message was not kept or can no longer be read.
        """
        found = row.email
        if not isinstance(found, EmailMessage):
            raise ValueError(
                "The row has no readable message: it was not kept, or its class no longer exists."
            )
        vars(found).update({**vars(EmailMessage()), **vars(found)})
        return found

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return the priority."""
        return {"priority": _PRIORITIES.get(row.priority)}

    def past(self, row: Any) -> Past:
        """Return the status, time and log message of a finished mail."""
        status = Status.SENT if row.result == _SUCCESS else Status.SUPPRESSED
        return Past(status=status, finished_at=row.when_attempted, reply=row.log_message)

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was queued."""
        created: datetime = row.when_added
        return created

    def listed(self) -> Iterable[str]:
        """Return the addresses of its "don't send" entries."""
        entries = self.rows("DontSendEntry").order_by("pk")
        addresses: Iterable[str] = entries.values_list("to_address", flat=True).iterator()
        return addresses

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Delete the rows; our rows replace them."""
        self.rows("Message").filter(pk__in=[row.pk for row, _ in moved]).delete()
