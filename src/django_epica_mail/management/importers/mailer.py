"""The tables of django-mailer: ``Message``, what waits, and ``MessageLog``, what was tried.

Their messages are pickles. Reading a pickle runs what its writer wrote into it: whoever can write
to these tables runs code in this process. So that takes a word of the caller's.
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
"""4 is a mail put off after a failure."""


class Tables(Source):
    """Reads both tables; a mail that is moved is deleted there, as it is when it is sent.

    It locks the row that it is sending, and looks again whether there is one before it does.
    """

    package = "django-mailer"
    app_label = "mailer"

    def __init__(self, *, trust_pickles: bool = False) -> None:
        if not trust_pickles:
            raise CannotImport(
                "django-mailer stores mail as pickles, and reading a pickle can run any code: "
                "whoever could ever write to its tables can run theirs in this process, with all "
                "its rights. If nobody but your site could, say --trust-pickles."
            )

    def queued(self) -> QuerySet[Any]:
        """Return what waits, and what was put off after a failure."""
        rows: QuerySet[Any] = self.model("Message").objects.all()
        return rows

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return what was sent, and what was not because of its list of addresses.

        Its logs of failures are tries of mails that wait, or were sent later.
        """
        logs: QuerySet[Any] = self.model("MessageLog").objects.all()
        return logs.filter(result__in=(_SUCCESS, _DO_NOT_SEND), when_attempted__gte=since)

    def message(self, row: Any) -> EmailMessage:
        """Return the pickled message, completed for this version of Django.

        Raises ``ValueError`` for one that is not kept or cannot be read any more.
        """
        found = row.email
        if not isinstance(found, EmailMessage):
            raise ValueError(
                "The row holds no message that can be read: it was not kept, or its class is gone."
            )
        vars(found).update({**vars(EmailMessage()), **vars(found)})
        return found

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return the priority."""
        return {"priority": _PRIORITIES.get(row.priority)}

    def past(self, row: Any) -> Past:
        """Return the end of a mail."""
        status = Status.SENT if row.result == _SUCCESS else Status.SUPPRESSED
        return Past(status=status, finished_at=row.when_attempted, reply=row.log_message)

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was queued."""
        created: datetime = row.when_added
        return created

    def listed(self) -> Iterable[str]:
        """Return the addresses of its entries "don't send"."""
        entries = self.model("DontSendEntry").objects.order_by("pk")
        addresses: Iterable[str] = entries.values_list("to_address", flat=True).iterator()
        return addresses

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Delete rows, of which ours are now the only ones."""
        self.model("Message").objects.filter(pk__in=[row.pk for row, _ in moved]).delete()
